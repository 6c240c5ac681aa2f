"""The process dies at any storage operation of any command: nothing is lost, nothing half-done is seen.

For every operation that a command makes, a copy of the gallery is taken through: die there; a reader must get
exactly the old or the new answers; run the command again; the answers must be the new ones; collect; the
objects must be exactly those of a run that nobody disturbed.

A process that is gone leaves nothing but the store, and reads do not change that: dying before or after a
read, or before a write, leaves what dying after the last write left. So the states to try are: nothing
written, and within and after every write. Errors, which leave a process that goes on, are tried one by one.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.build import BuildOptions
from index.collect import collect
from index.generation import read_generation
from index.removal import delete, restore, rollback
from index.verify import verify
from ingest.errors import NotFound, ReseenError
from ingest.gallery import Gallery, open_gallery
from ingest.job import Job
from ingest.store import Store
from tests.faults.faulty import (
    PASSING,
    STAYING,
    WRITES,
    Fault,
    Stopped,
    faulty_store,
    interrupted_store,
    operations_of,
)
from tests.tiny import RECIPE, answers, build_tiny, exists, ingest, job_on, purge_tiny, vectors

A, B = vectors("a", 5), vectors("b", 4)
VICTIM = A.ids()[0]


@dataclass(frozen=True)
class Command:
    """Something a user does: how the gallery got there, what is done, and where that creates and deletes."""

    prepare: tuple[Callable[[Job], object], ...]
    run: Callable[[Job], object]
    creates: tuple[str, ...]
    deletes: tuple[str, ...] = ()
    changes: bool = True  # what a reader gets


def _ingest_a(job: Job) -> None:
    ingest(job, A)


def _ingest_b(job: Job) -> None:
    ingest(job, B)


def _delete(job: Job) -> None:
    delete(job, [VICTIM])


def _restore(job: Job) -> None:
    restore(job, [VICTIM])


def _rollback(job: Job) -> None:
    # A user who sees generation 3 in force knows that the rollback was done.
    if job.gallery.generations.newest() < 3:
        rollback(job, 1)


def _rebuild(job: Job) -> None:
    """Everything in one shard instead of two."""
    build_tiny(job, BuildOptions(rebuild=True), RECIPE.model_copy(update={"shard_rows": 100}))


def _leave_orphans(job: Job) -> None:
    """What stopped writers leave: a part and its vectors that no catalogue names, and half a file."""
    other = job_on(Store(f"{job.gallery.store.url}-other"))
    ingest(other, vectors("orphan", 3))
    for folder in ("parts", "encodings"):
        for info in other.gallery.store.listing(folder):
            job.gallery.store.create(info.path, other.gallery.store.read(info.path))
    store = faulty_store(job.gallery.store.url, at=1, fault="stop_within")
    with pytest.raises(Stopped):
        store.create("parts/half", b"half of this")


def _collect(job: Job) -> None:
    collect(job.gallery, keep=1, grace_s=0)


def _nothing(job: Job) -> None:
    """The gallery is made by then."""


_TWICE = (_ingest_a, build_tiny, _ingest_b, build_tiny)
_INGESTED = ("parts", "encodings", "manifests", "catalogue")
_PUBLISHED = ("manifests", "generations")
_COLLECTED = ("manifests", "parts", "encodings", "shards")
COMMANDS = {
    "create": Command((), _nothing, ("gallery.json",), changes=False),
    "first ingest": Command((_nothing,), _ingest_a, _INGESTED, changes=False),
    "ingest": Command((_ingest_a, build_tiny), _ingest_b, _INGESTED, changes=False),
    "first build": Command((_ingest_a,), build_tiny, ("models", "shards", *_PUBLISHED)),
    "build": Command((_ingest_a, build_tiny, _ingest_b), build_tiny, ("shards", *_PUBLISHED)),
    "rebuild": Command(_TWICE, _rebuild, ("shards", *_PUBLISHED), changes=False),
    "rollback": Command(_TWICE, _rollback, _PUBLISHED),
    "delete": Command((_ingest_a, _ingest_b, build_tiny), _delete, ("catalogue", *_PUBLISHED)),
    "restore": Command((_ingest_a, build_tiny, _delete), _restore, ("catalogue", *_PUBLISHED)),
    "collect": Command((*_TWICE, _rebuild, _delete, _leave_orphans), _collect, (), _COLLECTED, changes=False),
    "purge": Command(
        (*_TWICE, _delete),
        purge_tiny,
        ("catalogue", "shards", *_INGESTED, *_PUBLISHED),
        ("parts", "encodings", "shards"),
        changes=False,
    ),
}


@dataclass(frozen=True)
class Case:
    """A command, the gallery before it, and what an undisturbed run of it gives."""

    command: Command
    before: Path
    old: dict[int, float]
    new: dict[int, float]
    objects: frozenset[str]
    operations: tuple[tuple[str, str], ...]

    def copy(self, folder: Path) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before, folder)
        return str(folder)


@pytest.fixture(scope="module", params=COMMANDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    command = COMMANDS[request.param]
    before = tmp_path_factory.mktemp("before") / "gallery"
    before.mkdir()
    if command.prepare:
        job = job_on(Store(str(before)))
        for step in command.prepare:
            step(job)
    old = _answers(str(before))
    after = tmp_path_factory.mktemp("after") / "gallery"
    shutil.copytree(before, after)
    store = faulty_store(str(after))
    command.run(job_on(store))
    new = _answers(str(after))
    yield Case(command, before, old, new, _collected(str(after)), tuple(operations_of(store)))


def _answers(url: str) -> dict[int, float]:
    """What a reader gets, who makes nothing: also before there is a gallery."""
    try:
        return answers(open_gallery(Store(url)))
    except NotFound:
        return {}


def _older_are_whole(url: str, case: Case) -> bool:
    """Every generation that still has its lists has all of its images (`answers` sees to that).

    After a purge it may also be refused: the lists are left, and what held the purged images is gone.
    """
    try:
        gallery = open_gallery(Store(url))
    except NotFound:
        return True
    for number in gallery.generations.numbers():
        with suppress(NotFound):
            read_generation(gallery, number)
            if case.command.run is purge_tiny:
                answers(gallery, number)
            else:
                _answers_of(gallery, number)
    return True


def _answers_of(gallery: Gallery, number: int) -> None:
    try:
        answers(gallery, number)
    except NotFound as error:
        raise AssertionError(f"generation {number} was collected in part: {error}") from error


def test_the_commands_do_what_is_to_be_stopped(case: Case) -> None:
    """A command with nothing to do would pass everything below."""
    written = {path.partition("/")[0] for verb, path in case.operations if verb == "create"}
    deleted = {path.partition("/")[0] for verb, path in case.operations if verb == "delete"}
    assert written >= set(case.command.creates)
    assert deleted >= set(case.command.deletes)
    assert (case.old != case.new) == case.command.changes


def _collected(url: str) -> frozenset[str]:
    """What is left after collection once no pin holds anything; every byte of it verified."""
    store = Store(url)
    for pin in store.listing("pins"):
        store.delete(pin.path)
    job = job_on(store)
    collect(job.gallery, keep=100, grace_s=0)
    assert store.unfinished() == []
    if job.gallery.generations.newest():
        assert verify(job).problems == ()
    return frozenset(info.path for info in store.listing("") if not info.path.startswith("pins/"))


def _points(case: Case) -> Iterator[tuple[int, Fault]]:
    yield 1, "stop_before"
    for at in _writes(case):
        yield at, "stop_within"
        yield at, "stop_after"


def _writes(case: Case) -> list[int]:
    return [at for at, (verb, _) in enumerate(case.operations, 1) if verb in WRITES]


def test_a_stop_at_any_operation_loses_nothing(case: Case, tmp_path: Path) -> None:
    for at, fault in _points(case):
        url = case.copy(tmp_path / "gallery")
        with pytest.raises(Stopped):
            case.command.run(job_on(faulty_store(url, at, fault)))
            raise Stopped("what was shorter this time was done")
        where = f"{fault} at {at}: {case.operations[at - 1]}"
        assert _answers(url) in (case.old, case.new), where
        assert _older_are_whole(url, case), where
        case.command.run(job_on(Store(url)))
        assert _answers(url) == case.new, where
        assert _same_objects(url, case), where


def _same_objects(url: str, case: Case) -> bool:
    """Whether exactly an undisturbed run's objects are left, commits apart, whose number may differ."""
    return _contents(_collected(url)) == _contents(case.objects)


