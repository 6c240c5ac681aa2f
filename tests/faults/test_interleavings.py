"""One writer in the middle of another: the worst moments, chosen instead of waited for.

`interrupted(module, name, work)` runs `work` just before the first call of a function, as if another process
had done it then.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import index.publish
import index.purge
import index.ready_made
from index.build import build
from index.collect import collect
from index.pins import collection_lease
from index.quantizer import IvfadcSettings
from index.removal import delete, restore, rollback
from index.verify import verify
from ingest.catalogue import all_rows, read_catalogue
from ingest.errors import BadInput, NotFound
from ingest.store import Store
from tests.faults.faulty import Stopped
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


@contextmanager
def interrupted(module: ModuleType, name: str, work: Callable[[], object]) -> Iterator[None]:
    original, done = getattr(module, name), False

    def first_the_other(*args: object, **options: object) -> object:
        nonlocal done
        if not done:
            done = True
            work()
        return original(*args, **options)

    setattr(module, name, first_the_other)
    try:
        yield
    finally:
        setattr(module, name, original)
    assert done, f"{name} was never called, so nothing was tried"


@pytest.mark.parametrize("published", [False, True], ids=["first build", "later build"])
def test_a_takedown_during_a_build_holds(published: bool) -> None:
    job = job_on(memory_store())
    if published:
        ingest(job, vectors("a", 5))
        build_tiny(job)
    b = vectors("b", 5)
    ingest(job, b)
    with interrupted(index.publish, "commit", lambda: delete(job, [b.ids()[0]])):
        build_tiny(job)
    assert b.ids()[0] not in answers(job.gallery)
    assert b.ids()[1] in answers(job.gallery)


def test_what_was_taken_down_is_at_no_moment_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build composed its generation before: it must lose, and not be corrected afterwards."""
    job = job_on(memory_store())
    ingest(job, vectors("a", 5))
    build_tiny(job)
    b = vectors("b", 5)
    ingest(job, b)
    original, found = index.publish.commit, []

    def commit_and_look(*arguments: Any) -> bool:
        won = original(*arguments)
        found.append(b.ids()[0] in answers(job.gallery))
        return won

    monkeypatch.setattr(index.publish, "commit", commit_and_look)
    with interrupted(index.publish, "commit", lambda: delete(job, [b.ids()[0]])):
        build_tiny(job)
    assert b.ids()[1] in answers(job.gallery)
    assert found and not any(found)


def test_an_ingest_does_not_commit_what_was_purged_since_it_listed() -> None:
    job = job_on(memory_store())
    a = vectors("a", 5)

    def everything_else() -> None:
        ingest(job, a)
        build_tiny(job)
        delete(job, [a.ids()[0]])
        purge_tiny(job)

    with interrupted(index.ready_made, "commit_parts", everything_else):
        ingest(job, a)
    build_tiny(job)
    assert answers(job.gallery).keys() == set(a.ids()[1:])
    assert a.ids()[0] not in all_rows(job.gallery, read_catalogue(job.gallery)).image_id
    assert verify(job).problems == ()


@pytest.mark.parametrize("moment", ["check_present", "commit"])
def test_a_purge_during_a_build_leaves_a_whole_generation(moment: str) -> None:
    job = job_on(memory_store())
    ingest(job, vectors("a", 5))
    build_tiny(job)
    b = vectors("b", 5)
    ingest(job, b)

    def take_down() -> None:
        delete(job, [b.ids()[0]])
        purge_tiny(job)

    with interrupted(index.publish, moment, take_down):
        build_tiny(job)
    assert answers(job.gallery).keys() == set(vectors("a", 5).ids()) | set(b.ids()[1:])
    assert verify(job).problems == ()


def test_two_purges_at_once_leave_nothing_behind() -> None:
    job = job_on(memory_store())
    a = vectors("a", 5)
    ingest(job, a)
    build_tiny(job)
    delete(job, a.ids()[:1])

    def another() -> None:
        delete(job, a.ids()[1:2])
        purge_tiny(job)

    with interrupted(index.purge, "commit_catalogue", another):
        purge_tiny(job)
    listed = all_rows(job.gallery, read_catalogue(job.gallery)).image_id
    assert not {*a.ids()[:2]} & set(listed.tolist())
    assert answers(job.gallery).keys() == set(a.ids()[2:])


def test_an_image_restored_while_it_is_purged_is_there_or_refused() -> None:
    job = job_on(memory_store())
    a = vectors("a", 5)
    ingest(job, a)
    build_tiny(job)
    delete(job, a.ids()[:1])
    with interrupted(index.purge, "commit_catalogue", lambda: restore(job, a.ids()[:1])):
        purge_tiny(job)
    assert answers(job.gallery) == expected(a)


