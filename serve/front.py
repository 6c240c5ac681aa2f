"""What answers HTTP, put together over any backend: a service, its application, and what lies beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ingest.gallery import Gallery
from ingest.store import Store
from serve.backend import Backend
from serve.http.settings import HttpSettings
from serve.metrics import Metrics
from serve.service.settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve.http.thumbnails import Thumbnails
    from serve.service.search_service import SearchService


class DoorSettings(BaseModel):
    """Who may come in, and what is kept for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_file: str | None = Field(
        None,
        description="file of API keys (reseen keys add), on each node; null: requests from this machine only",
    )
    uploads: str | None = Field(
        None, description="folder or URL that all ingresses share; null: images come with their search only"
    )
    uploads_bytes: int = Field(2**30, ge=0)
    uploads_s: float = Field(3_600.0, gt=0, description="how long an upload stays after its last use")
    calibrations: tuple[str, ...] = Field((), description="files, on each node, besides those that ship")
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)


@dataclass(frozen=True)
class Front:
    """A service that is not started yet, and its HTTP application."""

    service: "SearchService"
    app: "FastAPI"
    thumbnails: "Thumbnails"

    async def close(self) -> None:
        """Ends the service's work; the backend stays."""
        await self.service.close()
        self.thumbnails.close()


def open_front(gallery: Gallery, backend: Backend, metrics: Metrics, settings: DoorSettings) -> Front:
    """Puts a server together.

    Raises:
        NotFound, BadInput: the files of keys or of calibrations are not there, or not such files.
    """
    from index.calibration import load_calibrations
    from serve.http.app import create_app
    from serve.http.keys import Keys
    from serve.http.thumbnails import Thumbnails
    from serve.http.uploads import Uploads
    from serve.logs import store_secrets
    from serve.service.search_service import SearchService

    keys = None if settings.keys_file is None else Keys(Path(settings.keys_file))
    calibrations = load_calibrations(settings.calibrations)
    service = SearchService(gallery, backend, metrics, settings.service, calibrations)
    store = None if settings.uploads is None else Store(settings.uploads)
    uploads = Uploads(store, settings.uploads_bytes, settings.uploads_s, metrics)
    thumbnails = Thumbnails(gallery)
    secrets = store_secrets(gallery.store.options)
    app = create_app(service, settings.http, metrics, keys, uploads, thumbnails, secrets=secrets)
    return Front(service, app, thumbnails)
