"""A real HTTP server in a thread over any application, and a service that says what it is told to."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import uvloop
from fastapi import FastAPI

from index.group import Row
from ingest.errors import NotFound
from ingest.feature_reader import Place
from ingest.store import Store
from serve.api import (
    CompareRequest,
    CompareResponse,
    DuplicatesResponse,
    FoundImage,
    GenerationInfo,
    QueryInfo,
    Readiness,
    SearchRequest,
    SearchResponse,
)
from serve.http.app import create_app
from serve.http.protocol import BoundedProtocol
from serve.http.settings import HttpSettings
from serve.http.uploads import Uploads
from serve.metrics import NoMetrics
from serve.query import ImageQuery

GENERATION = 7
_STARTS_S = 60


class TellingService:
    """A service over three images, numbered 1 to 3, that notes what it is asked.

    Attributes:
        raises: raised by every call, if set.
        slow: searches wait until it is False, or they are cancelled.
    """

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.slow = False
        self.ready = True
        self.asked: list[tuple[SearchRequest, list[ImageQuery], str]] = []
        self.compared: list[tuple[CompareRequest, ImageQuery | None]] = []
        self.began, self.cancelled = threading.Event(), threading.Event()
        self.metadata: dict[str, Any] = {"year": 1990}
        self.key = "a/b.jpg"

    async def search(
        self, request: SearchRequest, images: Sequence[ImageQuery], request_id: str
    ) -> SearchResponse:
        self.asked.append((request, list(images), request_id))
        self._trouble()
        self.began.set()
        if self.slow:
            try:
                while self.slow:
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        results = [self._found(number, number) for number in (1, 2, 3)[: request.top]]
        queries = [QueryInfo(kind="upload", name=image.name) for image in images]
        return SearchResponse(
            generation=GENERATION,
            queries=queries,
            results=results,
            partial=False,
            coverage=1.0,
            request_id=request_id,
            took_ms=1.5,
        )

    async def image(self, image_id: int) -> FoundImage:
        await self.row(image_id)
        return self._found(0, image_id)

    async def row(self, image_id: int) -> Row:
        self._trouble()
        if image_id not in (1, 2, 3):
            raise NotFound(f"generation {GENERATION} has no image {image_id}")
        return Row(image_id, Place("part", image_id - 1), "photos", self.key, self.metadata)

    async def duplicates(
        self, image_id: int, threshold: float | None = None, top: int = 100
    ) -> DuplicatesResponse:
        await self.row(image_id)
        return DuplicatesResponse(
            generation=GENERATION, image_id=str(image_id), threshold=threshold or 0.9, duplicates=[]
        )

    async def compare(
        self, request: CompareRequest, image: ImageQuery | None, request_id: str
    ) -> CompareResponse:
        self.compared.append((request, image))
        return CompareResponse(
            generation=GENERATION,
            image=await self.image(int(request.image_id)),
            query=QueryInfo(kind="image", name="1"),
            width=10,
            height=20,
            steps=[],
            homography=None,
            heat=None,
            request_id=request_id,
        )

    def generation(self) -> GenerationInfo:
        self._trouble()
        return GenerationInfo(
            number=GENERATION,
            recipe="tiny",
            published="2026-01-01T00:00:00+00:00",
            age_s=1.0,
            counts={"live": 3},
            dim=4,
            columns={"year": "integer"},
            steps=[],
            images=True,
            calibrated=False,
            groups=[],
            newest=GENERATION,
        )

    async def readiness(self) -> Readiness:
        return Readiness(ready=self.ready, generation=GENERATION, missing=[] if self.ready else ["s1"])

    def _found(self, rank: int, image_id: int) -> FoundImage:
        return FoundImage(
            rank=rank,
            image_id=str(image_id),
            score=0.5,
            similarity=0.5,
            uri=f"/photos/{self.key}",
            source="photos",
            key=self.key,
            metadata=self.metadata,
            thumbnail=f"/v1/images/{image_id}/thumbnail",
        )

    def _trouble(self) -> None:
        if self.raises is not None:
            raise self.raises


class NoThumbnails:
    """Where no test asks for a picture."""

    def of_image(self, *_: object) -> None:
        raise AssertionError("nobody asked for a picture")

    of_upload = of_image


def telling_app(service: TellingService, folder: Path, **given: Any) -> FastAPI:
    """An application over a telling service; what is not given is as open as it can be."""
    parts: dict[str, Any] = {
        "settings": HttpSettings(rate_per_s=None),
        "metrics": NoMetrics(),
        "keys": None,
        "uploads": Uploads(Store(str(folder / "uploads"))),
        "thumbnails": NoThumbnails(),
    }
    return create_app(service, **(parts | given))  # type: ignore[arg-type]


@contextmanager
def running(
    app: Any,
    protocol: type[asyncio.Protocol] = BoundedProtocol,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[str]:
    """Serves an application on loopback, in a thread, until the context ends; yields its URL."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield app

    with running_opened(opened, protocol, loop) as url:
        yield url


@contextmanager
def running_opened(
    opened: Callable[[], AbstractAsyncContextManager[Any]],
    protocol: type[asyncio.Protocol] = BoundedProtocol,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[str]:
    """`running` for an application that is opened and closed in the server's own event loop."""
    listening = socket.create_server(("127.0.0.1", 0))
    started: Future[uvicorn.Server] = Future()

    async def serve() -> None:
        async with opened() as app:
            config = uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
                lifespan="on",
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            started.set_result(server)
            await serving

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        started.result(_STARTS_S)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        if started.done() and started.exception() is None:
            started.result().should_exit = True
        thread.join(_STARTS_S)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def calling(app: FastAPI, **options: Any) -> Iterator[Callable[..., httpx.Response]]:
    """Calls an application in this thread, without a network: `call("GET", "/livez")`."""
    loop = asyncio.new_event_loop()
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://127.0.0.1",
        **options,
    )
    lifespan = app.router.lifespan_context(app)

    def call(method: str, path: str, **arguments: Any) -> httpx.Response:
        return loop.run_until_complete(client.request(method, path, **arguments))

    loop.run_until_complete(lifespan.__aenter__())
    try:
        yield call
    finally:
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.run_until_complete(client.aclose())
        with contextlib.suppress(RuntimeError):
            loop.close()
