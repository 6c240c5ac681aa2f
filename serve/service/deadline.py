"""Deadlines: when an answer is of no use any more, and how the time until then is shared out."""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]  # seconds, as `time.monotonic` counts them: an event loop's `time`


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock, in its seconds."""

    at: float
    clock: Clock

    def left(self) -> float:
        """Seconds until then; 0 afterwards."""
        return max(0.0, self.at - self.clock())

    @property
    def over(self) -> bool:
        return self.clock() >= self.at

    def part(self, share: float) -> "Deadline":
        """The deadline of a step that may take this share of the time that is left."""
        now = self.clock()
        return Deadline(now + max(0.0, self.at - now) * share, self.clock)
