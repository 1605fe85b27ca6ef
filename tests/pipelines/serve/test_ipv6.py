"""A server on an address of IPv6, as far as it needs no Ray."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from pipelines.serve.api import make_app
from pipelines.serve.configs import ServeConfig
from pipelines.serve.server import _RemoteEngine, _require_free


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        yield taken


def test_its_port_is_looked_at_before_anything_starts(listener: socket.socket) -> None:
    config = ServeConfig(host="::1", port=listener.getsockname()[1])
    with pytest.raises(OSError, match=rf"cannot listen on \[::1\]:{config.port}: .*; choose another --port"):
        _require_free(config)
    listener.close()
    _require_free(config)


@pytest.mark.parametrize("host", ["::1", "::", "fd00::5"])
def test_its_pages_are_reached_by_their_addresses(host: str) -> None:
    config = ServeConfig(host=host)
    app = make_app(_RemoteEngine(), config)
    for name in ("localhost", "[::1]", config.url_host):
        assert TestClient(app, base_url=f"http://{name}:{config.port}").get("/").status_code == 200
    assert TestClient(app, base_url="http://[fd00::6]:8000").get("/").status_code == 400
