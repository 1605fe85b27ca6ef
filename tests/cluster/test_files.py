"""The files in cluster/: launchers, manifests, compose, Dockerfile, scripts, each against its own schema or linter."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from runpy import run_module
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.kuberay_rules import SCHEMAS
from tests.cluster.ray_nodes import BIN, ROOT

CLUSTER = ROOT / "cluster"
LAUNCHERS = ("aws", "gcp", "machines")
CLOUDS = ("aws", "gcp")
KUBERNETES = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.28", "1.37"


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())  # type: ignore[no-any-return]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_follow_rays_schema_and_rules(name: str) -> None:
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(launcher(name), schema)
    validate_config(prepare_config(launcher(name)))
    broken = {**launcher(name), "head_node": {}}
    with pytest.raises(jsonschema.ValidationError, match="head_node"):
        jsonschema.validate(broken, schema)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_of_a_cloud_runs_no_work_and_workers_come_on_demand(name: str) -> None:
    config = launcher(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert {settings["min_workers"] for settings in types.values()} == {0}
    for settings in types.values():
        assert settings["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_clusters_want_a_token_and_keep_the_port_for_jobs_to_themselves(name: str) -> None:
    config = launcher(name)
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(("demand", "kind"), [({"CPU": 1}, "decode"), ({"CPU": 7, "GPU": 1}, "gpu")])
def test_the_autoscaler_asks_for_spot_nodes_and_falls_back(name: str, demand: dict[str, int], kind: str) -> None:
    assert nodes_for(name, demand, available={}) == [f"{kind}_spot"]
    assert nodes_for(name, demand, available={f"{kind}_spot": 0.0}) == [f"{kind}_on_demand"]


def nodes_for(name: str, demand: dict[str, int], available: dict[str, float]) -> list[str]:
    """The types of the nodes that Ray's autoscaler would start, by its own scheduler; ``available`` = lately given."""
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger  # noqa: F401
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    config = AutoscalingConfig(launcher(name), skip_content_hash=True)
    request = ResourceRequestByCount(request=ResourceRequestUtil.make(demand), count=1)
    types = config.get_node_type_configs()
    del types[config.get_head_node_type()]
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=[request],
            recoverable_resource_availabilities=available,
        )
    )
    assert not reply.infeasible_resource_requests
    return [launch.instance_type for launch in reply.to_launch for _ in range(launch.count)]


