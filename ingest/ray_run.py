"""One run of tasks over Ray actors: who does what, who died, what is tried again.

Ray neither restarts an actor nor retries a task (`max_restarts=0`, `max_task_retries=0`): the driver does
both, so that a death is blamed on exactly the task that ran, and each task gives exactly one result. An
actor holds one task at a time: a round trip costs 1.1 ms, a part takes seconds.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ingest.engine import TRIES_UNAVAILABLE
from ingest.errors import BadInput, OverBudget, Unavailable

logger = logging.getLogger(__name__)

_POLL_S = 0.5  # how often the driver looks up from waiting
_NOTICE_S = 5.0  # how long a worker may lack a processor before a line says so
_STOP_S = 10.0  # how long a worker may take to close what it opened


@dataclass(frozen=True)
class Plan:
    """How the cluster is cut up: workers, and of each its threads, processors and GPUs."""

    workers: int
    threads: int
    cpus: float
    gpus: int


@dataclass
class _Attempt:
    """A task on its way, and what has happened to it."""

    task: Any
    data: bytes
    deaths: int = 0
    refusals: int = 0
    last: "_Seat | None" = None  # where it ran last


@dataclass(eq=False)
class _Seat:
    """One actor: `placed` when it has a process, `ready` when its function is loaded."""

    actor: Any
    placed: bool = False
    ready: bool = False
    attempt: _Attempt | None = None


@dataclass
class RayRun:
    """One `map`: the actors, what each is doing, and the tasks that wait."""

    plan: Plan
    max_deaths: int
    patience_s: float
    worker: Any
    seats: list[_Seat] = field(default_factory=list)
    waiting: deque[_Attempt] = field(default_factory=deque)
    replies: dict[Any, _Seat] = field(default_factory=dict)  # Ray's reference -> who owes it
    deaths_at_start: int = 0
    short_since: float | None = None  # since when some worker has had no place
    noticed: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        import ray

        self.payload = ray.put(ray.cloudpickle.dumps(self.worker))
        self.actor = ray.remote(actor_class())

    # -- the loop ---------------------------------------------------------------------------------------

    def results(self, tasks: Iterator[Any]) -> Iterator[Any]:
        import ray

        while self._fill(tasks):
            self._hand_out()
            ready, _ = ray.wait(list(self.replies), timeout=_POLL_S)
            self._watch_places()
            for reference in ready:
                yield from self._take(reference)

    def _fill(self, tasks: Iterator[Any]) -> bool:
        """Draws tasks until every worker has one in hand or waiting for it; False when all are done."""
        from ray import cloudpickle

        while len(self.waiting) + self._running() < self.plan.workers:
            try:
                task = next(tasks)
            except StopIteration:
                break
            self.waiting.append(_Attempt(task, cloudpickle.dumps(task)))
        return bool(self.waiting) or self._running() > 0

    def _running(self) -> int:
        return sum(seat.attempt is not None for seat in self.seats)

    def _hand_out(self) -> None:
        while len(self.seats) < min(self.plan.workers, len(self.waiting) + self._running()):
            self._seat_worker()
        for seat in self.seats:
            if seat.ready and seat.attempt is None and self.waiting:
                attempt = self._choose(seat)
                if attempt is not None:
                    self.waiting.remove(attempt)
                    seat.attempt, attempt.last = attempt, seat
                    self.replies[seat.actor.run.remote(attempt.data)] = seat

    def _seat_worker(self) -> None:
        options = {"num_cpus": self.plan.cpus, "max_restarts": 0, "max_task_retries": 0}
        if self.plan.gpus:
            options["num_gpus"] = self.plan.gpus
        seat = _Seat(self.actor.options(**options).remote())
        self.seats.append(seat)
        self.replies[seat.actor.place.remote()] = seat

    def _choose(self, seat: _Seat) -> _Attempt | None:
        """The first waiting task that did not just fail here, while there is another worker to take it."""
        alone = sum(other.ready for other in self.seats) == 1
        return next((attempt for attempt in self.waiting if alone or attempt.last is not seat), None)

    # -- what comes back --------------------------------------------------------------------------------

    def _take(self, reference: Any) -> Iterator[Any]:
        import ray

        seat = self.replies.pop(reference)
        try:
            reply = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # a bug in the engine's own code in the worker
        except ray.exceptions.RayError as error:
            self._mourn(seat, error)
            return
        if not seat.placed:
            seat.placed, self.short_since = True, None
            self.replies[seat.actor.start.remote(self.payload, self.plan.threads)] = seat
            return
        attempt, seat.attempt = seat.attempt, None
        if reply[0] != "ok":
            self._fail(attempt, reply)
        elif attempt is None:
            seat.ready = True
            self.deaths_at_start = 0
        else:
            yield ray.cloudpickle.loads(reply[1])

    def _fail(self, attempt: _Attempt | None, reply: Any) -> None:
        """Raises what the worker's function raised, unless the task may pass elsewhere."""
        from ray import cloudpickle

        if reply[0] == "foreign":
            raise BadInput(reply[1])
        error: Exception = cloudpickle.loads(reply[1])
        if attempt is not None and isinstance(error, Unavailable):
            attempt.refusals += 1
            if attempt.refusals < TRIES_UNAVAILABLE:
                logger.warning("%s failed for now (%s); it is tried again", attempt.task, error)
                self.waiting.append(attempt)
                return
        raise error from WorkerTracebackError(reply[2])

    def _mourn(self, seat: _Seat, error: Exception) -> None:
        """Gives up a dead worker; its task waits for another, unless it has cost too many."""
        import ray

        self.seats.remove(seat)
        ray.kill(seat.actor)  # it may be alive behind a broken connection
        cause = _cause(error)
        attempt = seat.attempt
        if attempt is None:
            self.deaths_at_start += 1
            if self.deaths_at_start >= self.max_deaths:
                raise Unavailable(
                    f"no worker could start: {self.deaths_at_start} in a row died at it, the last one "
                    f"because: {cause}; see /tmp/ray/session_latest/logs on its machine"
                ) from error
            logger.warning("a worker died while it started (%s); another takes its place", cause)
            return
        attempt.deaths += 1
        if attempt.deaths >= self.max_deaths:
            raise OverBudget(
                f"{attempt.task} was tried {attempt.deaths} times and its worker died each time, the last "
                f"one because: {cause}; if memory ran out, use fewer workers or smaller parts; otherwise "
                "run this task with the inline engine to see what happens"
            ) from error
        logger.warning(
            "a worker died (%s); %s runs again elsewhere (%d of %d)",
            *(cause, attempt.task, attempt.deaths, self.max_deaths),
        )
        self.waiting.appendleft(attempt)

    # -- places -----------------------------------------------------------------------------------------

    def _watch_places(self) -> None:
        """Says when the cluster has too few processors for all workers; raises when it has none for long."""
        placed = sum(seat.placed for seat in self.seats)
        if placed == len(self.seats):
            self.short_since, self.noticed = None, False
            return
        now = time.monotonic()
        if self.short_since is None:
            self.short_since = now
        waited = now - self.short_since
        if placed == 0 and waited > self.patience_s:
            raise Unavailable(
                f"no worker found a place in {waited:.0f} s: each needs {self._needs()}, and {_free()}; "
                "wait for the other work on the cluster to end, add nodes, or start fewer programs on it"
            )
        if waited > _NOTICE_S and not self.noticed:
            self.noticed = True
            logger.warning(
                "%d of %d workers have a place: each needs %s, and %s; the others join when there is room",
                *(placed, len(self.seats), self._needs(), _free()),
            )

    def _needs(self) -> str:
        return f"{self.plan.cpus:g} CPU" + (f" and {self.plan.gpus} GPU" if self.plan.gpus else "")

    # -- the end ----------------------------------------------------------------------------------------

    def stop_workers(self) -> None:
        """Lets idle workers close what they opened; what they raise then is raised here."""
        import ray

        stopping = [seat.actor.stop.remote() for seat in self.seats if seat.ready and seat.attempt is None]
        done, _ = ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S) if stopping else ([], [])
        for reference in done:
            try:
                reply = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # it died at the very end: its results are here
            if reply[0] != "ok":
                self._fail(None, reply)

    def close(self) -> None:
        """Kills every worker at once. Can be called twice, and after Ray has gone."""
        import ray

        if self.closed or not ray.is_initialized():
            return
        self.closed = True
        for seat in self.seats:
            ray.kill(seat.actor)
        self.seats.clear()
        self.replies.clear()


