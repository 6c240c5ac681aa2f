"""The applications on Ray Serve: a slot with one replica of each group of shards, and the front before them.

Deployments, which Serve starts, watches and restarts: `ingress` (the HTTP application, each replica with a
service of its own), `encoder`, `reranker`, and in each slot's application `group-0`, `group-1`, ... All
methods are coroutines over threads, so that cancelling and health checks work while shards are scanned.

Measured on 2 cores, one replica of a group under load: killed, it is back after 3 s, and calls wait for it
in the handle (a service that has a second replica asks that one, after `hedge_most_s` at the latest); stopped
(SIGSTOP), it is replaced after 10 s. In a rolling redeploy of two slots and two ingresses none of 976
searches failed or was partial.
"""

import logging
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from index.cache import Cache
from ingest.compute import Compute
from ingest.errors import ReseenError
from ingest.gallery import Gallery, open_gallery
from ingest.packages import check_packages
from ingest.store import Store
from ingest.threads import set_threads
from serve.cluster.replies import replied
from serve.cluster.settings import FrontSettings, SlotSettings, group_deployment
from serve.logs import log_json_lines, store_secrets
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

# A replica that stands still is noticed after some 6 s: three checks in a row that take too long.
_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 2.0}
_SURGE = {"max_surge_percent": 100}  # on a new deployment the new replica is there before the old one goes
_MOST_SCANS = 256  # messages at once; a service sends few, and gathers the rest
_MOST_QUEUED = 64  # calls that one caller holds back while a replica is away
_MOST_IMAGES = 64
_MOST_REQUESTS = 512  # of an ingress; its service admits and refuses long before


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

    async def load(self, generation: int, replace: bool) -> Any:
        return await replied(self._replica.load(generation, replace))

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

    async def __serve_build_asgi_app__(self) -> Any:
        from serve.cluster.backend import open_ray_backend
        from serve.front import open_front
        from serve.metrics import RayMetrics

        backend = await open_ray_backend(self._settings, self._encoder, self._reranker)
        front = open_front(self._gallery, backend, RayMetrics(), self._settings)
        await front.service.start()
        self._front = front
        return front.app

    async def __del__(self) -> None:
        if hasattr(self, "_front"):
            await self._front.close()


def _compute(settings: FrontSettings) -> Compute:
    return Compute(device=settings.device, threads=QUERY_COMPUTE.threads)


def slot(settings: SlotSettings) -> ray_serve.Application:
    """The application of one slot; `import_path: serve.cluster.app:slot`."""
    deployment = ray_serve.deployment(
        max_ongoing_requests=_MOST_SCANS,
        max_queued_requests=_MOST_QUEUED,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10.0,
        ray_actor_options={"num_cpus": settings.cpus},
        max_surge_percent=100 if settings.surge else 0,
        **_HEALTH,
    )(GroupReplica)
    bound = None
    for group in reversed(range(settings.groups)):
        bound = deployment.options(name=group_deployment(group)).bind(settings, group, bound)
    return bound


def application(settings: FrontSettings) -> ray_serve.Application:
    """The application of the front; `import_path: serve.cluster.app:application`."""
    encoder = ray_serve.deployment(
        name="encoder",
        num_replicas=settings.encoders,
        max_ongoing_requests=_MOST_IMAGES,
        max_queued_requests=_MOST_QUEUED,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": settings.encoder_cpus, "num_gpus": settings.encoder_gpus},
        **_HEALTH,
        **_SURGE,
    )(EncoderReplica)
    reranker = ray_serve.deployment(
        name="reranker",
        num_replicas=settings.rerankers,
        max_ongoing_requests=_MOST_IMAGES,
        max_queued_requests=_MOST_QUEUED,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": settings.reranker_cpus, "num_gpus": settings.reranker_gpus},
        **_HEALTH,
        **_SURGE,
    )(RerankerReplica)
    ingress = ray_serve.deployment(
        name="ingress",
        num_replicas=settings.ingresses,
        max_ongoing_requests=_MOST_REQUESTS,
        max_queued_requests=_MOST_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": 1.0},
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **_HEALTH,
        **_SURGE,
    )(ray_serve.ingress()(Ingress))
    return ingress.bind(settings, encoder.bind(settings), reranker.bind(settings))
