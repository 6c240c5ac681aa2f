"""What the routes work with, in one value."""

from dataclasses import dataclass, field

from serve.http.settings import HttpSettings
from serve.http.thumbnails import Thumbnails
from serve.http.uploads import Uploads
from serve.metrics import Metrics
from serve.replicas.workers import Workers
from serve.service.search_service import SearchService


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

    def close(self) -> None:
        self.upload_threads.close()
        self.thumbnail_threads.close()
