"""Serving in one process: the embedded backend behind uvicorn, until a signal ends it."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import BadInput
from serve.loopback import is_loopback

if TYPE_CHECKING:
    from deploy.terminal import Output
    from serve.front import DoorSettings, Front

_OTHER_FILES = 1_024  # besides connections: the cache, the store, pipes to decoding processes
_GRACE_S = 30  # for requests that are under way at the end; few have a longer deadline


def check_door(host: str, keys: Path | None) -> None:
    """`BadInput` unless whoever can reach the server needs a key, or is on this machine."""
    if keys is None and not is_loopback(host):
        raise BadInput(
            f"--host {host} lets other machines in, and --keys names no file of API keys: make one "
            "(reseen keys add), or serve on 127.0.0.1"
        )


@dataclass(frozen=True)
class EmbeddedServer:
    """What `reseen serve` is asked for without Ray.

    memory_bytes: for lists and row tables of all replicas together; None: no limit.
    """

    gallery: str
    door: "DoorSettings"
    cache: Path
    host: str
    port: int
    groups: int
    replicas: int
    memory_bytes: int | None


def serve_embedded(server: EmbeddedServer, log_level: str, output: "Output") -> None:
    """Serves a gallery until SIGTERM or Ctrl-C; then answers what was begun, and returns.

    Raises:
        NotFound: there is no such gallery, or it has no generation.
        BadInput: the port is taken, or a file of settings is wrong.
    """
    import uvloop

    from serve.logs import log_json_lines, store_secrets

    log_json_lines(store_secrets(), level=getattr(logging, log_level.upper()))
    with (
        closing(_bound(server.host, server.port)) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        keys = server.door.keys_file
        check_door(listener.getsockname()[0], None if keys is None else Path(keys))  # names may lie
        runner.run(_until_stopped(server, listener, output))


def _room_for(connections: int) -> int:
    """As many connections as wanted, or as the limit of open files allows; it is raised where it may be."""
    wanted = connections + _OTHER_FILES
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= wanted:
        return connections
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return min(connections, max(allowed - _OTHER_FILES, allowed // 2))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its port and does not listen yet: who comes before all is loaded is refused."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BadInput(f"cannot listen on {host} port {port} ({error.strerror}): choose another") from None
    return listener


async def _until_stopped(server: EmbeddedServer, listener: socket.socket, output: "Output") -> None:
    """Serves until a signal comes; one that comes while shards are loaded ends it at once."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    stopping = loop.create_task(stopped.wait())
    starting = loop.create_task(_start(server))
    async with AsyncExitStack() as stack:
        stack.callback(stopping.cancel)
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return
        started, front, protocol = starting.result()
        stack.push_async_exit(started)
        warning = front.service.generation().warning
        if warning:
            output.warn(warning)
        await _answer(front, protocol, listener, stopped)


async def _start(server: EmbeddedServer) -> "tuple[AsyncExitStack, Front, type[asyncio.Protocol]]":
    """What ends a server, a front with a generation loaded, and the connections to it."""
    from index.cache import Cache
    from ingest.gallery import open_gallery
    from ingest.store import Store
    from serve.front import open_front
    from serve.http.crowd import Crowd
    from serve.http.crowded_protocol import crowded_protocol
    from serve.metrics import PrometheusMetrics
    from serve.replicas.embedded import open_embedded

    metrics, door = PrometheusMetrics(), server.door

    gallery = await asyncio.to_thread(lambda: open_gallery(Store(server.gallery)))
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(
            open_embedded(
                gallery,
                Cache(server.cache),
                groups=server.groups,
                replicas=server.replicas,
                memory_bytes=server.memory_bytes,
            )
        )
        front = open_front(gallery, backend, metrics, door)
        stack.push_async_callback(front.close)
        await front.service.start()
        connections = _room_for(door.http.max_connections)
        crowd = Crowd(door.service.most_inside, connections, metrics, door.http.origins)
        return stack.pop_all(), front, crowded_protocol(crowd)
    raise AssertionError("unreachable")


async def _answer(
    front: "Front", protocol: type[asyncio.Protocol], listener: socket.socket, stopped: asyncio.Event
) -> None:
    """Answers HTTP until stopped; then no more connections, and what was begun to its end."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """They are ours."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(
                f"serving {_address(listener)} (generation {front.service.generation().number})", flush=True
            )

    server = Server(
        uvicorn.Config(
            front.app,
            http=protocol,
            ws="none",  # an upgraded connection would be out of its bounds
            proxy_headers=False,
            lifespan="on",
            log_config=None,
            access_log=False,  # the application writes its own
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )

    async def stop() -> None:
        await stopped.wait()
        server.should_exit = True

    async with asyncio.TaskGroup() as both:
        stopping = both.create_task(stop())
        await server.serve([listener])
        stopping.cancel()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
