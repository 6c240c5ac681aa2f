"""A real server over the embedded backend, in a thread: for tests that want all of it behind one URL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ingest.gallery import Gallery
from ingest.store import Store
from serve.http.app import create_app
from serve.http.keys import Keys
from serve.http.settings import HttpSettings
from serve.http.thumbnails import Thumbnails
from serve.http.uploads import Uploads
from serve.metrics import PrometheusMetrics
from serve.replicas.embedded import open_embedded
from serve.service.search_service import SearchService
from serve.service.settings import ServiceSettings
from tests.serve.http_server import running


@contextmanager
def embedded(
    gallery: Gallery,
    folder: Path,
    *,
    keys: Keys | None = None,
    http: HttpSettings | None = None,
    service: ServiceSettings | None = None,
) -> Iterator[str]:
    """Serves a gallery's newest generation until the context ends; yields the URL."""
    with running(_Starting(gallery, folder, keys, http, service)) as url:
        yield url


class _Starting:
    """An ASGI application that opens the backend when the server starts, in the server's own event loop."""

    def __init__(
        self,
        gallery: Gallery,
        folder: Path,
        keys: Keys | None,
        http: HttpSettings | None,
        service: ServiceSettings | None,
    ) -> None:
        self._given = gallery, folder, keys, http, service
        self._app: FastAPI | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            assert self._app is not None
            await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        last: list[Any] = []

        async def hold(message: Any) -> None:
            """The server ends its event loop as soon as it hears that all is closed: so not before it is."""
            if message["type"] == "lifespan.shutdown.complete":
                last.append(message)
            else:
                await send(message)

        async with self._opened() as app:
            self._app = app
            await app(scope, receive, hold)
        for message in last:
            await send(message)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[FastAPI]:
        gallery, folder, keys, http, settings = self._given
        metrics = PrometheusMetrics()
        http = http or HttpSettings(rate_per_s=None)
        async with (
            open_embedded(gallery) as backend,
            SearchService(gallery, backend, metrics, settings or ServiceSettings()) as service,
        ):
            with Thumbnails(gallery) as thumbnails:
                uploads = Uploads(Store(str(folder / "uploads")), metrics=metrics)
                yield create_app(service, http, metrics, keys, uploads, thumbnails)
