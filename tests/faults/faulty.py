"""A store that fails where a test says: at the n-th operation, before, within or after it.

    store = faulty_store(url, at=7, fault="stop_before")     # the writer dies before its 7th operation
    with pytest.raises(Stopped):
        publish(store, ...)
    assert reader_sees_all_or_nothing(Store(url))            # a clean store over the same bytes

`count_operations(url, work)` says how far `at` can go. Operations are counted from 1, retries too.
"""

import errno
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, TypeVar

from ingest.store import UNFINISHED, Backend, LocalBackend, ObjectInfo, Store

T = TypeVar("T")

Stop = Literal["stop_before", "stop_within", "stop_after"]
Error = Literal["io_error", "no_space", "timeout", "lost_reply"]
Fault = Stop | Error

STOPS: tuple[Stop, ...] = ("stop_before", "stop_within", "stop_after")
ERRORS: tuple[Error, ...] = ("io_error", "no_space", "timeout", "lost_reply")
FAULTS: tuple[Fault, ...] = (*STOPS, *ERRORS)
STAYING: tuple[tuple[Error, int | None], ...] = tuple((error, None) for error in ERRORS)
PASSING: tuple[tuple[Error, int | None], ...] = (("io_error", 1), ("timeout", 1), ("lost_reply", 1))
WRITES = ("create", "replace", "delete")


class Stopped(BaseException):
    """The process died here. No `except Exception` catches it, as none survives a kill."""


class FaultyBackend:
    """Wraps a backend; does `fault` at operation `at` (from 1) and at the `times - 1` after it.

    Args:
        inner: where the bytes really are; a clean `Store` over it sees what a reader sees.
        at: the operation at which it happens; None for never.
        fault: `stop_before`, `stop_within` (a write leaves half of its bytes as a killed writer does: an
            unfinished file in a folder, nothing elsewhere; anything else stops before) and `stop_after`
            raise `Stopped`, and whatever the dead process would do next raises it again. `io_error`,
            `no_space` and `timeout` raise an error and do nothing; `lost_reply` does it, then times out.
        times: how many operations in a row fail; None for all from `at` on.
        verbs: count and fail only these (of create, replace, read, info, list, unfinished, delete).
    """

    def __init__(
        self,
        inner: Backend,
        at: int | None = None,
        fault: Fault | None = None,
        times: int | None = 1,
        verbs: Collection[str] | None = None,
    ) -> None:
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"no such fault: {fault}; there are {', '.join(FAULTS)}")
        self.inner = inner
        self.at = at
        self.fault = fault
        self.times = times
        self.verbs = verbs
        self.operations: list[tuple[str, str]] = []
        self.stopped = False
        self._lock = threading.Lock()

    def put_new(self, path: str, data: bytes) -> bool:
        return self._do("create", path, lambda: self.inner.put_new(path, data), data)

    def put_over(self, path: str, data: bytes) -> None:
        self._do("replace", path, lambda: self.inner.put_over(path, data), data)

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._do("read", path, lambda: self.inner.get(path, start, end))

    def info(self, path: str) -> ObjectInfo:
        return self._do("info", path, lambda: self.inner.info(path))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(self._do("list", prefix, lambda: list(self.inner.walk(prefix))))

    def unfinished(self) -> Iterator[ObjectInfo]:
        return iter(self._do("unfinished", "", lambda: list(self.inner.unfinished())))

    def remove(self, path: str) -> None:
        self._do("delete", path, lambda: self.inner.remove(path))

    def _do(self, verb: str, path: str, operation: Callable[[], T], data: bytes | None = None) -> T:
        fault = self._next_fault(verb, path)
        if fault == "stop_within" and data is not None:
            self._leave_half(path, data)
        if fault in ("stop_before", "stop_within"):
            raise self._stop(verb, path)
        if fault == "io_error":
            raise OSError(errno.EIO, "injected: input/output error")
        if fault == "no_space":
            raise OSError(errno.ENOSPC, "injected: no space left on device")
        if fault == "timeout":
            raise TimeoutError("injected: timed out")
        result = operation()
        if fault == "lost_reply":
            raise TimeoutError("injected: the reply was lost")
        if fault == "stop_after":
            raise self._stop(verb, path)
        return result

    def _next_fault(self, verb: str, path: str) -> Fault | None:
        with self._lock:
            if self.stopped:
                raise Stopped(f"stopped already, so it cannot {verb} {path}")
            if self.verbs is not None and verb not in self.verbs:
                return None
            self.operations.append((verb, path))
            number = len(self.operations)
        if self.at is None or number < self.at:
            return None
        return self.fault if self.times is None or number < self.at + self.times else None

    def _stop(self, verb: str, path: str) -> Stopped:
        self.stopped = True
        return Stopped(f"{self.fault} at operation {len(self.operations)}: {verb} {path}")

    def _leave_half(self, path: str, data: bytes) -> None:
        inner = self.inner
        if isinstance(inner, LocalBackend):
            target = inner.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f"{UNFINISHED}{uuid.uuid4().hex}").write_bytes(data[: len(data) // 2])


class InterruptedBackend(FaultyBackend):
    """Wraps a backend, and lets somebody else work just before its operation `moment` (from 1)."""

    def __init__(self, inner: Backend, moment: int, work: Callable[[], object]) -> None:
        super().__init__(inner)
        self.moment = moment
        self.work = work

    def _next_fault(self, verb: str, path: str) -> Fault | None:
        with self._lock:
            self.operations.append((verb, path))
            now = len(self.operations) == self.moment
        if now:
            self.work()
        return None


def interrupted_store(url: str, moment: int, work: Callable[[Store], object]) -> Store:
    """A store during whose operation `moment` another process does its work, with a clean store."""
    clean = Store(url)
    backend = InterruptedBackend(clean.backend, moment, lambda: work(clean))
    return Store(clean.url, clean.options, backend)


def faulty_store(
    url: str,
    at: int | None = None,
    fault: Fault | None = None,
    times: int | None = 1,
    verbs: Collection[str] | None = None,
    options: dict[str, Any] | None = None,
) -> Store:
    """A store that fails as told, with five attempts and no pauses; `Store(url)` sees the same bytes."""
    clean = Store(url, options or {})
    return Store(clean.url, clean.options, FaultyBackend(clean.backend, at, fault, times, verbs), (0.0,) * 4)


def operations_of(store: Store) -> list[tuple[str, str]]:
    """What a faulty store was asked to do so far: (verb, path)."""
    assert isinstance(store.backend, FaultyBackend)
    return store.backend.operations


def count_operations(url: str, work: Callable[[Store], object], verbs: Collection[str] | None = None) -> int:
    """How many storage operations `work` makes when nothing fails. Give it a URL of its own."""
    store = faulty_store(url, verbs=verbs)
    work(store)
    return len(operations_of(store))
