"""Serving on Ray: Ray is started or joined, and the applications are deployed one after the other.

A slot has one replica of each group of shards. Slots are deployed one at a time, so that while one starts
anew (`roll`) the others answer; the front comes last.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.ray_environment import RAY_SERVE_ENVIRONMENT, REQUEST_TIMEOUT_S, tune_ray_serve
from deploy.ray_server import RayServer
from deploy.terminal import stop_on_sigterm
from ingest.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from ray.serve import RunTarget

    from deploy.terminal import Output

_SETTLE_S = 5.0  # after a slot is back, until every service has noticed


def serve_on_ray(server: RayServer, output: "Output") -> None:
    """Deploys everything, and serves until SIGTERM or Ctrl-C; then takes down what it deployed or started.

    Raises:
        BadInput: something else is served there under these names, or at another address.
        Unavailable: Ray cannot be started or joined, or a deployment does not start.
        OverBudget: the cluster has too few processors left.
    """
    with _ray(server.address):
        import ray

        server.check_room(ray.available_resources().get("CPU", 0.0))
        started = start_serve(server)
        try:
            deploy(server)
            output.say(f"Ray is at {_cluster_address()}: set RAY_ADDRESS to it for --roll")
            print(f"serving http://{server.host}:{server.port}/", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            output.say("stopping")
        finally:
            take_down(server, started)


def start_serve(server: RayServer) -> bool:
    """Starts Serve on the cluster that this process has joined, or finds it there and free for this server.

    Returns:
        Whether it was started: nobody else's, and to be shut down at the end.

    Raises:
        BadInput: it serves applications of these names already, or at another address.
        Unavailable: it does not start, for one because the port is taken.
    """
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client

    served = ray_serve.status().applications
    if taken := [each.name for each in server.applications() if each.name in served]:
        raise BadInput(
            f"the cluster serves {', '.join(taken)} already: give --roll to start that server anew, with "
            "other options, or end it first (its command; `serve shutdown` where that is gone)"
        )
    found = _get_global_client(raise_if_no_controller_running=False) is not None
    try:
        ray_serve.start(
            http_options={"host": server.host, "port": server.port, "request_timeout_s": REQUEST_TIMEOUT_S},
            controller_options={"runtime_env": {"env_vars": RAY_SERVE_ENVIRONMENT}},
        )
    except (RuntimeError, TimeoutError) as error:  # what a proxy said, at length
        if not found:
            ray_serve.shutdown()
        told = str(error).strip().rpartition("\n")[2]
        raise Unavailable(
            f"Ray Serve does not listen on {server.host}:{server.port} ({told}): give another --port where "
            "it is taken; see Ray Serve's logs"
        ) from error
    there = _get_global_client().http_config
    if (there.host, there.port) != (server.host, server.port):
        raise BadInput(
            f"Serve runs on the cluster and listens on {there.host}:{there.port}, not on "
            f"{server.host}:{server.port}: give --host {there.host} --port {there.port}, or end it first"
        )
    return not found


def deploy(server: RayServer) -> None:
    """Deploys everything at once.

    Raises:
        Unavailable: an application does not start.
    """
    _deploy(server.applications())


def take_down(server: RayServer, started: bool) -> None:
    """Deletes the applications that are there, the front first; it answers what it has begun.

    Args:
        started: what `start_serve` returned; Serve itself ends too, unless it has come to serve others.
    """
    from ray import serve as ray_serve

    there = ray_serve.status().applications
    for application in reversed(server.applications()):
        if application.name in there:
            ray_serve.delete(application.name)
    if started and not ray_serve.status().applications:
        ray_serve.shutdown()


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

        applications = server.applications()
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


def _deploy(applications: "Sequence[RunTarget]") -> None:
    """Waits until they run."""
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    try:
        ray_serve.run_many(applications)
    except (RuntimeError, RayServeException) as error:  # what a constructor or Serve said, at length
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
        ray.shutdown()


def _cluster_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)