def plain_resources() -> Iterator[tuple[str, dict[str, Any]]]:
    """Kubernetes' own resources in the manifests, the pod templates of KubeRay's among them."""
    for path in KUBERNETES:
        for document in documents(path):
            if document["apiVersion"] != "ray.io/v1":
                yield f"{path.stem}-{document['kind']}", document
                continue
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                name = f"{path.stem}-{group.get('groupName', 'head')}"
                metadata = {"name": name.replace("_", "-")}
                yield (
                    name,
                    {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": group["template"]},
                )


PLAIN_RESOURCES = dict(plain_resources())


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("name", PLAIN_RESOURCES)
def test_manifests_follow_kubernetes_schemas(name: str, version: str) -> None:
    import kubernetes_validate

    resource = PLAIN_RESOURCES[name]
    kubernetes_validate.validate(resource, version, strict=True)
    broken = {**copy.deepcopy(resource), "spek": {}}
    with pytest.raises(jsonschema.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("name", ["ray_cluster", "ray_job"])
def test_ray_resources_follow_the_rules_of_their_reference(name: str) -> None:
    (document,) = documents(CLUSTER / f"kubernetes/{name}.yaml")
    schema = SCHEMAS[document["kind"]]
    jsonschema.validate(document, schema)
    broken = copy.deepcopy(document)
    broken["spec"]["workerGroups"] = []
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        jsonschema.validate(broken, schema)


def test_a_job_and_a_cluster_that_stays_have_the_same_nodes() -> None:
    (cluster,), (job,) = (documents(CLUSTER / f"kubernetes/{name}.yaml") for name in ("ray_cluster", "ray_job"))
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert job["spec"]["shutdownAfterJobFinishes"]


def test_pods_have_shared_memory_secrets_by_name_and_no_root() -> None:
    (cluster,) = documents(CLUSTER / "kubernetes/ray_cluster.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["envFrom"] == [{"secretRef": {"name": "hbi-object-store", "optional": True}}]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    gpu = groups[-1]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["tolerations"]


def test_versions_of_ray_agree() -> None:
    (image,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    (cluster,) = documents(CLUSTER / "kubernetes/ray_cluster.yaml")
    assert cluster["spec"]["rayVersion"] == image
    assert f'"ray[default]=={image}"' in (CLUSTER / "README.md").read_text()


def test_jobs_of_kubernetes_stop_like_others() -> None:
    (job,) = documents(CLUSTER / "kubernetes/ray_job.yaml")
    runtime_env = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert runtime_env == yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())


def test_the_compose_file_is_one() -> None:
    import compose_spec

    text = (CLUSTER / "mlflow/compose.yaml").read_text()
    compose = compose_spec.PyCompose.from_yaml(text)
    compose.validate()
    assert sorted(compose.service_names()) == ["mlflow", "postgres"]
    ports = [port for service in yaml.safe_load(text)["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    with pytest.raises(ValueError, match="prots"):
        compose_spec.PyCompose.from_yaml(text.replace("ports:", "prots:"))


def test_compose_and_kubernetes_start_the_same_server() -> None:
    (compose,) = (
        service["command"]
        for name, service in yaml.safe_load((CLUSTER / "mlflow/compose.yaml").read_text())["services"].items()
        if name == "mlflow"
    )
    (deployment,) = (
        document for document in documents(CLUSTER / "kubernetes/mlflow.yaml") if document["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    def options(line: list[str]) -> set[str]:
        return {word.partition("=")[0] for word in line}

    assert options(compose) == options(container["command"] + container["args"]) - {"--allowed-hosts"}


def test_the_dockerfile_has_no_findings_and_a_small_context() -> None:
    done = subprocess.run([BIN / "hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.search(r"^USER \d+", text, re.MULTILINE), "the image does not run as root"
    # Nothing is sent to the builder but what is copied.
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert ignored[1] == "*"
    assert sent == copied
    assert all((ROOT / name).exists() for name in copied)


def test_scripts_have_no_findings() -> None:
    scripts = sorted(CLUSTER.rglob("*.sh"))
    assert scripts
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_resources_for_nodes_on_demand_are_settings_of_a_recipe() -> None:
    from jobs.settings import read_recipe, recipe_parser

    document = yaml.safe_load((CLUSTER / "on_demand.yaml").read_text())
    assert set(document) == {"resources"}, "machines only: what changes a result has no place here"
    line = ["--config", str(ROOT / "jobs/recipes/msrvtt_retrieval.yaml"), "--config", str(CLUSTER / "on_demand.yaml")]
    recipe, _ = read_recipe(recipe_parser("test"), line)
    assert recipe.resources.retrieval.gpus_per_worker == 1
    assert recipe.resources.retrieval.workers == 2, "the recipe's own settings stay"
    gpus = launcher("aws")["available_node_types"]["gpu_spot"]["max_workers"]
    assert recipe.resources.labels.max_actors == gpus


SECRET = re.compile(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|(?i:password|secret|token): *[^$\s]{12,}")
ADDRESS = re.compile(
    r"https?://(?!localhost|127\.0\.0\.1|hbi-mlflow|github\.com/ray-project/|www\.googleapis\.com/auth/)"
)


def test_nothing_in_these_files_is_a_secret_or_an_address_of_somebody_else() -> None:
    for path in (path for path in CLUSTER.rglob("*") if path.is_file()):
        assert not SECRET.search(path.read_text()), path
        assert not ADDRESS.search(path.read_text()), path


README = CLUSTER / "README.md"
BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def command_lines() -> list[str]:
    """The commands of the README, each on one line; a block that is no command begins with an address."""
    blocks = [textwrap.dedent(block) for block in BLOCK.findall(README.read_text()) if "://" not in block.split()[0]]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_readme_shows_commands_for_every_kind_of_cluster() -> None:
    first = {line.split()[0] for line in command_lines()}
    assert {"ray", "docker", "kubectl", "aws", "gcloud", "python", "pip"} <= first
    assert any("sbatch" in line for line in command_lines())


@pytest.mark.slow
@pytest.mark.parametrize("line", command_lines())
def test_commands_of_the_readme_parse(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    if words[0] == "ray":
        parse_ray(words[1:])
    elif words[0] == "sbatch":
        parse_job(["jobs.run", *words[words.index("cluster/slurm.sh") + 1 :]])
    elif words[:2] == ["python", "-m"] and words[2].startswith("jobs."):
        parse_job(words[2:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        monkeypatch.setattr(sys, "argv", [words[2], "--help"])
        with pytest.raises(SystemExit) as ended:
            run_module(words[2], run_name="__main__")
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert all(word.partition("=")[0] in shown for word in words if word.startswith("--"))
    for word in words:
        if word.startswith(("cluster/", "jobs/")):
            assert (ROOT / word).exists(), f"the README names {word}, which does not exist"


def parse_ray(words: list[str]) -> None:
    """Refuses what Ray's own command line would refuse."""
    import click
    from ray.scripts.scripts import cli

    command: click.Command = cli
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"ray has no command {name}"
        command = found
    command.make_context(command.name, list(words))
    if "--" in words:
        entrypoint = words[words.index("--") + 1 :]
        assert entrypoint[:2] == ["python", "-m"]
        parse_job(entrypoint[2:])


def parse_job(words: list[str]) -> None:
    """Refuses what a job would refuse; ``--print_config`` parses all of its options and does nothing."""
    if words[0] == "jobs.status":
        line = [sys.executable, "-m", "jobs.status", "--help"]
    else:
        line = [sys.executable, "-m", *words, "--print_config"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_readme_names_exists() -> None:
    text = README.read_text()
    for name in set(re.findall(r"\b(?:cluster|jobs|benchmarks|pipelines)/[\w./-]+\.\w+", text)):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for path in CLUSTER.rglob("*"):
        if path.is_file() and path.name not in ("README.md", "Dockerfile.dockerignore"):
            assert path.name in text, f"{path.name} is not in the README"
    # Settings that are named are settings.
    from jobs.settings import recipe_parser

    known = recipe_parser("test").get_defaults().as_flat().__dict__
    for setting in re.findall(r"`((?:resources|retrieval|labels|evaluation|frames)\.[\w.]+[a-z])`", text):
        assert any(name == setting or name.startswith(f"{setting}.") for name in known), setting
