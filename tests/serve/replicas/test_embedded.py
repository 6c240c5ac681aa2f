"""A server in one process answers what the command answers, however the shards are cut into groups."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from index.cvnet_settings import CvnetSettings
from index.geometry import GeometrySettings
from index.removal import delete
from ingest.errors import BadInput
from ingest.feature_reader import Place
from ingest.outcomes import Outcome, Rejected
from serve.api import SearchRequest
from serve.backend import Comparison, Encoded
from serve.query import ImageQuery
from serve.refusals import Overloaded
from serve.replicas.embedded import LocalReplica, ScanThreads, open_embedded, slot
from serve.replicas.encoder_server import EncoderServer
from serve.replicas.group_server import GroupServer
from serve.replicas.rerank_server import RerankServer
from serve.searcher import Searcher, open_searcher
from serve.service.search_service import SearchService
from tests.pipeline.small import stored_vectors
from tests.scenes import front_between, mapped
from tests.serve.served import Served, compared, searched, served_gallery
from tests.tiny import build_tiny, ingest, job_on, memory_store, vectors

GROUPINGS = (1, 2, 3, 8)


@pytest.fixture(scope="module")
def served() -> Served:
    return served_gallery(memory_store())


@pytest.fixture(scope="module")
def searcher(served: Served) -> Iterator[Searcher]:
    with open_searcher(served.job.gallery, 1) as opened:
        yield opened


@asynccontextmanager
async def service_of(served: Served, **options: Any):  # type: ignore[no-untyped-def]
    async with (
        open_embedded(served.job.gallery, **options) as backend,
        SearchService(served.job.gallery, backend) as service,
    ):
        yield service


def requests(served: Served) -> list[tuple[SearchRequest, ImageQuery | None]]:
    """By image, with and without steps; by id; by vector; few and all; one list and all."""
    ids, known = stored_vectors(served.job.gallery)
    by_image = [
        SearchRequest(top=5),
        SearchRequest(top=24, rerank="none", nprobe=1),
        SearchRequest(top=24, rerank="none"),
        SearchRequest(top=3, rerank="expand,geometry", depth=4),
    ]
    by_number = [
        SearchRequest(top=4, image_ids=[str(ids[5])]),
        SearchRequest(top=24, image_ids=[str(ids[9])], rerank="none", nprobe=4),
        SearchRequest(top=6, image_ids=[str(ids[2])], rerank="geometry,expand"),
        SearchRequest(top=7, vectors=[known[3].tolist()]),
        SearchRequest(top=24, vectors=[known[11].tolist()], nprobe=1),
    ]
    images = [(request, served.query(number)) for request in by_image for number in (0, 7, 16)]
    boxed = ImageQuery(served.query(4).data, (20.0, 30.0, 200.0, 180.0), "boxed")
    return [*images, (SearchRequest(top=6), boxed), *((request, None) for request in by_number)]


@pytest.mark.parametrize("groups", GROUPINGS)
def test_a_service_answers_what_the_command_answers(served: Served, searcher: Searcher, groups: int) -> None:
    async def all_answers() -> list[Any]:
        async with service_of(served, groups=groups) as service:
            found = []
            for request, image in requests(served):
                answer = await service.search(request, [] if image is None else [image], "r")
                assert (answer.partial, answer.coverage, answer.generation) == (False, 1.0, 1)
                found.append(compared(answer.results))
            return found

    for (request, image), found in zip(requests(served), asyncio.run(all_answers()), strict=True):
        assert found == searched(searcher, request, image), request


def test_answers_at_once_are_the_answers_one_by_one(served: Served, searcher: Searcher) -> None:
    async def all_answers() -> list[Any]:
        async with service_of(served, groups=2, replicas=2) as service:
            asked = [
                service.search(request, [] if image is None else [image], "r")
                for request, image in requests(served)
            ]
            return [compared(answer.results) for answer in await asyncio.gather(*asked)]

    for (request, image), found in zip(requests(served), asyncio.run(all_answers()), strict=True):
        assert found == searched(searcher, request, image), request


def test_a_filter_leaves_what_the_answer_without_it_has_of_its_rows(served: Served) -> None:
    async def answers() -> tuple[list[str], list[str]]:
        async with service_of(served, groups=3) as service:
            everything = SearchRequest(top=24, rerank="none", nprobe=4)
            some = SearchRequest(top=3, rerank="none", nprobe=1, where='key prefix "facade"')
            whole, filtered = [
                await service.search(request, [served.query(0)], "r") for request in (everything, some)
            ]
            wanted = [found.key for found in whole.results if found.key.startswith("facade")]
            return wanted[:3], [found.key for found in filtered.results]

    wanted, found = asyncio.run(answers())
    assert found == wanted
    assert len(found) == 3


def test_a_gallery_of_vectors_is_served_too() -> None:
    job = job_on(memory_store())
    source = vectors("source", 30)
    ingest(job, source)
    build_tiny(job)

    async def found() -> list[int]:
        async with (
            open_embedded(job.gallery, groups=2) as backend,
            SearchService(job.gallery, backend) as service,
        ):
            request = SearchRequest(top=30, vectors=[[0.5, 0.5, 0.5, 0.5]])
            return [int(image.image_id) for image in (await service.search(request, [], "r")).results]

    best = np.argsort(-source.read(0, 30).sum(axis=1))
    assert asyncio.run(found()) == [source.ids()[row] for row in best]


# -- threads ----------------------------------------------------------------------------------------------


class Held(GroupServer):
    """Scans that wait until a test lets them go; which began is counted."""

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Semaphore(0)
        self.scanned: list[int] = []

    def scan(self, generation: int, batch: bytes) -> bytes:
        self.scanned.append(generation)
        self.began.release()
        assert self.go.wait(20)
        return batch

    def states(self) -> list[Any]:
        return []


def test_a_scan_that_is_given_up_before_it_began_is_not_done() -> None:
    async def given_up() -> list[int]:
        server, threads = Held(), ScanThreads(1)
        replica = LocalReplica("0/a", server, threads)
        running, waiting, last = [asyncio.create_task(replica.scan(number, b"x")) for number in (1, 2, 3)]
        await asyncio.to_thread(server.began.acquire)
        waiting.cancel()
        assert await replica.states() == []  # checks do not wait for scans
        server.go.set()
        assert (await running, await last) == (b"x", b"x")
        await threads.drain()
        return server.scanned

    assert asyncio.run(given_up()) == [1, 3]


def test_more_scans_than_may_wait_are_refused() -> None:
    async def asked() -> list[Any]:
        server, threads = Held(), ScanThreads(1)
        replica = LocalReplica("0/a", server, threads)
        calls = [asyncio.create_task(replica.scan(number, b"x")) for number in range(100)]
        await asyncio.to_thread(server.began.acquire)
        server.go.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        await threads.drain()
        return done

    done = asyncio.run(asked())
    refused = [each for each in done if isinstance(each, Overloaded)]
    assert 0 < len(refused) < 100
    assert done[0] == b"x"


def test_there_is_no_backend_of_nothing() -> None:
    async def opened() -> None:
        async with open_embedded(job_on(memory_store()).gallery, groups=0):
            pass

    with pytest.raises(BadInput):
        asyncio.run(opened())


def test_slots_have_letters() -> None:
    assert [slot(number) for number in (0, 1, 25, 26, 27, 701, 702)] == [
        *("a", "b", "z", "aa", "ab", "zz", "aaa")
    ]


# -- encoder and reranker ---------------------------------------------------------------------------------


def test_a_generation_that_keeps_the_models_keeps_the_encoder(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serve.replicas.encoder_server

    opened = []
    honest = serve.replicas.encoder_server.open_query_encoder

    def counted(*arguments: Any) -> Any:
        opened.append(arguments[2])
        return honest(*arguments)

    monkeypatch.setattr(serve.replicas.encoder_server, "open_query_encoder", counted)
    own = served_gallery(memory_store())
    delete(own.job, [int(stored_vectors(own.job.gallery)[0][0])])
    server = EncoderServer(own.job.gallery)
    try:
        server.warm(1)
        first, second = (server.encode(number, own.query(0), {"local"}) for number in (1, 2))
        assert isinstance(first, Encoded) and isinstance(second, Encoded)
        assert np.array_equal(first.query.vector, second.query.vector)
        assert set(first.seconds) == {"decode", "encode"}
        assert len(opened) == 1
    finally:
        server.close()
    with pytest.raises(BadInput):
        server.encode(1, own.query(0), ())


def test_a_query_that_is_no_image_is_rejected_with_its_reason(served: Served) -> None:
    server = EncoderServer(served.job.gallery)
    try:
        found = server.encode(1, ImageQuery(b"nothing"), ())
        assert isinstance(found, Rejected)
        assert found.reason == Outcome.UNKNOWN_FORMAT
    finally:
        server.close()


def test_a_comparison_shows_how_one_view_maps_to_another(served: Served) -> None:
    one, other = "facade-000000/view-00.bmp", "facade-000000/view-01.bmp"
    encoder, reranker = EncoderServer(served.job.gallery), RerankServer(served.job.gallery)
    try:
        encoded = encoder.encode(1, ImageQuery(served.files[one]), {"local"})
        assert isinstance(encoded, Encoded)
        found = reranker.compare(1, [GeometrySettings()], encoded.query, place_of(served, other))
        assert isinstance(found, Comparison)
        (evidence,) = found.evidence
        assert found.homography is not None and evidence.points is not None
        here, there = evidence.points
        assert len(here) >= 8
        moved = mapped(found.homography, here)
        assert np.linalg.norm(moved - there, axis=1).max() < 6
        assert np.median(np.linalg.norm(moved - mapped(front_between(one, other), here), axis=1)) < 2
        assert (found.width, found.height) == (180, 240)
        assert found.heat is None
        again = reranker.stored(1, place_of(served, one), {"local"})
        assert not isinstance(again, Rejected)
        assert found.similarity == pytest.approx(
            float(again.vector @ reranker.vectors(1, [place_of(served, other)])[0]), abs=1e-5
        )
        with pytest.raises(BadInput, match="cvnet"):
            reranker.compare(1, [CvnetSettings()], encoded.query, place_of(served, other))
    finally:
        encoder.close()
        reranker.close()


def place_of(served: Served, key: str) -> Place:
    with open_searcher(served.job.gallery, 1) as searcher:
        for number in stored_vectors(served.job.gallery)[0].tolist():
            if searcher.image(number).key == key:
                return searcher.opened.locate(number)
    raise AssertionError(key)
