"""The laws of both engines: equal results, bounded draw, errors as they were raised."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.engine import TRIES_UNAVAILABLE, Engine, open_engine
from ingest.errors import BadInput, Corrupt, ReseenError, Unavailable
from ingest.ray_engine import plan

ENGINES = [
    pytest.param(("inline", None), id="inline"),
    pytest.param(("ray", 1), id="ray-1", marks=pytest.mark.ray),
    pytest.param(("ray", 2), id="ray-2", marks=pytest.mark.ray),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    kind, workers = request.param
    if kind == "ray":
        from ray import cloudpickle

        request.getfixturevalue("ray_cluster")
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with open_engine(kind, workers) as opened:
        yield opened


@dataclass(frozen=True)
class Square:
    scale: int

    def start(self) -> Callable[[int], tuple[int, np.ndarray]]:
        scale = self.scale
        return lambda task: (task, np.full(task, scale * task * task))


def test_each_task_gives_its_one_result(engine: Engine) -> None:
    results = dict(engine.map(Square(3), range(9)))
    assert sorted(results) == list(range(9))
    for task, values in results.items():
        np.testing.assert_array_equal(values, np.full(task, 3 * task * task))


def test_results_belong_to_the_caller(engine: Engine) -> None:
    ((_, values),) = engine.map(Square(1), [200_000])
    values += 1


def test_no_tasks_no_results_and_no_start(engine: Engine) -> None:
    assert list(engine.map(Square(1), [])) == []


def test_an_engine_maps_again(engine: Engine) -> None:
    for scale in (1, 2):
        assert {task: values.sum() for task, values in engine.map(Square(scale), [1, 2])} == {
            1: scale,
            2: scale * 8,
        }


def test_tasks_are_drawn_as_results_are_taken(engine: Engine) -> None:
    """Never more than `workers` tasks ahead of the results taken, however many there are."""
    drawn = 0

    def tasks() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield 1

    results = engine.map(Square(1), tasks())
    assert drawn == 0
    for taken in range(1, 6):
        next(results)
        assert taken <= drawn <= taken + 2 * engine.workers
    results.close()  # type: ignore[attr-defined]
    assert drawn <= 5 + 2 * engine.workers


@dataclass(frozen=True)
class Raise:
    error: Exception
    at: int = 1
    folder: Path | None = None  # where calls are counted

    def start(self) -> Callable[[int], int]:
        return self.run

    def run(self, task: int) -> int:
        if self.folder:
            with (self.folder / str(task)).open("a") as calls:
                calls.write(".")
        if task == self.at:
            raise self.error
        return task


class OddError(Exception):
    """One that pickles and does not come back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@pytest.mark.parametrize(
    "error", [BadInput("the key is wrong"), Corrupt("it is damaged"), ZeroDivisionError("bug")]
)
def test_errors_arrive_as_they_were_raised(engine: Engine, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        list(engine.map(Raise(error), range(4)))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


@pytest.mark.ray
def test_the_workers_traceback_is_the_cause(ray_cluster: Any) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with open_engine("ray", 1) as engine:
        with pytest.raises(ZeroDivisionError) as caught:
            list(engine.map(Raise(ZeroDivisionError("bug")), range(4)))
        assert "in run" in str(caught.value.__cause__)
        assert "raise self.error" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_still_tells(engine: Engine) -> None:
    with pytest.raises(Exception, match="onetwo"):
        list(engine.map(RaiseOdd(), [1]))


@dataclass(frozen=True)
class RaiseOdd:
    def start(self) -> Callable[[int], int]:
        def run(task: int) -> int:
            raise OddError("one", "two")

        return run


def test_what_is_unavailable_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the store sleeps"):
        list(engine.map(Raise(Unavailable("the store sleeps"), folder=tmp_path), range(4)))
    assert (tmp_path / "1").read_text() == "." * TRIES_UNAVAILABLE


@dataclass(frozen=True)
class Recover:
    """Unavailable until a task has been tried often enough."""

    folder: Path
    tries: int

    def start(self) -> Callable[[int], int]:
        return self.run

    def run(self, task: int) -> int:
        with (self.folder / str(task)).open("a") as calls:
            calls.write(".")
        if (self.folder / str(task)).stat().st_size < self.tries:
            raise Unavailable("not now")
        return task


def test_what_passes_is_no_error(engine: Engine, tmp_path: Path) -> None:
    assert sorted(engine.map(Recover(tmp_path, TRIES_UNAVAILABLE), range(3))) == [0, 1, 2]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"." * TRIES_UNAVAILABLE}


@dataclass(frozen=True)
class Opened:
    """Notes, in a file of each process, when it is loaded, runs and is closed."""

    folder: Path
    error: ReseenError | None = None

    def start(self) -> "Opened":
        if self.error:
            raise self.error
        self._note("l")
        return self

    def __call__(self, task: int) -> int:
        self._note("r")
        return task

    def close(self) -> None:
        self._note("c")

    def _note(self, what: str) -> None:
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(what)


def test_a_worker_loads_once_and_closes_once(engine: Engine, tmp_path: Path) -> None:
    assert sorted(engine.map(Opened(tmp_path), range(20))) == list(range(20))
    notes = [file.read_text() for file in tmp_path.iterdir()]
    assert 1 <= len(notes) <= engine.workers
    ran = [note for note in notes if "r" in note]  # a worker that came too late for a task is killed
    assert ran == ["l" + "r" * note.count("r") + "c" for note in ran]
    assert sum(note.count("r") for note in ran) == 20


def test_an_error_at_start_stops_the_run(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model"):
        list(engine.map(Opened(tmp_path, BadInput("no such model")), range(4)))


def test_an_error_of_the_tasks_is_the_callers(engine: Engine) -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise LookupError("the list ends badly")

    with pytest.raises(LookupError, match="ends badly"):
        list(engine.map(Square(1), tasks()))


@pytest.mark.ray
def test_workers_compute_with_their_share_of_threads(ray_cluster: Any) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for workers, threads in ((1, 2), (2, 1)):
        with open_engine("ray", workers) as engine:
            ((environment, counts),) = engine.map(Threads(), [0])
        assert environment == {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        assert counts == (threads, threads)


@dataclass(frozen=True)
class Threads:
    def start(self) -> Callable[[int], Any]:
        import cv2
        import faiss

        def run(task: int) -> Any:
            import os

            names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
            counts = (cv2.getNumThreads(), faiss.omp_get_max_threads())
            return {name: os.environ.get(name) for name in names}, counts

        return run


@given(st.none() | st.integers(1, 300), st.integers(0, 256), st.none() | st.integers(1, 16))
def test_workers_times_threads_fit_the_processors(workers: int | None, cpus: int, gpus: int | None) -> None:
    cut = plan(workers, float(cpus), gpus)
    cores = max(1, cpus)
    assert cut.workers == (workers or gpus or cores)
    assert cut.threads >= 1
    assert cut.workers * cut.threads <= cores or cut.threads == 1
    assert 0 < cut.workers * cut.cpus <= cores + 1e-9
    assert cut.cpus < 1 or cut.cpus == int(cut.cpus)  # Ray takes no other
    assert cut.gpus == (gpus is not None)


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput, match="0 workers"), open_engine("inline", 0):
        pass
    with pytest.raises(BadInput, match="'inline'"), open_engine("dask"):  # type: ignore[arg-type]
        pass


@pytest.mark.ray
def test_a_gpu_that_is_not_there_is_refused(ray_cluster: Any) -> None:
    with pytest.raises(BadInput, match="no GPU"), open_engine("ray", gpu=True):
        pass
