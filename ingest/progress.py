"""Progress of long work: how much is done, how fast, how long it will take, how many were rejected.

A live bar on a terminal; plain lines, one every few seconds, where standard error is a file or a pipe.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

LINE_EVERY_S = 5.0

Clock = Callable[[], float]


class Stage(Protocol):
    """A stretch of work under way."""

    def advance(self, n: int = 1, rejects: int = 0) -> None:
        """`n` more are done, `rejects` of them rejected."""


class Progress(Protocol):
    """Where a run tells how far it is."""

    def stage(self, name: str, total: int | None, unit: str = "images") -> AbstractContextManager[Stage]:
        """One stretch of work, for a `with` statement; `total` is None where nobody knows it yet."""


@dataclass
class Tally:
    """The figures of a stage. Times are in seconds by the clock that made it."""

    name: str
    total: int | None
    unit: str
    begun: float
    done: int = 0
    rejects: int = 0

    def count(self, n: int, rejects: int) -> None:
        self.done += n
        self.rejects += rejects

    def rate(self, now: float) -> float:
        """Per second, since the beginning; start-up counts, so the time left errs on the long side."""
        return self.done / max(now - self.begun, 1e-9)

    def left_s(self, now: float) -> float | None:
        """Seconds until the end at the rate so far; None while nobody can tell."""
        if self.total is None or self.done == 0:
            return None
        return max(0, self.total - self.done) / self.rate(now)

    def figures(self, now: float) -> str:
        """`1,200 of 40,000 images, 310/s, 2 min 05 s left, 14 rejected`."""
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.done:,}{of} {self.unit}", f"{_rate(self.rate(now))}/s"]
        left = self.left_s(now)
        if left is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join([*parts, f"{self.rejects:,} rejected"])

    def summary(self, now: float, finished: bool) -> str:
        """The last line of a stage: what was done, in what time."""
        of = "" if finished or self.total is None else f" of {self.total:,}"
        done = f"{self.done:,}{of} {self.unit} in {duration(now - self.begun)}"
        text = f"{done}, {_rate(self.rate(now))}/s, {self.rejects:,} rejected"
        return text if finished else f"stopped after {text}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """A time as people say it, two units at most: `42 s`, `2 min 05 s`, `3 h 10 min`, `2 d 04 h`."""
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in _UNITS:
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller:02d} {smaller_unit}"
    return f"{whole} s"


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "images") -> Iterator[Stage]:
        yield _SilentStage()


class _SilentStage:
    def advance(self, n: int = 1, rejects: int = 0) -> None:
        pass


class LineProgress:
    """Plain lines: at most one every `every_s` seconds, and one at the end of each stage."""

    def __init__(
        self, stream: TextIO | None = None, clock: Clock = time.monotonic, every_s: float = LINE_EVERY_S
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._every_s = every_s

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "images") -> Iterator[Stage]:
        tally = Tally(name, total, unit, self._clock())
        finished = False
        try:
            yield _LineStage(tally, self._write, self._clock, self._every_s)
            finished = True
        finally:
            self._write(f"{name}: {tally.summary(self._clock(), finished)}")

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class _LineStage:
    def __init__(self, tally: Tally, write: Callable[[str], None], clock: Clock, every_s: float) -> None:
        self._tally = tally
        self._write = write
        self._clock = clock
        self._every_s = every_s
        self._last = tally.begun

    def advance(self, n: int = 1, rejects: int = 0) -> None:
        self._tally.count(n, rejects)
        now = self._clock()
        if now - self._last >= self._every_s:
            self._last = now
            self._write(f"{self._tally.name}: {self._tally.figures(now)}")


class BarProgress:
    """A live bar on a terminal. What else is printed meanwhile goes through `console`, above the bar."""

    def __init__(self, console: "Console | None" = None, clock: Clock = time.monotonic) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self._clock = clock

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "images") -> Iterator[Stage]:
        from rich.progress import BarColumn, Progress, TextColumn

        tally = Tally(name, total, unit, self._clock())
        title = TextColumn("{task.description}", markup=False)
        columns = (title, BarColumn(), _figures_column(tally, self._clock))
        finished = False
        try:
            with Progress(*columns, console=self.console, get_time=self._clock, transient=True) as bar:
                task = bar.add_task(name, total=total)

                def moved() -> None:
                    bar.update(task, completed=tally.done)

                yield _BarStage(tally, moved)
                finished = True
        finally:
            last = f"{name}: {tally.summary(self._clock(), finished)}"
            self.console.print(last, markup=False, highlight=False)


def _figures_column(tally: Tally, clock: Clock) -> "ProgressColumn":
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class FiguresColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(tally.figures(clock()))

    return FiguresColumn()


class _BarStage:
    def __init__(self, tally: Tally, moved: Callable[[], None]) -> None:
        self._tally = tally
        self._moved = moved

    def advance(self, n: int = 1, rejects: int = 0) -> None:
        self._tally.count(n, rejects)
        self._moved()


def open_progress(quiet: bool = False) -> Progress:
    """The progress that fits standard error: a bar on a terminal, lines elsewhere, nothing if `quiet`."""
    if quiet:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()