def _contents(objects: frozenset[str]) -> set[str]:
    return {path for path in objects if not path.startswith(("generations/", "catalogue/", "manifests/"))}


# An error of a read that passes is the store's own business (tests/ingest/test_store.py). What stays is tried
# at every operation as a timeout; every kind of error, passing and staying, at every write.
@pytest.mark.parametrize(("fault", "times"), [*STAYING, *PASSING])
def test_an_error_at_any_operation_is_survived_or_reported(
    case: Case, fault: Fault, times: int | None, tmp_path: Path
) -> None:
    everything = range(1, len(case.operations) + 1)
    for at in everything if (fault, times) == ("timeout", None) else _writes(case):
        url = case.copy(tmp_path / "gallery")
        where = f"{fault} at {at}: {case.operations[at - 1]}"
        try:
            case.command.run(job_on(faulty_store(url, at, fault, times)))
            done = True
        except ReseenError:
            done = False
        assert done == (times == 1), where
        seen = _answers(url)
        assert seen == case.new if done else seen in (case.old, case.new), where
        assert _older_are_whole(url, case), where
        if not done:
            case.command.run(job_on(Store(url)))
            assert _answers(url) == case.new, where
        assert _same_objects(url, case), where


def test_a_collection_takes_nothing_from_a_build_in_progress(tmp_path: Path) -> None:
    """At every operation of a build, another process collects everything that it can."""
    url = str(tmp_path / "counted")
    job = job_on(Store(url))
    for step in (_ingest_a, build_tiny, _ingest_b):
        step(job)
    before = tmp_path / "before"
    shutil.copytree(url, before)
    counted = faulty_store(url)
    build_tiny(job_on(counted))
    new = _answers(url)
    for at in range(2, len(operations_of(counted)) + 1):
        folder = tmp_path / "gallery"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        store = interrupted_store(str(folder), at, lambda clean: _collect(job_on(clean)))
        build_tiny(job_on(store))
        assert len(operations_of(store)) >= at
        assert _answers(str(folder)) == new, f"collected at operation {at}"
        assert exists(job_on(Store(str(folder))).gallery, 2)
