"""What a server finds on a cluster that it joins, and what it leaves there."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deploy import serve_ray_job
from deploy.ray_server import RayServer
from deploy.serve_ray_job import serve_on_ray, start_serve, take_down
from deploy.terminal import Output
from ingest.errors import OverBudget, Unavailable
from serve.cluster.settings import FrontSettings, SlotSettings
from tests.serving.ray_head import free_port


@pytest.fixture
def server(ray_cluster: None) -> Iterator[RayServer]:
    """Wants one of the cluster's two processors."""
    from ray import serve as ray_serve

    slot = SlotSettings(gallery="gallery", slot="a", cpus=0.25)
    quarters = dict.fromkeys(("ingress_cpus", "encoder_cpus", "reranker_cpus"), 0.25)
    front = FrontSettings(gallery="gallery", ingresses=1, **quarters)
    yield RayServer((slot,), front, "127.0.0.1", free_port(), "joined")
    ray_serve.shutdown()


@pytest.mark.ray
def test_processors_that_others_have_are_no_room(server: RayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    class EnoughRoom(Exception):
        pass

    def start(_: RayServer) -> None:
        raise EnoughRoom

    monkeypatch.setattr(serve_ray_job, "start_serve", start)
    with pytest.raises(EnoughRoom):
        serve_on_ray(server, Output(False, True))
    others = placement_group([{"CPU": 1.5}])
    ray.get(others.ready())
    try:
        with pytest.raises(OverBudget, match=r"want 1 processors set aside and the cluster has 0\.5 free"):
            serve_on_ray(server, Output(False, True))
    finally:
        remove_placement_group(others)


@pytest.mark.ray
def test_serve_that_was_started_ends_with_its_server(server: RayServer) -> None:
    for port in (server.port, free_port()):
        started = start_serve(replace(server, port=port))
        assert started and serve_runs()
        take_down(server, started)
        assert not serve_runs()


@pytest.mark.ray
def test_a_port_that_is_taken_is_told_and_nothing_is_left(server: RayServer) -> None:
    with socket.create_server((server.host, server.port)):
        with pytest.raises(Unavailable, match=rf"listen on 127\.0\.0\.1:{server.port} \(.*--port"):
            start_serve(server)
        assert not serve_runs()


@pytest.mark.ray
def test_serve_stays_where_it_was_found_or_serves_others(server: RayServer) -> None:
    from ray import serve as ray_serve

    class Other:
        """What somebody else serves."""

    assert start_serve(server)
    found = start_serve(server)
    take_down(server, found)
    assert serve_runs()

    other = ray_serve.deployment(ray_actor_options={"num_cpus": 0})(Other)
    ray_serve.run(other.bind(), name="other", route_prefix=None)
    take_down(server, True)
    assert list(ray_serve.status().applications) == ["other"]


def serve_runs() -> bool:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None