def test_takedown_ingest_and_purge_in_any_plain_order() -> None:
    """Listing again between a takedown and its purge gives parts that the purge would make as well."""
    a = vectors("a", 5)
    for again_before_purge in (False, True):
        job = job_on(memory_store())
        ingest(job, a)
        build_tiny(job)
        delete(job, a.ids()[:1])
        if again_before_purge:
            ingest(job, a)
        purge_tiny(job)
        ingest(job, a)
        build_tiny(job)
        assert answers(job.gallery).keys() == set(a.ids()[1:])
        parts = [part.part for part in read_catalogue(job.gallery).parts]
        assert len(parts) == len(set(parts)) == 1


def test_a_takedown_after_a_purge_that_was_stopped() -> None:
    job = job_on(memory_store())
    a = vectors("a", 5)
    ingest(job, a)
    build_tiny(job)
    delete(job, a.ids()[:1])

    def stop() -> None:
        raise Stopped("between the catalogue and the generation")

    with pytest.raises(Stopped), interrupted(index.purge, "newest_generation", stop):
        purge_tiny(job)
    delete(job, a.ids()[1:2])
    assert answers(job.gallery).keys() == set(a.ids()[2:])


def test_a_takedown_while_another_recipe_is_published() -> None:
    job = job_on(memory_store())
    a = vectors("a", 300)
    ingest(job, a)
    build_tiny(job)
    other = RECIPE.model_copy(
        update={"name": "other", "quantizer": IvfadcSettings(lists=2, code_bytes=2, opq=False)}
    )
    with interrupted(index.publish, "commit", lambda: build(job, other, {})):
        delete(job, a.ids()[:1])
    assert a.ids()[0] not in answers(job.gallery)


def test_a_build_waits_for_a_collection_that_may_not_have_seen_its_names() -> None:
    store = memory_store()
    job = job_on(store)
    a = vectors("a", 5)
    ingest(job, a)
    finished: list[float] = []
    with collection_lease(job.gallery):
        thread = threading.Thread(target=lambda: (build_tiny(job_on(Store(store.url))), finished.append(1.0)))
        thread.start()
        time.sleep(0.5)
        assert not finished
    thread.join()
    assert finished
    assert answers(job.gallery) == expected(a)


def test_names_added_later_wait_for_a_collection_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that began between a build's start and its shards removes first, or sees the name."""
    job = job_on(memory_store())
    a = vectors("a", 5)
    ingest(job, a)
    waits: list[int] = []

    def no_longer_collecting(gallery: object) -> bool:
        waits.append(1)
        return False

    monkeypatch.setattr("index.pins.collecting", no_longer_collecting)
    build_tiny(job)
    assert len(waits) >= 2, "a build looks for collections after every name that it adds"


def test_a_generation_that_was_collected_in_part_is_not_built_upon(tmp_path: Path) -> None:
    """Its manifests are young, its shards are old: collection must take both or none."""
    job = job_on(Store(str(tmp_path)))
    a, b = vectors("a", 300), vectors("b", 300)
    other = RECIPE.model_copy(
        update={"name": "other", "quantizer": IvfadcSettings(lists=2, code_bytes=2, opq=False)}
    )
    ingest(job, a)
    build_tiny(job)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3 * 86400,) * 2)
    ingest(job, b)
    build_tiny(job)
    build(job, other.model_copy(update={"gate": RECIPE.gate.model_copy(update={"recall": 0.0})}), {})
    collect(job.gallery, keep=1)
    build_tiny(job)
    rollback(job, 2)
    assert verify(job).problems == ()
    assert answers(job.gallery).keys() == {*a.ids(), *b.ids()}


def test_one_name_for_two_places_is_refused_even_at_once() -> None:
    job = job_on(memory_store())
    here, there = vectors("a", 3), vectors("a", 3, seed=1)
    there = TinyVectors("a", there.vectors, url="vectors:elsewhere")
    with (
        pytest.raises(BadInput, match="give it another name"),
        interrupted(index.ready_made, "commit_parts", lambda: ingest(job, here)),
    ):
        ingest(job, there)


def test_what_was_never_there_is_not_taken_down() -> None:
    job = job_on(memory_store())
    ingest(job, vectors("a", 3))
    with pytest.raises(NotFound, match="no image 7"):
        delete(job, [7])
    assert len(read_catalogue(job.gallery).deleted) == 0


def test_a_first_build_with_everything_taken_down_says_so() -> None:
    job = job_on(memory_store())
    a = vectors("a", 2)
    ingest(job, a)
    delete(job, a.ids())
    with pytest.raises(BadInput, match="no image with features"):
        build_tiny(job)
    restore(job, a.ids())
    build_tiny(job)
    delete(job, a.ids())
    assert answers(job.gallery) == {}
    build_tiny(job)
    assert answers(job.gallery) == {}
