"""The one seam for parallel work: a function runs over tasks, here (`inline`) or in Ray actors (`ray`).

    with open_engine("ray") as engine:
        for result in engine.map(Describe(settings, store), parts):
            ...

A *worker* is a small picklable value made in the driver; its `start` runs once in each worker process,
loads what is heavy, and returns the function that every task goes through. Failures, on either engine:

- a `ReseenError` from the function reaches the caller as it was raised; `Unavailable` only after the task
  was tried `TRIES_UNAVAILABLE` times, elsewhere where there is an elsewhere;
- any other exception is a bug: it stops the run, with the worker's traceback as its cause;
- a worker process that dies is replaced, and its task runs again (`ingest.ray_engine`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeVar

from ingest.errors import BadInput, Unavailable

Task = TypeVar("Task")
Result = TypeVar("Result")
TaskIn = TypeVar("TaskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

TRIES_UNAVAILABLE = 3


class Worker(Protocol[TaskIn, ResultOut]):
    """What a worker process needs to know: a dataclass of settings and a `Store`, cheap to pickle.

    One that has an attribute `wants_gpu`, and it is true, gets a GPU to itself where the cluster has some.
    """

    def start(self) -> Callable[[TaskIn], ResultOut]:
        """Loads models, opens decoders; called once in each worker process.

        Returns:
            The function of one task. If it has a `close()`, that is called when the tasks are done (but
            not when a run is cut short: the process is killed then, so children must notice by themselves).
        """


class Engine(Protocol):
    """Runs a worker's function over tasks. `workers` is how many run at once, if the machines are there."""

    @property
    def workers(self) -> int: ...

    def map(self, worker: Worker[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """One result for each task, in the order in which they finish.

        `tasks` is consumed lazily: at most `workers` tasks are ahead of the results taken. Closing the
        iterator early (`break` and `close()`, an exception, Ctrl-C) kills what is in flight. Use one
        iterator of an engine at a time: two share the same processors.
        """


class InlineEngine:
    """Everything in this process, one task after the other: for tests, debugging and `memory` stores."""

    workers = 1

    def map(self, worker: Worker[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        function = worker.start()
        try:
            for task in tasks:
                yield _try_again(function, task)
        finally:
            close_function(function)


def _try_again(function: Callable[[Task], Result], task: Task) -> Result:
    for _ in range(TRIES_UNAVAILABLE - 1):
        try:
            return function(task)
        except Unavailable:
            continue
    return function(task)


def close_function(function: Any) -> None:
    """Calls the `close()` of what `Worker.start` returned, if it has one."""
    close = getattr(function, "close", None)
    if close is not None:
        close()


def open_engine(
    kind: Literal["ray", "inline"],
    workers: int | None = None,
    *,
    gpu: bool | None = None,
    address: str | None = None,
    max_deaths: int = 8,
    patience_s: float = 60.0,
) -> AbstractContextManager[Engine]:
    """An engine for a `with` statement.

    Args:
        kind: `inline`, or `ray`: joins the cluster at `address`, or starts Ray on this machine and shuts it
            down at the end. Inside a program that is connected to Ray already, that connection is used.
        workers: worker processes; by default one for each processor of the cluster, or each GPU where workers
            hold one. Workers x threads = processors. A worker takes 0.2 GB before it has loaded anything.
        gpu: whether workers that want one hold a GPU, and see no other: True, and it is an error if there is
            none; False; None where the cluster has some. Others see none.
        address: the cluster to join (`deploy` passes what `RAY_ADDRESS` names); None starts Ray here. It is
            never looked for: Ray's own search would join any cluster that somebody left on this machine.
        max_deaths: how many workers in a row may die on one task, or while they start.
        patience_s: how long to wait, in seconds, while the cluster has no room for a single worker.

    Raises:
        BadInput: `workers` is below 1, or the kind is unknown; Reseen's packages are shadowed by others.
        Unavailable: Ray does not start, or the cluster does not answer.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"{workers} workers cannot do anything: ask for 1 or more, or leave it out")
    if kind == "inline":
        return nullcontext(InlineEngine())
    if kind == "ray":
        from ingest.ray_engine import open_ray_engine

        return open_ray_engine(workers, gpu, address, max_deaths, patience_s)
    raise BadInput(f"there is no engine {kind!r}: use 'ray' or 'inline'")
