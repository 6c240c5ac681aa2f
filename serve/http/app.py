"""The HTTP application: routes over a `SearchService`, behind limits, keys and headers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ingest.errors import ReseenError
from serve.http.doors import Doorkeeper
from serve.http.gate import Attendant, Gate
from serve.http.keys import Keys
from serve.http.openapi import document
from serve.http.parts import Parts
from serve.http.problems import problem_handlers
from serve.http.routes_images import image_routes
from serve.http.routes_search import search_routes
from serve.http.routes_server import PAGE, page_routes, server_routes
from serve.http.routes_uploads import upload_routes
from serve.http.settings import HttpSettings
from serve.http.thumbnails import Thumbnails
from serve.http.uploads import Uploads
from serve.logs import Redactor
from serve.metrics import Metrics
from serve.service.search_service import SearchService

API_VERSION = "1.0.0"
_LOG = logging.getLogger("reseen.http")


def create_app(
    service: SearchService,
    settings: HttpSettings,
    metrics: Metrics,
    keys: Keys | None,
    uploads: Uploads,
    thumbnails: Thumbnails,
    *,
    secrets: Collection[str] = (),
    page: Path = PAGE,
) -> FastAPI:
    """The application; it neither starts nor closes what it is given.

    Args:
        keys: who may call; None asks for no key, and then lets in only requests whose Host is loopback.
        secrets: texts that must be in no answer, besides what looks like one (`serve.logs.store_secrets`).
        page: folder of the page's files.
    """
    parts = Parts(service, settings, metrics, uploads, thumbnails)
    redact = Redactor(secrets)
    app = FastAPI(
        title="Reseen",
        version=API_VERSION,
        openapi_url="/openapi.json",
        docs_url=None,  # both load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(parts),
        exception_handlers=problem_handlers(redact),
    )
    for routes in (search_routes, image_routes, upload_routes, server_routes):
        app.include_router(routes(parts))
    app.include_router(page_routes(page))
    app.openapi = document(app, keys is not None)  # type: ignore[method-assign]
    # Added last is outermost.
    app.add_middleware(_HeadAsGet)
    app.add_middleware(Gate, settings=settings, doorkeeper=Doorkeeper(settings, keys), redact=redact)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After", "ETag"],
            max_age=600,
        )
    app.add_middleware(Attendant, metrics=metrics, redact=redact)
    return app


class _HeadAsGet:
    """Answers HEAD as GET; the server in front leaves the body out (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _lifespan(parts: Parts) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        trimming = asyncio.create_task(_trim_uploads(parts)) if parts.uploads.on else None
        try:
            yield
        finally:
            if trimming is not None:
                trimming.cancel()
                with suppress(asyncio.CancelledError):
                    await trimming
            parts.close()

    return lifespan


async def _trim_uploads(parts: Parts) -> None:
    """Takes away uploads that were not used for long, also where no new ones come."""
    while True:
        await asyncio.sleep(max(1.0, min(60.0, parts.uploads.max_age_s / 4)))
        try:
            await parts.upload_threads.run(parts.uploads.trim)
        except ReseenError as error:
            _LOG.warning("uploads could not be trimmed: %s", error)
