"""The real server over the town, in threads of this process, with switches that take parts of it away."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from index.calibration import Calibration
from index.group import Row
from ingest.errors import Unavailable
from ingest.gallery import Gallery
from ingest.store import Store
from serve.backend import Backend, GroupState, Replica
from serve.http.keys import Keys

_STARTS_S = 60


@dataclass
class Switches:
    """What is taken away from a running server. gone: replicas by name; no_looks: second looks fail."""

    gone: set[str] = field(default_factory=set)
    no_looks: bool = False

    def reset(self) -> None:
        self.gone.clear()
        self.no_looks = False


@dataclass(frozen=True)
class SwitchedReplica:
    """A replica that is unavailable while its name is among those gone."""

    replica: Replica
    switches: Switches

    @property
    def name(self) -> str:
        return self.replica.name

    def _there(self) -> None:
        if self.name in self.switches.gone:
            raise Unavailable(f"replica {self.name} is gone")

    async def scan(self, generation: int, batch: bytes) -> bytes:
        self._there()
        return await self.replica.scan(generation, batch)

    async def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        self._there()
        return await self.replica.rows(generation, image_ids)

    async def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        self._there()
        return await self.replica.load(generation, replace, keep)

    async def states(self) -> list[GroupState]:
        self._there()
        return await self.replica.states()


@dataclass(frozen=True)
class SwitchedReranker:
    """A reranker whose second looks may fail."""

    reranker: Any
    switches: Switches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reranker, name)

    async def look(self, *arguments: Any) -> Any:
        if self.switches.no_looks:
            raise Unavailable("the store does not answer")
        return await self.reranker.look(*arguments)


@dataclass(frozen=True)
class TownServer:
    """A running server. uploads: the folder where it keeps what was uploaded."""

    url: str
    switches: Switches
    uploads: Path

    def forget_uploads(self) -> None:
        """As if every upload had expired."""
        for file in self.uploads.rglob("*"):
            if file.is_file():
                file.unlink()


@contextmanager
def serving(
    gallery: Gallery, folder: Path, calibrations: Sequence[Calibration] = (), keys: Keys | None = None
) -> Iterator[TownServer]:
    """Serves a gallery in two groups of shards on a port of loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        folder.mkdir()
        server = TownServer(f"http://127.0.0.1:{listening.getsockname()[1]}/", Switches(), folder / "store")
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        work = _serve(listening, gallery, server, calibrations, keys, started)
        thread = threading.Thread(target=lambda: _run(work, started), name="town-server")
        thread.start()
        loop, stop = started.result(_STARTS_S)
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(_STARTS_S)
            assert not thread.is_alive(), "the server did not stop"


def _run(work: Any, started: "Future[Any]") -> None:
    try:
        asyncio.run(work)
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _serve(
    listening: socket.socket,
    gallery: Gallery,
    server: TownServer,
    calibrations: Sequence[Calibration],
    keys: Keys | None,
    started: "Future[Any]",
) -> None:
    import uvicorn

    from serve.http.app import create_app
    from serve.http.settings import HttpSettings
    from serve.http.thumbnails import Thumbnails
    from serve.http.uploads import Uploads
    from serve.metrics import NoMetrics
    from serve.replicas.embedded import open_embedded
    from serve.service.search_service import SearchService
    from serve.service.settings import ServiceSettings

    settings = ServiceSettings(supervise_s=0.05, poll_s=60, pause_most_s=0.2)
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(open_embedded(gallery, groups=2))
        switched = _switched(backend, server.switches)
        service = SearchService(gallery, switched, NoMetrics(), settings, calibrations)
        await stack.enter_async_context(service)
        thumbnails = stack.enter_context(Thumbnails(gallery))
        uploads = Uploads(Store(str(server.uploads)))
        app = create_app(service, HttpSettings(), NoMetrics(), keys, uploads, thumbnails)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve([listening]))
        while not running.started:
            await asyncio.sleep(0.01)
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        running.should_exit = True
        await task


def _switched(backend: Backend, switches: Switches) -> Backend:
    groups = [[SwitchedReplica(replica, switches) for replica in group] for group in backend.groups]
    return replace(backend, groups=groups, reranker=SwitchedReranker(backend.reranker, switches))
