"""Ray Serve answers what the command answers; a replica that dies costs no answer, and comes back."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.ray_server import RayServer
from ingest.errors import BadInput, Unavailable
from ingest.records import sha256
from serve.api import SearchRequest, SearchResponse
from serve.cluster.backend import RayReplica
from serve.query import ImageQuery
from serve.searcher import open_searcher
from tests.pipeline.small import stored_vectors
from tests.serve.cluster.traffic import Traffic
from tests.serve.served import Served, compared, searched, served_gallery

_BACK_S = 60  # for a replica to be back, on a busy machine


@dataclass(frozen=True)
class Cluster:
    """A server on Ray: two groups, two replicas of each, one ingress."""

    served: Served
    url: str
    server: Any

    def search(self, request: SearchRequest, image: ImageQuery | None = None) -> SearchResponse:
        body = request.model_dump(exclude_unset=True)
        if image is None:
            reply = self.post("/v1/search", json=body)
        else:
            files = {"image": (Path(image.name).name, image.data), "request": (None, json.dumps(body))}
            reply = self.post("/v1/search/upload", files=files)
        assert reply.status_code == 200, reply.text
        return SearchResponse.model_validate(reply.json())

    def post(self, path: str, **what: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30, **what)

    def replicas(self, deployment: str, application: str) -> list[int]:
        """Process ids of a deployment's replicas in the cluster that this process started."""
        parents, titles = {}, {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with suppress(OSError):  # it is gone
                    stat = (process / "stat").read_text().rpartition(")")[2].split()
                    parents[int(process.name)] = int(stat[1])
                    titles[int(process.name)] = (process / "cmdline").read_text()
        wanted = f"ray::ServeReplica:{application}:{deployment}"
        return [pid for pid, title in titles.items() if title.startswith(wanted) and _descends(pid, parents)]


def _descends(pid: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()


@pytest.fixture(scope="module")
def cluster(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from deploy.ray_server import ray_server
    from deploy.serve_ray_job import deploy, start_serve, take_down
    from serve.front import DoorSettings

    folder = tmp_path_factory.mktemp("ray-serve")
    served = served_gallery(str(folder / "gallery"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ray_server(
        str(folder / "gallery"),
        DoorSettings(uploads=str(folder / "uploads")),
        host="127.0.0.1",
        port=port,
        address=None,
        groups=2,
        replicas=2,
        cache=folder / "cache",
        memory_bytes=None,
        cpus=0.0,
        log_level="warning",
        fronts=(1, 1, 1),
    )
    started = start_serve(server)
    try:
        deploy(server)
        yield Cluster(served, f"http://127.0.0.1:{port}", server)
    finally:
        take_down(server, started)


def by_vector(served: Served, **options: Any) -> SearchRequest:
    return SearchRequest(vectors=[stored_vectors(served.job.gallery)[1][3].tolist()], top=24, **options)


@pytest.mark.ray
def test_answers_over_http_are_those_of_the_command(cluster: Cluster) -> None:
    served = cluster.served
    ids, _ = stored_vectors(served.job.gallery)
    asked = [
        (SearchRequest(top=5), served.query(7)),
        (SearchRequest(top=24, rerank="none", nprobe=1), served.query(0)),
        (SearchRequest(top=4, rerank="expand,geometry"), served.query(16)),
        (SearchRequest(top=5, image_ids=[str(ids[5])]), None),
        (by_vector(served), None),
    ]
    with open_searcher(served.job.gallery) as searcher:
        for request, image in asked:
            answer = cluster.search(request, image)
            assert (answer.partial, answer.coverage) == (False, 1.0)
            assert compared(answer.results) == searched(searcher, request, image), request


@pytest.mark.ray
def test_errors_far_away_are_the_problems_of_here(cluster: Cluster) -> None:
    short = cluster.post("/v1/search", json={"vectors": [[1.0, 2.0]]})
    assert (short.status_code, short.json()["code"]) in [(400, "bad-request"), (422, "invalid")]
    missing = cluster.post("/v1/search", json={"image_ids": ["1"]})
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
    odd = cluster.post("/v1/search/upload", files={"image": ("odd.jpg", b"odd")})
    assert (odd.status_code, odd.json()["code"]) == (422, "image-rejected")
    unknown = cluster.post("/v1/search", json={"uploads": [sha256(b"never")]})
    assert unknown.status_code == 404


@pytest.mark.ray
def test_a_replica_that_is_killed_costs_no_answer_and_comes_back(cluster: Cluster) -> None:
    (before,) = cluster.replicas("group-0", "reseen-a")
    complete = len(cluster.search(by_vector(cluster.served)).results)
    with Traffic(cluster.url, by_vector(cluster.served, timeout_ms=20_000)) as traffic:
        time.sleep(0.5)
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + _BACK_S
        while cluster.replicas("group-0", "reseen-a") in ([], [before]) and time.monotonic() < deadline:
            time.sleep(0.25)
    assert traffic.failures == []
    assert traffic.answers
    assert {len(answer.results) for answer in traffic.answers} == {complete}
    assert not any(answer.partial for answer in traffic.answers)
    (after,) = cluster.replicas("group-0", "reseen-a")
    assert after != before


@pytest.mark.ray
def test_an_answer_has_one_request_id(cluster: Cluster) -> None:
    reply = httpx.get(f"{cluster.url}/livez", headers={"X-Request-Id": "mine"})
    assert reply.headers.get_list("x-request-id") == ["mine"]
    odd = httpx.get(f"{cluster.url}/livez", headers={"X-Request-Id": "not fit to be written down"})
    assert odd.headers.get_list("x-request-id")[0] != "not fit to be written down"


@pytest.mark.ray
def test_a_second_server_does_not_take_the_place_of_the_first(cluster: Cluster) -> None:
    from deploy.serve_ray_job import deploy, start_serve

    with pytest.raises(BadInput, match="serves reseen-a, reseen-b, reseen already"):
        start_serve(cluster.server)
    other = _named(cluster.server, "other")
    with pytest.raises(BadInput, match=f"listens on 127.0.0.1:{cluster.server.port}, not on 127.0.0.1:1"):
        start_serve(replace(other, port=1))
    start_serve(other)
    with pytest.raises(Unavailable, match="Prefix / is being used"):
        deploy(other)
    assert not cluster.search(by_vector(cluster.served)).partial


def _named(server: RayServer, name: str) -> RayServer:
    slots = tuple(each.model_copy(update={"name": name}) for each in server.slots)
    return replace(server, slots=slots, front=server.front.model_copy(update={"name": name}))


class Patient:
    """A deployment that tells what became of its work; two calls at once, and two that wait."""

    def __init__(self) -> None:
        self._told: list[str] = []

    async def work(self) -> None:
        self._told.append("begun")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self._told.append("cancelled")
            raise

    async def told(self) -> list[str]:
        return self._told


@pytest.mark.ray
def test_a_call_that_is_given_up_ends_in_the_replica_and_queues_are_bounded(cluster: Cluster) -> None:
    import ray.cloudpickle
    from ray import serve as ray_serve

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    deployment = ray_serve.deployment(
        max_ongoing_requests=2, max_queued_requests=2, ray_actor_options={"num_cpus": 0}
    )(Patient)
    handle = ray_serve.run(deployment.bind(), name="patient", route_prefix=None)
    try:
        asyncio.run(_given_up(RayReplica("patient", handle)))
    finally:
        ray_serve.delete("patient")


async def _given_up(replica: RayReplica) -> None:
    async def until(told: list[str]) -> None:
        while await replica.call("told") != told:
            await asyncio.sleep(0.05)

    async with asyncio.timeout(_BACK_S):
        call = asyncio.create_task(replica.call("work"))
        await until(["begun"])
        call.cancel()
        await until(["begun", "cancelled"])

        calls = [asyncio.create_task(replica.call("work")) for _ in range(9)]
        for ended in islice(asyncio.as_completed(calls), 5):  # Serve holds back two, two may work
            with pytest.raises(Unavailable):
                await ended
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
