"""Several writers at once: everybody's images are in the end result, whoever wins which race."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from index.build import BuildOptions
from index.collect import collect
from index.generation import read_generation
from index.publish import Proposal, publish
from index.removal import delete, rollback
from ingest.errors import Conflict
from ingest.store import Store
from tests.tiny import (
    RECIPE,
    TinyVectors,
    answers,
    build_tiny,
    expected,
    ingest,
    job_on,
    memory_store,
    purge_tiny,
    vectors,
)

GALLERIES, ROUNDS = 20, 10


def _together(*works: Callable[[], object]) -> list[BaseException]:
    """Runs functions at the same moment in threads; returns what they raised."""
    barrier = threading.Barrier(len(works))
    raised: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("number", range(GALLERIES))
def test_two_publishers_at_once_two_hundred_times(number: int, tmp_path: Path) -> None:
    """In memory, and every fourth gallery on a disk (tests/pipeline/test_s3.py: on S3)."""
    store = memory_store() if number % 4 else Store(str(tmp_path))
    job = job_on(store)
    first = vectors("first", 3, seed=number)
    ingest(job, first)
    build_tiny(job)
    wanted = expected(first)
    for turn in range(ROUNDS):
        sources = [vectors(f"{side}{turn}", 2, seed=number) for side in "ab"]
        assert _together(*(_publisher(store.url, source) for source in sources)) == []
        for source in sources:
            wanted |= expected(source)
        assert answers(job.gallery) == wanted, f"turn {turn}"


def _publisher(url: str, source: TinyVectors) -> Callable[[], None]:
    def work() -> None:
        job = job_on(Store(url))
        ingest(job, source)
        build_tiny(job)

    return work


def test_first_builds_at_once_share_one_set_of_models() -> None:
    for _ in range(10):
        store = memory_store()
        sources = [vectors(name, 3) for name in "abc"]

        assert _together(*(_publisher(store.url, source) for source in sources)) == []
        wanted = expected(sources[0]) | expected(sources[1]) | expected(sources[2])
        assert answers(job_on(store).gallery) == wanted


def test_a_publisher_and_everything_else_at_once() -> None:
    """Builds, takedowns, collections and purges together: images are there, takedowns hold."""
    for number in range(15):
        store = memory_store()
        a, b = vectors("a", 4), vectors("b", 4)
        job = job_on(store)
        ingest(job, a)
        build_tiny(job)
        victim = a.ids()[number % 4]

        def add(url: str = store.url, source: object = b) -> None:
            mine = job_on(Store(url))
            ingest(mine, source)  # type: ignore[arg-type]
            build_tiny(mine)

        def take_down(url: str = store.url, image: int = victim) -> None:
            mine = job_on(Store(url))
            delete(mine, [image])
            purge_tiny(mine)

        def tidy(url: str = store.url) -> None:
            collect(job_on(Store(url)).gallery, keep=1, grace_s=0)

        assert _together(add, take_down, tidy) == []
        wanted = {image: score for image, score in (expected(a) | expected(b)).items() if image != victim}
        assert answers(job.gallery) == wanted, f"round {number}"


def test_a_rebuild_that_lost_reports_the_conflict() -> None:
    job = job_on(memory_store())
    ingest(job, vectors("a", 4))
    first = build_tiny(job)
    stale = Proposal("build", RECIPE, first.models, first.shards, first.catalogue, base=0, adds=False)
    with pytest.raises(Conflict, match="generation 1"):
        publish(job, stale)
    assert job.gallery.generations.newest() == 1


def test_a_rollback_that_lost_reports_the_conflict() -> None:
    job = job_on(memory_store())
    ingest(job, vectors("a", 4))
    build_tiny(job)
    ingest(job, vectors("b", 4))
    build_tiny(job)
    old = read_generation(job.gallery, 1)
    delete(job, [vectors("b", 4).ids()[0]])
    stale = Proposal(
        "rollback", RECIPE, old.models, old.shards, old.catalogue, base=2, adds=False, gated=False
    )
    with pytest.raises(Conflict, match="generation 3"):
        publish(job, stale)
    assert rollback(job, 1).number == 4


def test_additions_to_a_gallery_that_was_rolled_back_are_planned_anew() -> None:
    """The winner's content is less than the loser's base: the union would miss parts, so it is refused."""
    job = job_on(memory_store())
    sources = [vectors(name, 3) for name in "abc"]
    for source in sources[:2]:
        ingest(job, source)
        build_tiny(job)
    newest = read_generation(job.gallery)
    rollback(job, 1)
    ingest(job, sources[2])
    catalogue = job.gallery.catalogue.newest()
    stale = Proposal("build", RECIPE, newest.models, (), catalogue, base=2, adds=True)
    with pytest.raises(Conflict, match="rolled back"):
        publish(job, stale)
    build_tiny(job)
    assert answers(job.gallery) == expected(sources[0]) | expected(sources[1]) | expected(sources[2])


def test_parts_that_two_publishers_indexed_are_found_once() -> None:
    job = job_on(memory_store())
    sources = [vectors(name, count) for name, count in (("a", 5), ("b", 3), ("c", 3))]
    for source in sources:
        ingest(job, source)
    apart = build_tiny(job, recipe=RECIPE.model_copy(update={"shard_rows": 3}))
    whole = build_tiny(job, BuildOptions(rebuild=True), RECIPE.model_copy(update={"shard_rows": 100}))
    # A publisher that started earlier adds shards of b and c, which the whole shard covers already,
    # together with one of d, so that they cannot be left out.
    late = vectors("d", 2)
    ingest(job, late)
    wide = build_tiny(job, BuildOptions(rebuild=True), RECIPE.model_copy(update={"shard_rows": 6}))
    overlap = [shard for shard in wide.shards if len(shard.parts) > 1]
    assert overlap
    rollback(job, whole.number)
    proposal = Proposal(
        "build", RECIPE, apart.models, tuple(wide.shards), wide.catalogue, base=wide.number + 1, adds=True
    )
    mixed = publish(job, proposal)
    assert mixed.counts["masked"] > 0, "nothing overlapped, so nothing was tried"
    assert answers(job.gallery) == {k: v for source in (*sources, late) for k, v in expected(source).items()}
