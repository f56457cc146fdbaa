"""The HTTP application: routes over a service, errors in one shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from guardkeel import __version__
from guardkeel.moderation import (
    routes_admin,
    routes_feedback,
    routes_health,
    routes_judge,
    routes_proxy,
)
from guardkeel.moderation.keys import Keys
from guardkeel.moderation.limits import OverloadedError
from guardkeel.moderation.middleware import OPEN_PATHS, Gate, overloaded
from guardkeel.moderation.openai_schema import error
from guardkeel.moderation.page import routes as page
from guardkeel.moderation.proxy import Seen, Upstream
from guardkeel.moderation.routes_common import ApiError
from guardkeel.moderation.service import Service
from guardkeel.moderation.store import StoreDownError


def make_app(service: Service, upstream: Upstream | None = None) -> FastAPI:
    """The application of a service; its lifespan starts the service and stops it.

    Raises:
        ConfigError: the file of keys cannot be read.
    """
    config = service.config

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(service, upstream):
            yield

    app = FastAPI(
        title="guardkeel",
        version=__version__,
        description="Moderation with an ensemble of guards that learns from its reviewers.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.service, app.state.upstream, app.state.seen = service, upstream, Seen()
    for routes in (routes_judge, routes_feedback, routes_admin, routes_health):
        app.include_router(routes.router)
    if upstream is not None:
        app.include_router(routes_proxy.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(OverloadedError, _overloaded)
    app.add_exception_handler(StoreDownError, _store_down)
    keys = Keys(config.path(config.server.keys)) if config.server.keys else None
    app.include_router(page.router)
    app.add_middleware(Gate, service=service, keys=keys, open_paths=OPEN_PATHS | page.PATHS)
    return app


@contextlib.asynccontextmanager
async def running(service: Service, upstream: Upstream | None = None) -> AsyncIterator[None]:
    """A service that is started, and stopped in the end."""
    try:
        await service.start()
        yield
    finally:
        await service.stop()
        if upstream is not None:
            await upstream.close()


async def _invalid(request: Request, e: Any) -> JSONResponse:
    """What is wrong with a body, and where; never what it says."""
    first = e.errors()[0]
    place = ".".join(str(p) for p in first["loc"][1:] if isinstance(p, int) or str(p).isidentifier())
    if first["type"] == "json_invalid":
        message = "the body is not JSON"
    else:
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse(
        error(message[:300], "invalid_request_error", param=place or None, code="invalid_request"), 400
    )


async def _refused(request: Request, e: Any) -> JSONResponse:
    body = e.body if isinstance(e, ApiError) else error(str(e.detail), "invalid_request_error")
    return JSONResponse(body, e.status_code, e.headers)


async def _overloaded(request: Request, e: Any) -> JSONResponse:
    body, headers = overloaded(e)
    return JSONResponse(body, 429, headers)


async def _store_down(request: Request, e: Any) -> JSONResponse:
    body = error("the log is away; nothing was acknowledged", "server_error", code="store_unavailable")
    return JSONResponse(body, 503, {"retry-after": "2"})