class WorkerTracebackError(Exception):
    """The traceback of an exception in a worker process, as the cause of the one that is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(f"in a worker:\n{text}")


def _cause(error: Exception) -> str:
    """What Ray knows of a death, without its advice, on one line."""
    story = " ".join(str(error).split()) or type(error).__name__
    known = re.search(r"because (.*?)(?= Some common causes|$)", story)
    return (known[1] if known else story)[:300].rstrip(".")


def _free() -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    names = [name for name in ("CPU", "GPU") if name in total]
    parts = [f"{free.get(name, 0):g} of {total[name]:g} {name}" for name in names]
    return f"the cluster has {' and '.join(parts) or 'nothing'} free"


def actor_class() -> type:
    """The actor, thin on purpose.

    It is local to a function, so it is pickled by value and needs nothing of ours to be importable: a
    worker that finds somebody else's `ingest` can still say so.
    """

    class ReseenWorker:
        def place(self) -> None:
            """Answers as soon as the process is there."""

        def start(self, worker: bytes, threads: int) -> Any:
            try:
                from ingest.ray_worker import WorkerHost
            except ImportError as error:
                return self.foreign(error)
            self.host = WorkerHost()
            return self.host.start(worker, threads)

        def foreign(self, error: ImportError) -> Any:
            import platform
            import sys

            found = getattr(sys.modules.get("ingest"), "__file__", None)
            return "foreign", (
                f"on {platform.node()}, {sys.executable} finds {found or 'nothing'} for Reseen's package "
                f"`ingest` ({error}): "
                + (f"rename {found}, or work in another folder" if found else "install Reseen on every node")
            )

        def run(self, task: bytes) -> Any:
            return self.host.run(task)

        def stop(self) -> Any:
            return self.host.stop()

    return ReseenWorker
