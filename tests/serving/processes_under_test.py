"""Faults and memory of processes that a test started, by their ids, read from /proc (Linux)."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.processes import children, resident_mib

_SOON_S = 20.0


def tree(pid: int) -> list[int]:
    """A process and all its living descendants, itself first."""
    return [pid, *sorted(set(children(pid)))]


def state(pid: int) -> str:
    """R, S, D, T (stopped), Z (dead, its parent has not looked); empty if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def kill(pid: int) -> None:
    """SIGKILL; returns when nothing of it runs any more."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _wait(pid, ("", "Z"))


def stop(pid: int) -> None:
    """SIGSTOP; returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    _wait(pid, ("T", "", "Z"))


def resume(pid: int) -> None:
    """SIGCONT."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process stands still; it goes on at the end, whatever happens."""
    stop(pid)
    try:
        yield
    finally:
        resume(pid)


def _wait(pid: int, states: tuple[str, ...]) -> None:
    deadline = time.monotonic() + _SOON_S
    while state(pid) not in states:
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {pid} is in state {state(pid)!r}, not in one of {states}")
        time.sleep(0.002)


@dataclass(frozen=True)
class Sample:
    """Resident memory at a moment, seconds since 1970: MiB by process, shared pages in each."""

    at: float
    mib: dict[int, float]

    @property
    def total(self) -> float:
        return sum(self.mib.values())


@dataclass
class MemorySampler:
    """Looks at the memory of some processes and their descendants again and again. A context manager."""

    pids: tuple[int, ...]
    period_s: float = 0.1
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> "MemorySampler":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            at = time.time()
            pids = {each for pid in self.pids for each in tree(pid)}
            found = {pid: resident_mib(pid) for pid in pids}
            self.samples.append(Sample(at, {pid: mib for pid, mib in found.items() if mib}))
            if self._ended.wait(self.period_s):
                return

    @property
    def peak(self) -> float:
        """The largest sum over all processes, MiB."""
        return max((sample.total for sample in self.samples), default=0.0)

    def median(self, since: float, until: float) -> float:
        """The median sum between two moments, MiB; NaN without a sample."""
        found = sorted(sample.total for sample in self.samples if since <= sample.at <= until)
        return found[len(found) // 2] if found else float("nan")
