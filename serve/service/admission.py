"""Admission: so many requests at once, so many that wait, and a refusal at once for what cannot be in time.

A queue that only grows answers nobody. Here a request is taken or waits if it can be answered before its
deadline, by the rate at which requests were answered of late while there were many; otherwise it is refused
with the time after which it may come back.
"""

import asyncio
from collections import deque
from types import TracebackType

from serve.metrics import Metrics
from serve.refusals import Overloaded
from serve.service.deadline import Clock, Deadline

_CAUTION = 1.25  # times what an answer is expected to take
_MEMORY = 2  # full houses of answers that the rate is made of
_SOONEST_S = 0.1
_Waiter = tuple["asyncio.Future[bool]", Deadline]


class Gate:
    """Bounds the requests of one kind. For one event loop.

    Attributes:
        running: requests inside; at most `most`.
        waiting: requests that wait; at most `queue`.
    """

    def __init__(self, kind: str, most: int, queue: int, clock: Clock, metrics: Metrics) -> None:
        self._kind, self._most, self._queue = kind, most, queue
        self._clock, self._metrics = clock, metrics
        self._waiters: deque[_Waiter] = deque()
        self._rate = _Rate(_MEMORY * most)
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def admitted(self, deadline: Deadline) -> "_Stay":
        """A context of one request inside; entering raises `Overloaded` where it cannot be in time."""
        return _Stay(self, deadline)

    async def enter(self, deadline: Deadline) -> None:
        ahead = self.running + len(self._waiters)
        full = self.running >= self._most or bool(self._waiters)
        if (full and len(self._waiters) >= self._queue) or (ahead and not self._in_time(ahead, deadline)):
            raise self._overloaded()
        if full:
            await self._wait(deadline)
        else:
            self._take()

    async def _wait(self, deadline: Deadline) -> None:
        place = asyncio.get_running_loop().create_future()
        waiter = (place, deadline)
        self._waiters.append(waiter)
        self._metrics.gauge("queued", len(self._waiters), kind=self._kind)
        try:
            async with asyncio.timeout_at(deadline.at):
                taken = await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.result():  # it came in the same moment
                self.leave()
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._metrics.gauge("queued", len(self._waiters), kind=self._kind)
        if not taken:
            raise self._overloaded()

    def leave(self) -> None:
        """Gives the place to the next that waits; who could not be answered in time any more is sent away."""
        self._rate.left(self._clock(), busy=2 * self.running >= self._most)
        self.running -= 1
        while self._waiters and self.running < self._most:
            place, deadline = self._waiters.popleft()
            if not place.done():
                in_time = not self.running or self._in_time(self.running, deadline)
                if in_time:
                    self._take()
                place.set_result(in_time)
        self._metrics.gauge("in_flight", self.running, kind=self._kind)

    def _take(self) -> None:
        self.running += 1
        if self.running in (1, (self._most + 1) // 2):  # there was nothing to do, or little
            self._rate.begins(self._clock())
        self._metrics.gauge("in_flight", self.running, kind=self._kind)

    def _in_time(self, ahead: int, deadline: Deadline) -> bool:
        """Whether a request can be answered in time after so many others, at an even rate."""
        return _CAUTION * (ahead + 1) * self._rate.gap_s <= deadline.left()

    def _overloaded(self) -> Overloaded:
        self._rate.pressed = True
        self._metrics.count("shed", kind=self._kind)
        ahead = self.running + len(self._waiters)
        return Overloaded(max(_SOONEST_S, ahead * self._rate.gap_s))


class _Rate:
    """How fast requests leave while there are many: what a few that come slowly take says nothing about it.

    Attributes:
        gap_s: between two that leave; 0 before anything is known.
        pressed: somebody was refused since one left last.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._seconds, self._count, self._last = 0.0, 0.0, float("inf")
        self.gap_s = 0.0
        self.pressed = False

    def begins(self, now: float) -> None:
        """From now on there is something to be measured."""
        self._last = now

    def left(self, now: float, busy: bool) -> None:
        if busy or self.pressed:
            self._seconds += max(0.0, now - self._last)
            self._count += 1
            if self._count > self._memory:
                self._seconds, self._count = self._seconds / 2, self._count / 2
            self.gap_s = self._seconds / self._count
        self._last = now
        self.pressed = False


class _Stay:
    def __init__(self, gate: Gate, deadline: Deadline) -> None:
        self._gate, self._deadline = gate, deadline

    async def __aenter__(self) -> None:
        await self._gate.enter(self._deadline)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave()
