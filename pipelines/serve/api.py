"""The HTTP API and the web page, in front of an engine that does the work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipelines.serve.configs import ServeConfig
from pipelines.serve.errors import UnknownVideoError, UnusableVideoError
from pipelines.serve.schemas import (
    AskRequest,
    AskResponse,
    Health,
    InteractionRequest,
    InteractionResponse,
    Problem,
    SearchRequest,
    SearchResponse,
    VideoId,
    VideoResponse,
)

PAGE = Path(__file__).with_name("page.html")

UPLOAD_TYPES = ("video/*", "application/octet-stream")

_UPLOADS_AT_ONCE = 2
"""Clips that may be received at the same time: each takes its size in memory."""

# The page holds its script and its style itself ('unsafe-inline') and asks no other host for anything.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is malformed."},
    503: {"model": Problem, "description": "Too many requests; come back later."},
    504: {"model": Problem, "description": "It took too long."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such video or frame."}
}

Result = TypeVar("Result")


class BusyError(Exception):
    """The engine has too much to do."""


class AsyncEngine(Protocol):
    """An engine that works elsewhere; see ``engine.Engine`` for what it does and raises.

    Every method may raise :class:`BusyError`.
    """

    def status(self) -> Awaitable[dict[str, Any]]: ...
    def search(self, query: str, top: int) -> Awaitable[SearchResponse]: ...
    def interaction(self, query: str, video_id: str) -> Awaitable[InteractionResponse]: ...
    def video(self, video_id: str) -> Awaitable[VideoResponse]: ...
    def frame(self, video_id: str, number: int) -> Awaitable[bytes]: ...
    def ask(self, question: str, video_id: str, top: int) -> Awaitable[AskResponse]: ...
    def upload(self, content: bytes) -> Awaitable[VideoResponse]: ...


def make_app(engine: AsyncEngine, config: ServeConfig) -> FastAPI:
    """The application; no path of a file is ever taken from a request."""
    app = FastAPI(
        title="HBI on Ray: search and ask",
        description="Finds videos by what they show, explains the match, and answers questions about them.",
        version="1",
        # FastAPI's own pages load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_hosts(config))
    receiving = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def answered(work: Awaitable[Result]) -> Result:
        return await _answered(work, config.timeout_s)

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> Response:
        # Without the text that was sent, which may be long and hold characters that a response cannot.
        reasons = [{name: reason[name] for name in ("type", "loc", "msg")} for reason in error.errors()]
        return Response(json.dumps({"detail": reasons}), 422, media_type="application/json")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=_HEADERS)

    @app.get("/api/health", responses=_PROBLEMS)
    async def health() -> Health:
        """What is served."""
        status = await answered(engine.status())
        return Health(status="ok", max_upload_bytes=config.max_upload_bytes, **status)

    @app.post("/api/search", responses=_PROBLEMS)
    async def search(request: SearchRequest) -> SearchResponse:
        """The best videos for a query, with the moment that matches best."""
        return await answered(engine.search(request.query, request.top))

    @app.post(
        "/api/interaction", responses={**_PROBLEMS, **_NOT_FOUND, 409: {"model": Problem, "description": "No map."}}
    )
    async def interaction(request: InteractionRequest) -> InteractionResponse:
        """The interaction of the words of a query and the frames of a video."""
        return await answered(engine.interaction(request.query, request.video_id))

    @app.post("/api/ask", responses={**_PROBLEMS, **_NOT_FOUND, 409: {"model": Problem, "description": "No answers."}})
    async def ask(request: AskRequest) -> AskResponse:
        """Answers to a question about a video."""
        return await answered(engine.ask(request.question, request.video_id, request.top))

    @app.get("/api/videos/{video_id}", responses={**_PROBLEMS, **_NOT_FOUND})
    async def video(video_id: VideoId) -> VideoResponse:
        """When the frames of a video are shown."""
        return await answered(engine.video(video_id))

    @app.get(
        "/api/videos/{video_id}/frames/{number}",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}, "image/png": {}}, "description": "The frame."},
            **_PROBLEMS,
            **_NOT_FOUND,
        },
    )
    async def frame(video_id: VideoId, number: Annotated[int, PathParameter(ge=0, le=10_000)]) -> Response:
        """A frame of a video."""
        content = await answered(engine.frame(video_id, number))
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    @app.post(
        "/api/uploads",
        status_code=201,
        responses={
            **_PROBLEMS,
            409: {"model": Problem, "description": "The clip cannot be used."},
            413: {"model": Problem, "description": "The clip is too large."},
            415: {"model": Problem, "description": "It is not a video."},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in UPLOAD_TYPES},
            }
        },
    )
    async def upload(request: Request) -> VideoResponse:
        """Takes in a clip of your own: the bytes of the file are the body. It is kept in memory for a while."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind.startswith("video/") or kind == "application/octet-stream"):
            raise HTTPException(
                415, f"the type is {kind or 'missing'!r}; video/… or application/octet-stream is needed"
            )
        # Nothing is awaited between this and the block, so no request waits for the semaphore: it is refused instead.
        if receiving.locked():
            raise HTTPException(503, "other clips are being received; come back in a moment", {"Retry-After": "5"})
        async with receiving:
            try:
                content = await asyncio.wait_for(_body(request, config), config.timeout_s)
            except TimeoutError:
                raise HTTPException(504, f"the clip did not arrive within {config.timeout_s:g} s") from None
            return await answered(engine.upload(content))

    return app


async def _answered(work: Awaitable[Result], timeout_s: float) -> Result:
    """The result of an engine; its errors become HTTP statuses."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except UnknownVideoError as error:
        raise HTTPException(404, str(error)) from error
    except UnusableVideoError as error:
        raise HTTPException(409, str(error)) from error
    except BusyError as error:
        raise HTTPException(503, "too many requests; come back in a moment", {"Retry-After": "2"}) from error
    except TimeoutError as error:
        raise HTTPException(504, f"it took longer than {timeout_s:g} s") from error


async def _body(request: Request, config: ServeConfig) -> bytes:
    """The body of a request, which is refused if it is too large."""
    too_large = HTTPException(413, f"the clip is larger than {config.max_upload_mb:g} MB; cut it, or make it smaller")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > config.max_upload_bytes:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        # A body that is sent in chunks announces no length, and a length that is announced need not be true.
        if len(content) > config.max_upload_bytes:
            raise too_large
    return bytes(content)


def _hosts(config: ServeConfig) -> list[str]:
    """Host names that requests may use. Others are refused, so that scripts of other pages cannot reach the server
    through a name of their own (DNS rebinding)."""
    return sorted({"localhost", "127.0.0.1", "[::1]", config.url_host, *config.allowed_hosts})
