"""What runs in replicas on Ray Serve: a class for each deployment, a shell around what does the work.

All methods are coroutines over threads, so that cancelling and health checks work while shards are scanned.
"""

import logging
from pathlib import Path
from typing import Any

from index.cache import Cache
from ingest.compute import Compute
from ingest.errors import BadInput, ReseenError
from ingest.gallery import Gallery, open_gallery
from ingest.packages import check_packages
from ingest.store import Store
from ingest.threads import set_threads
from serve.cluster.settings import FrontSettings, SlotSettings
from serve.failures import replied
from serve.logs import log_json_lines, store_secrets
from serve.loopback import is_loopback
from serve.query import QUERY_COMPUTE
from serve.replicas.embedded import (
    LocalEncoder,
    LocalReplica,
    LocalReranker,
    ScanThreads,
    one_faiss_thread,
    processors,
)
from serve.replicas.encoder_server import EncoderServer
from serve.replicas.group_server import GroupServer
from serve.replicas.rerank_server import RerankServer

logger = logging.getLogger(__name__)


def _prepare(gallery: str, threads: int, log_level: str) -> Gallery:
    """What every replica does first: thread counts before the heavy imports, logs, the gallery."""
    check_packages()
    set_threads(threads)
    log_json_lines(store_secrets(), level=getattr(logging, log_level.upper()))
    return open_gallery(Store(gallery))


class GroupReplica:
    """A replica of a group of shards. It loads the newest generation before Serve counts it as running.

    Args:
        next_group: handle of the slot's next deployment; naming it is what makes it part of the application.
    """

    def __init__(self, settings: SlotSettings, group: int, next_group: Any = None) -> None:
        gallery = _prepare(settings.gallery, 1, settings.log_level)
        cache = None if settings.cache is None else Cache(Path(settings.cache))
        server = GroupServer(gallery, group, settings.groups, cache, settings.memory_bytes)
        try:
            one_faiss_thread(server.load, gallery.generations.newest())
        except ReseenError as error:  # the service knows which generation is served, and lets it be loaded
            logger.warning("group %d starts with nothing loaded: %s", group, error)
        self._replica = LocalReplica(f"{group}/{settings.slot}", server, ScanThreads(settings.threads))

    async def scan(self, generation: int, batch: bytes) -> Any:
        return await replied(self._replica.scan(generation, batch))

    async def rows(self, generation: int, image_ids: Any) -> Any:
        return await replied(self._replica.rows(generation, image_ids))

    async def load(self, generation: int, replace: bool, keep: int | None) -> Any:
        return await replied(self._replica.load(generation, replace, keep))

    async def states(self) -> Any:
        return await replied(self._replica.states())

    async def check_health(self) -> None:
        """Answers a real query from every generation; raises where one is wrong, and is started anew."""
        await self._replica.states()


class EncoderReplica:
    """Turns query images into vectors and features."""

    def __init__(self, settings: FrontSettings) -> None:
        # All processors, as in one process: other numbers give other last bits of a network's output.
        gallery = _prepare(settings.gallery, processors(), settings.log_level)
        self._encoder = LocalEncoder(EncoderServer(gallery, _compute(settings)))

    async def encode(self, generation: int, image: Any, labels: Any) -> Any:
        return await replied(self._encoder.encode(generation, image, labels))

    async def warm(self, generation: int) -> Any:
        return await replied(self._encoder.warm(generation))


class RerankerReplica:
    """Reads the gallery's features, vectors and images."""

    def __init__(self, settings: FrontSettings) -> None:
        gallery = _prepare(settings.gallery, processors(), settings.log_level)
        self._reranker = LocalReranker(RerankServer(gallery, _compute(settings)))

    async def look(self, generation: int, settings: Any, query: Any, hits: Any) -> Any:
        return await replied(self._reranker.look(generation, settings, query, hits))

    async def expand(self, generation: int, settings: Any, query: Any, hits: Any) -> Any:
        return await replied(self._reranker.expand(generation, settings, query, hits))

    async def stored(self, generation: int, place: Any, labels: Any) -> Any:
        return await replied(self._reranker.stored(generation, place, labels))

    async def vectors(self, generation: int, places: Any) -> Any:
        return await replied(self._reranker.vectors(generation, places))

    async def compare(self, generation: int, steps: Any, query: Any, place: Any) -> Any:
        return await replied(self._reranker.compare(generation, steps, query, place))


class Ingress:
    """The HTTP application over a service of its own. It is running once a generation is loaded."""

    def __init__(self, settings: FrontSettings, encoder: Any, reranker: Any) -> None:
        self._settings, self._encoder, self._reranker = settings, encoder, reranker
        self._gallery = _prepare(settings.gallery, 1, settings.log_level)
        if settings.keys_file is None:
            _check_nobody_else_comes()

    async def __serve_build_asgi_app__(self) -> Any:
        from serve.cluster.backend import open_ray_backend
        from serve.front import open_front
        from serve.metrics import RayMetrics

        backend = await open_ray_backend(self._settings, self._encoder, self._reranker)
        front = open_front(self._gallery, backend, RayMetrics(), self._settings)
        await front.service.start()
        self._front = front
        return OneRequestId(front.app)

    async def __del__(self) -> None:
        if hasattr(self, "_front"):
            await self._front.close()


def _check_nobody_else_comes() -> None:
    """`BadInput` where Serve listens to other machines: without keys, a Host header is all that they need."""
    from ray.serve.context import _get_global_client

    host = _get_global_client().http_config.host
    if host and not is_loopback(host):
        raise BadInput(
            f"Ray Serve listens on {host}, which lets other machines in, and no file of API keys is named: "
            "make one (reseen keys add) and name it (keys_file, --keys), or start Serve on 127.0.0.1"
        )


class OneRequestId:
    """An ASGI application without its `X-Request-Id` where Serve's proxy adds the same: one is enough."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"x-request-id")

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [each for each in message["headers"] if each != (b"x-request-id", given)]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, answer)


def _compute(settings: FrontSettings) -> Compute:
    return Compute(device=settings.device, threads=QUERY_COMPUTE.threads)
