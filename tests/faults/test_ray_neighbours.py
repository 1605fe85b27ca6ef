"""What neighbours on the network, and other accounts of the machine, can reach of a local Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.killing import descendants

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow_fault,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

LOOPBACK = {
    "0100007F",  # 127.0.0.1
    "00000000000000000000000001000000",  # ::1
    "0000000000000000FFFF00000100007F",  # ::ffff:127.0.0.1
}

DRIVER = """
import json, sys
import pyarrow as pa
from pipelines.recipe.resources import ActorResources, ResourcesConfig
from pipelines.resources.ray_session import ray_session
from pipelines.resources.sharded_work import map_shards

class Copy:
    def __call__(self, table):
        return table

with ray_session(ResourcesConfig(local_cpus=2, local_object_store_gb=0.15)):
    import os, ray
    list(map_shards([pa.table({"a": [1]})], Copy, name="copy", resources=ActorResources(max_actors=1)))
    print(json.dumps([ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]]), flush=True)
    sys.stdin.readline()
"""

CLIENT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.cluster_resources()['CPU'])"


def without_ray() -> dict[str, str]:
    """The environment of a user who has set nothing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def listening(pids: set[int]) -> dict[str, str]:
    """Addresses in the kernel's hexadecimal on which processes listen for TCP, and the command of each."""
    sockets = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets[str(link.readlink())] = Path(f"/proc/{pid}/cmdline").read_bytes().decode()[:80]
            except FileNotFoundError:
                continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found[fields[1]] = sockets[f"socket:[{fields[9]}]"]
    return found


@pytest.mark.parametrize("variable", [{}, {"RAY_ADDRESS": ""}], ids=["no address", "an empty address"])
def test_a_local_ray_listens_on_loopback_alone_and_to_those_who_know_its_token(
    tmp_path: Path, variable: dict[str, str]
) -> None:
    home = {"HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**without_ray(), **home, **variable},
    ) as driver:
        assert driver.stdout is not None and driver.stdin is not None
        address, token = json.loads(driver.stdout.readline())
        found = listening({driver.pid, *descendants(driver.pid)})
        assert len(found) > 5, "Ray's servers are seen"
        assert {place: command for place, command in found.items() if place.split(":")[0] not in LOOPBACK} == {}
        environments = {
            "no token": {},
            "no authentication": {"RAY_AUTH_MODE": "disabled"},
            "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            "the token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        }
        # At the same time: one that is refused takes 20 seconds to give up.
        clients = {
            name: subprocess.Popen(
                [sys.executable, "-c", CLIENT, address],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Otherwise a client would look for a loopback address on the network.
                env={**without_ray(), **home, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **environment},
            )
            for name, environment in environments.items()
        }
        try:
            ends = {name: client.communicate(timeout=120) for name, client in clients.items()}
        finally:
            for client in clients.values():
                client.kill()
            driver.stdin.close()
        assert driver.wait(60) == 0
    assert {name: clients[name].returncode for name in environments} == {
        "no token": 1,
        "no authentication": 1,
        "another token": 1,
        "the token": 0,
    }
    assert ends["the token"][0].strip() == "2.0"
    for name in ("no token", "no authentication", "another token"):
        assert "token" in ends[name][1] and "Failed to connect" in ends[name][1]
    assert not list(tmp_path.glob(".ray/*")), "no token was left in the home directory"
