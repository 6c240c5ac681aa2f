"""What the routes work with, in one value."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serve.http.settings import HttpSettings
from serve.http.thumbnails import Thumbnails
from serve.http.uploads import Uploads
from serve.metrics import Metrics
from serve.refusals import DeadlineExceeded
from serve.service.search_service import SearchService
from serve.workers import Workers


@dataclass(frozen=True)
class Parts:
    """A service, what stands around it, and the threads for what blocks."""

    service: SearchService
    settings: HttpSettings
    metrics: Metrics
    uploads: Uploads
    thumbnails: Thumbnails
    upload_threads: Workers = field(default_factory=lambda: Workers("uploads", 4, 32))
    thumbnail_threads: Workers = field(default_factory=lambda: Workers("thumbnails", 2, 128))

    @asynccontextmanager
    async def in_time(self, within_s: float | None = None) -> AsyncIterator[None]:
        """Bounds what waits for a store: as the settings say, and to `within_s` seconds if that is less.

        Raises:
            DeadlineExceeded: it took longer. A call that runs goes on in its thread, of which there are few.
        """
        try:
            async with asyncio.timeout(min(self.settings.store_timeout_s, within_s or float("inf"))):
                yield
        except TimeoutError:
            raise DeadlineExceeded("what is stored could not be read in time: try again later") from None

    def close(self) -> None:
        self.upload_threads.close()
        self.thumbnail_threads.close()
