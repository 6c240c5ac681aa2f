"""The applications on Ray Serve: a slot with one replica of each group of shards, and the front before them.

Deployments, which Serve starts, watches and restarts: `ingress` (the HTTP application, each replica with a
service of its own), `encoder`, `reranker`, and in each slot's application `group-0`, `group-1`, ...

Measured on 2 cores, one replica of a group under load: killed, it is back after 3 s, and calls wait for it
in the handle (a service that has a second replica asks that one, after `hedge_most_s` at the latest); stopped
(SIGSTOP), it is replaced after 10 s. In a rolling redeploy of two slots and two ingresses none of 976
searches failed or was partial.
"""

from typing import Any

from ray import serve as ray_serve

from serve.cluster.deployments import EncoderReplica, GroupReplica, Ingress, RerankerReplica
from serve.cluster.settings import FrontSettings, SlotSettings, group_deployment

# A replica that stands still is noticed after some 6 s: three checks in a row that take too long.
_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 2.0}
_SURGE = {"max_surge_percent": 100}  # on a new deployment the new replica is there before the old one goes
_MOST_SCANS = 256  # messages at once; a service sends few, and gathers the rest
_MOST_QUEUED = 64  # calls that one caller holds back while a replica is away
_MOST_IMAGES = 64
_MOST_REQUESTS = 512  # of an ingress; its service admits and refuses long before


def slot(settings: SlotSettings) -> ray_serve.Application:
    """The application of one slot; `import_path: serve.cluster.app:slot`."""
    deployment = ray_serve.deployment(
        max_ongoing_requests=_MOST_SCANS,
        max_queued_requests=_MOST_QUEUED,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10.0,
        ray_actor_options=_place(settings),
        max_surge_percent=100 if settings.surge else 0,
        **_HEALTH,
    )(GroupReplica)
    bound = None
    for group in reversed(range(settings.groups)):
        bound = deployment.options(name=group_deployment(group)).bind(settings, group, bound)
    return bound


def _place(settings: SlotSettings) -> dict[str, Any]:
    """What a replica of a group takes of a node, and which nodes may have it."""
    place: dict[str, Any] = {"num_cpus": settings.cpus}
    if settings.node_memory_bytes is not None:
        place["memory"] = settings.node_memory_bytes
    if settings.node_labels:
        place["label_selector"] = dict(settings.node_labels)
    return place


def application(settings: FrontSettings) -> ray_serve.Application:
    """The application of the front; `import_path: serve.cluster.app:application`."""
    encoder = _images("encoder", settings.encoders, settings.encoder_cpus, settings.encoder_gpus)
    reranker = _images("reranker", settings.rerankers, settings.reranker_cpus, settings.reranker_gpus)
    ingress = ray_serve.deployment(
        name="ingress",
        num_replicas=settings.ingresses,
        max_ongoing_requests=_MOST_REQUESTS,
        max_queued_requests=_MOST_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": 1.0},
        graceful_shutdown_timeout_s=30.0,  # as in one process
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **_HEALTH,
        **_SURGE,
    )(ray_serve.ingress()(Ingress))
    return ingress.bind(
        settings, encoder(EncoderReplica).bind(settings), reranker(RerankerReplica).bind(settings)
    )


def _images(name: str, replicas: int, cpus: float, gpus: float) -> Any:
    """A deployment that works on images, still without its class."""
    return ray_serve.deployment(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=_MOST_IMAGES,
        max_queued_requests=_MOST_QUEUED,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        **_HEALTH,
        **_SURGE,
    )
