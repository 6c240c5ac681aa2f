"""Serving on Ray: Ray is started or joined, and the applications are deployed one after the other.

A slot has one replica of each group of shards. Slots are deployed one at a time, so that while one starts
anew (`roll`) the others answer; the front comes last.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.ray_environment import RAY_SERVE_ENVIRONMENT, tune_ray_serve
from deploy.terminal import stop_on_sigterm
from ingest.errors import BadInput, OverBudget, Unavailable

if TYPE_CHECKING:
    from ray.serve import RunTarget

    from deploy.terminal import Output
    from serve.cluster.settings import FrontSettings, LogLevel, SlotSettings
    from serve.front import DoorSettings

_SETTLE_S = 5.0  # after a slot is back, until every service has noticed


@dataclass(frozen=True)
class RayServer:
    """What `reseen serve --ray` is asked for. `address`: of a running cluster; None: Ray is started here."""

    slots: "tuple[SlotSettings, ...]"
    front: "FrontSettings"
    host: str
    port: int
    address: str | None


def ray_server(
    gallery: str,
    door: "DoorSettings",
    *,
    host: str,
    port: int,
    address: str | None,
    groups: int,
    replicas: int,
    cache: Path,
    memory_bytes: int | None,
    cpus: float,
    log_level: "LogLevel",
    fronts: tuple[int, int, int],
) -> RayServer:
    """A server whose replicas all have so many processors set aside.

    Args:
        replicas: of each group: so many slots.
        fronts: how many ingresses, encoders and rerankers.

    Raises:
        NotFound: there is no such gallery, or it has no generation: Ray need not be started to learn that.
    """
    from index.generation import read_generation
    from ingest.gallery import open_gallery
    from ingest.store import Store
    from serve.cluster.settings import FrontSettings, SlotSettings
    from serve.replicas.embedded import slot

    store = Store(gallery)
    read_generation(open_gallery(store))
    letters = tuple(slot(number) for number in range(replicas))
    ingresses, encoders, rerankers = fronts
    front = FrontSettings(
        gallery=store.url,
        groups=groups,
        log_level=log_level,
        slots=letters,
        ingresses=ingresses,
        encoders=encoders,
        rerankers=rerankers,
        ingress_cpus=cpus,
        encoder_cpus=cpus,
        reranker_cpus=cpus,
        **{name: getattr(door, name) for name in type(door).model_fields},  # it has a field `keys`
    )
    slots = tuple(
        SlotSettings(
            gallery=store.url,
            groups=groups,
            log_level=log_level,
            slot=letter,
            cache=str(cache),
            memory_bytes=memory_bytes,
            cpus=cpus,
            surge=replicas == 1,
        )
        for letter in letters
    )
    return RayServer(slots, front, host, port, address)


def serve_on_ray(server: RayServer, output: "Output") -> None:
    """Deploys everything, and serves until SIGTERM or Ctrl-C; then takes down what it deployed or started.

    Raises:
        Unavailable: Ray cannot be started or joined, or a deployment does not start.
        OverBudget: the cluster has too few processors.
    """
    with _ray(server.address):
        _check_room(server)
        try:
            deploy(server)
            output.say(f"Ray is at {_cluster_address()}: set RAY_ADDRESS to it for --roll")
            print(f"serving http://{server.host}:{server.port}/", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            output.say("stopping")
        finally:
            take_down(server)


def deploy(server: RayServer) -> None:
    """Starts Serve on the cluster that this process has joined, and deploys everything at once.

    Raises:
        Unavailable: an application does not start.
    """
    from ray import serve as ray_serve

    ray_serve.start(
        http_options={"host": server.host, "port": server.port},
        controller_options={"runtime_env": {"env_vars": RAY_SERVE_ENVIRONMENT}},
    )
    _deploy(_applications(server))


def take_down(server: RayServer) -> None:
    """Deletes the applications that are there, the front first; it answers what it has begun."""
    from ray import serve as ray_serve

    there = ray_serve.status().applications
    for application in reversed(_applications(server)):
        if application.name in there:
            ray_serve.delete(application.name)


def roll(server: RayServer, output: "Output", settle_s: float = _SETTLE_S) -> None:
    """Deploys anew on a cluster that serves: slot by slot, then the front; requests go on meanwhile.

    It takes at least two slots; with one, start its new replicas beside the old (`surge`).

    Args:
        settle_s: waited after each slot, until the services have noticed that it is back.

    Raises:
        BadInput: no cluster is named, or nothing of that name is served there.
        Unavailable: the cluster cannot be joined, or a deployment does not start: the rest stays as it is.
    """
    if server.address is None:
        raise BadInput(
            "--roll joins the cluster that RAY_ADDRESS names: set it to what `reseen serve --ray` said when "
            "it started, and RAY_AUTH_MODE=token unless the cluster has none"
        )
    with _ray(server.address):
        from ray import serve as ray_serve

        applications = _applications(server)
        served = ray_serve.status().applications
        if missing := [each.name for each in applications if each.name not in served]:
            raise BadInput(
                f"the cluster serves {', '.join(served) or 'nothing'}, and not {missing[0]}: give the "
                "options that it was started with, or start it (reseen serve --ray without --roll)"
            )
        for application in applications:
            output.say(f"deploying {application.name} anew")
            _deploy([application])
            if application.route_prefix is None:
                time.sleep(settle_s)


def _applications(server: RayServer) -> "list[RunTarget]":
    """The slots, then the front: in the order in which they are deployed anew."""
    from ray.serve import RunTarget

    from serve.cluster import app
    from serve.cluster.settings import slot_application

    name = server.front.name
    slots = [
        RunTarget(app.slot(each), slot_application(name, each.slot), route_prefix=None)
        for each in server.slots
    ]
    return [*slots, RunTarget(app.application(server.front), name, route_prefix="/")]


def _deploy(applications: "Sequence[RunTarget]") -> None:
    """Waits until they run."""
    from ray import serve as ray_serve

    try:
        ray_serve.run_many(applications)
    except RuntimeError as error:  # what a constructor raised, at length
        text = " ".join(str(error).split())
        raise Unavailable(f"a server on Ray does not start: {text[-400:]}; see Ray Serve's logs") from error


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Ray, started here or joined."""
    tune_ray_serve()
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray does not start here"
        raise Unavailable(f"{what} ({error}); see /tmp/ray/session_latest/logs") from error
    stop_on_sigterm()  # Ray has put a handler of its own
    try:
        yield
    finally:
        if address is None:
            _shut_serve_down()
        ray.shutdown()


def _cluster_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _shut_serve_down() -> None:
    from ray import serve as ray_serve

    ray_serve.shutdown()


def _check_room(server: RayServer) -> None:
    """`OverBudget` where the cluster can never hold all replicas: Serve would wait for ever."""
    import ray

    front = server.front
    needed = (
        front.groups * sum(each.cpus for each in server.slots)
        + front.ingresses * front.ingress_cpus
        + front.encoders * front.encoder_cpus
        + front.rerankers * front.reranker_cpus
    )
    there = ray.cluster_resources().get("CPU", 0.0)
    if needed > there:
        raise OverBudget(
            f"the replicas want {needed:g} processors set aside and the cluster has {there:g}: ask for fewer "
            "groups or replicas, or set fewer aside for each (--cpus)"
        )
