"""An event loop whose clock stands still while there is work, and jumps to the next timer when there is none.

What is written against deadlines and pauses runs in no time, and the same way each time.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector:
    """Waits for nothing: what would be a wait moves the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop, self._real = loop, selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise AssertionError("everything waits, and nothing will ever happen")
        self._loop.now += timeout
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now`: seconds since it was made."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))  # type: ignore[arg-type]
        self.now = 0.0

    def time(self) -> float:
        return self.now


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine; fails where it leaves tasks behind."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(work)
        loop.run_until_complete(asyncio.sleep(0))  # what was cancelled ends
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        assert not left, f"left running: {left}"
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()
