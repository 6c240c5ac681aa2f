"""The process dies at any storage operation of any command: nothing is lost, nothing half-done is seen.

For every operation that a command makes, a copy of the gallery is taken through: die there; a reader must get
exactly the old or the new answers; run the command again; the answers must be the new ones; collect; the
objects must be exactly those of a run that nobody disturbed.

A process that is gone leaves nothing but the store, and reads do not change that: dying before or after a
read, or before a write, leaves what dying after the last write left. So the states to try are: nothing
written, and within and after every write.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.build import BuildOptions
from index.collect import collect
from index.removal import delete, restore, rollback
from index.verify import verify
from ingest.errors import ReseenError
from ingest.job import Job
from ingest.store import Store
from tests.faults.faulty import WRITES, Fault, Stopped, faulty_store, operations_of
from tests.tiny import answers, build_tiny, exists, ingest, job_on, purge_tiny, vectors

A, B = vectors("a", 5), vectors("b", 4)
VICTIM = A.ids()[0]


@dataclass(frozen=True)
class Command:
    """Something a user does: how the gallery got there, what is done, and whether it was done."""

    prepare: tuple[Callable[[Job], object], ...]
    run: Callable[[Job], object]


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
    build_tiny(job, BuildOptions(rebuild=True))


def _collect(job: Job) -> None:
    collect(job.gallery, keep=1, grace_s=0)


COMMANDS = {
    "create": Command((), lambda job: None),
    "ingest": Command((_ingest_a, build_tiny), _ingest_b),
    "first build": Command((_ingest_a,), build_tiny),
    "build": Command((_ingest_a, build_tiny, _ingest_b), build_tiny),
    "rebuild": Command((_ingest_a, build_tiny, _ingest_b, build_tiny), _rebuild),
    "rollback": Command((_ingest_a, build_tiny, _ingest_b, build_tiny), _rollback),
    "delete": Command((_ingest_a, _ingest_b, build_tiny), _delete),
    "restore": Command((_ingest_a, build_tiny, _delete), _restore),
    "collect": Command((_ingest_a, build_tiny, _ingest_b, build_tiny, _rebuild, _delete), _collect),
    "purge": Command((_ingest_a, build_tiny, _ingest_b, build_tiny, _delete), purge_tiny),
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
    before = tmp_path_factory.mktemp("before")
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
    return answers(job_on(Store(url)).gallery)


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
        case.command.run(job_on(Store(url)))
        assert _answers(url) == case.new, where
        assert _same_objects(url, case), where


def _same_objects(url: str, case: Case) -> bool:
    """Whether exactly an undisturbed run's objects are left, commits apart, whose number may differ."""
    return _contents(_collected(url)) == _contents(case.objects)


def _contents(objects: frozenset[str]) -> set[str]:
    return {path for path in objects if not path.startswith(("generations/", "catalogue/", "manifests/"))}


@pytest.mark.parametrize(
    ("fault", "times"), [("io_error", 1), ("timeout", None), ("no_space", 1), ("lost_reply", 1)]
)
def test_an_error_at_any_operation_is_survived_or_reported(
    case: Case, fault: Fault, times: int | None, tmp_path: Path
) -> None:
    # An error of a read that passes is the store's own business (tests/ingest/test_store.py).
    everything = range(1, len(case.operations) + 1)
    for at in everything if times is None else _writes(case):
        url = case.copy(tmp_path / "gallery")
        where = f"{fault} at {at}: {case.operations[at - 1]}"
        try:
            case.command.run(job_on(faulty_store(url, at, fault, times)))
            done = True
        except ReseenError:
            done = False
        seen = _answers(url)
        assert seen == case.new if done else seen in (case.old, case.new), where
        if not done:
            case.command.run(job_on(Store(url)))
            assert _answers(url) == case.new, where


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
        store = _CollectingStore.over(str(folder), at)
        build_tiny(job_on(store))
        assert _answers(str(folder)) == new, f"collected at operation {at}"
        assert exists(job_on(Store(str(folder))).gallery, 2)


class _CollectingStore:
    """A backend that runs a whole collection just before one of its operations."""

    @staticmethod
    def over(url: str, at: int) -> Store:
        clean = Store(url)
        return Store(url, {}, _CollectingStore(clean, at))  # type: ignore[arg-type]

    def __init__(self, clean: Store, at: int) -> None:
        self.clean, self.at, self.count = clean, at, 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        inner = getattr(self.clean.backend, name)

        def operation(*args: object, **options: object) -> object:
            self.count += 1
            if self.count == self.at:
                collect(job_on(self.clean).gallery, keep=1, grace_s=0)
            return inner(*args, **options)

        return operation
