"""Ray Serve answers what the command answers; a replica that dies costs no answer, and comes back."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.errors import BadInput, NotFound, Unavailable
from ingest.records import sha256
from serve.api import SearchRequest, SearchResponse
from serve.cluster.replies import Failed, replied
from serve.query import ImageQuery
from serve.refusals import Overloaded
from serve.searcher import open_searcher
from tests.pipeline.small import stored_vectors
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
    from deploy.serve_ray_job import deploy, ray_server, take_down
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
    deploy(server)
    try:
        yield Cluster(served, f"http://127.0.0.1:{port}", server)
    finally:
        from ray import serve as ray_serve

        take_down(server)
        ray_serve.shutdown()


@dataclass
class Traffic:
    """Searches by vector one after the other, in a thread, until stopped; what they gave."""

    cluster: Cluster
    request: SearchRequest
    answers: list[SearchResponse] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        body = self.request.model_dump(exclude_unset=True)
        with httpx.Client(timeout=30) as client:
            while not self.stop.is_set():
                reply = client.post(f"{self.cluster.url}/v1/search", json=body)
                if reply.status_code == 200:
                    self.answers.append(SearchResponse.model_validate(reply.json()))
                else:
                    self.failures.append(reply.text)
                time.sleep(0.02)

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()


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
    with Traffic(cluster, by_vector(cluster.served, timeout_ms=20_000)) as traffic:
        time.sleep(0.5)
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + _BACK_S
        while cluster.replicas("group-0", "reseen-a") in ([], [before]) and time.monotonic() < deadline:
            time.sleep(0.25)
    assert traffic.failures == []
    assert len(traffic.answers) > 20
    assert {len(answer.results) for answer in traffic.answers} == {complete}
    assert not any(answer.partial for answer in traffic.answers)
    (after,) = cluster.replicas("group-0", "reseen-a")
    assert after != before


@pytest.mark.ray
def test_errors_travel_by_class_and_message() -> None:
    import asyncio

    async def failing(error: Exception) -> None:
        raise error

    for error in (BadInput("a"), NotFound("b"), Unavailable("c"), Overloaded(2.5)):
        reply = asyncio.run(replied(failing(error)))
        assert isinstance(reply, Failed)
        arrived = reply.error()
        assert (type(arrived), str(arrived)) == (type(error), str(error))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(replied(failing(ZeroDivisionError())))
