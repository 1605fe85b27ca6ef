"""The server on Ray Serve: one replica that holds the models, one that speaks HTTP."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from fastapi import FastAPI

from pipelines.recipe.resources import ResourcesConfig
from pipelines.resources.ray_session import cluster_gpus, ray_session
from pipelines.serve.api import AsyncEngine, BusyError, make_app
from pipelines.serve.configs import ServeConfig
from pipelines.serve.errors import UnknownVideoError, UnusableVideoError
from pipelines.serve.schemas import AskResponse, InteractionResponse, SearchResponse, VideoResponse

logger = logging.getLogger(__name__)

APPLICATION = "hbi"
_ENGINE = "Engine"


class ServedEngine:
    """The engine in its replica; searches that come at the same time are done together."""

    def __init__(self, index: str, video_qa: str | None, config: ServeConfig) -> None:
        from ray import serve

        # Here, because this module is also imported by the process that only speaks HTTP, which needs no PyTorch.
        from pipelines.serve.engine import Engine

        self._engine = Engine(index, video_qa, config.kept_uploads)
        # Made here and not by a decorator, because the limits are settings.
        batched = serve.batch(max_batch_size=config.max_batch, batch_wait_timeout_s=config.batch_wait_s)
        self._search = batched(self._search_together)

    async def _search_together(self, requests: Sequence[tuple[str, int]]) -> list[SearchResponse]:
        import asyncio

        queries, tops = zip(*requests, strict=True)
        # In a thread, so that the replica takes further requests while it searches.
        return await asyncio.to_thread(self._engine.search, queries, tops)

    async def search(self, query: str, top: int) -> SearchResponse:
        """The best videos for a query."""
        found: SearchResponse = await self._search((query, top))
        return found

    # Ray Serve runs functions that are not async in threads.

    def status(self) -> dict[str, Any]:
        """See ``Engine``, as for the following methods."""
        return self._engine.status()

    def interaction(self, query: str, video_id: str) -> InteractionResponse:
        return self._engine.interaction(query, video_id)

    def video(self, video_id: str) -> VideoResponse:
        return self._engine.video(video_id)

    def frame(self, video_id: str, number: int) -> bytes:
        return self._engine.frame(video_id, number)

    def ask(self, question: str, video_id: str, top: int) -> AskResponse:
        return self._engine.ask(question, video_id, top)

    def upload(self, content: bytes) -> VideoResponse:
        return self._engine.upload(content)


class _RemoteEngine:
    """The engine's replica, as the application calls it: every method of an ``AsyncEngine``."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __getattr__(self, method: str) -> Any:
        return partial(self._call, method)

    async def _call(self, method: str, *arguments: Any) -> Any:
        from ray import serve
        from ray.exceptions import RayTaskError
        from ray.serve.exceptions import BackPressureError

        if self._handle is None:
            self._handle = serve.get_deployment_handle(_ENGINE, APPLICATION)
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except BackPressureError as error:
            raise BusyError from error
        except RayTaskError as error:
            # Ray's own message is the traceback in the replica.
            if isinstance(error.cause, UnknownVideoError | UnusableVideoError):
                raise error.cause from None
            raise


@contextmanager
def served(index: str, video_qa: str | None, config: ServeConfig, resources: ResourcesConfig) -> Iterator[str]:
    """Serves until the end of the block; gives the address.

    Raises:
        OSError: the port is taken.
        ValueError: index or model cannot be used.
    """
    _require_free(config)
    with ray_session(resources):
        from ray import serve

        serve.start(
            # By default Ray listens on every node that has a replica.
            proxy_location="HeadOnly",
            http_options={
                "host": config.host,
                "port": config.port,
                # The application has its own time limit; this one is for a replica that does not answer.
                "request_timeout_s": 2 * config.timeout_s + 5,
            },
        )
        try:
            serve.run(_bind(index, video_qa, config), name=APPLICATION, route_prefix="/")
            yield f"http://{config.url_host}:{config.port}/"
        finally:
            serve.shutdown()


def _bind(index: str, video_qa: str | None, config: ServeConfig) -> Any:
    from ray import serve

    engine = serve.deployment(
        # One replica, because uploads are kept in its memory.
        ServedEngine,
        name=_ENGINE,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if cluster_gpus() >= 1 else 0},
        max_ongoing_requests=config.max_requests,
        # Ray counts these for each caller, and the one replica of the application is the only one.
        max_queued_requests=config.max_requests,
    )

    def build() -> FastAPI:
        return make_app(cast(AsyncEngine, _RemoteEngine()), config)

    application = serve.deployment(
        serve.ingress(build)(),
        name="Api",
        ray_actor_options={"num_cpus": 0},
        # Requests for pictures and the page come in addition to those that the engine works on.
        max_ongoing_requests=4 * config.max_requests,
    )
    # The application does not use what is bound. It is how Ray comes to start the engine, which the handle finds by
    # name.
    return application.bind(engine.bind(index, video_qa, config))


def _require_free(config: ServeConfig) -> None:
    # As Ray Serve does.
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        # Otherwise a port would count as taken for a while after a server on it has ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {config.url_host}:{config.port}: {error.strerror}; choose another --port"
            ) from error
