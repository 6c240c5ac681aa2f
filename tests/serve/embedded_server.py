"""A real server over the embedded backend, in a thread: for tests that want all of it behind one URL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from ingest.gallery import Gallery
from serve.front import DoorSettings, open_front
from serve.http.settings import HttpSettings
from serve.metrics import PrometheusMetrics
from serve.replicas.embedded import open_embedded
from serve.service.settings import ServiceSettings
from tests.serve.http_server import running_opened


@contextmanager
def embedded(
    gallery: Gallery, folder: Path, *, keys: Path | None = None, service: ServiceSettings | None = None
) -> Iterator[str]:
    """Serves a gallery's newest generation until the context ends; yields the URL.

    Args:
        folder: for uploads. keys: a file of API keys.
    """
    settings = DoorSettings(
        keys_file=None if keys is None else str(keys),
        uploads=str(folder / "uploads"),
        service=service or ServiceSettings(),
        http=HttpSettings(rate_per_s=None),
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with open_embedded(gallery) as backend:
            front = open_front(gallery, backend, PrometheusMetrics(), settings)
            await front.service.start()
            try:
                yield front.app
            finally:
                await front.close()

    with running_opened(opened) as url:
        yield url
