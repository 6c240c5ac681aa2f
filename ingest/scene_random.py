"""Random numbers that are the same on every machine and with every library: splitmix64 by counter.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". Only integer arithmetic
modulo 2^64, and multiplication of doubles by powers of two, so no rounding differs anywhere.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt64

T = TypeVar("T")

_ALL = (1 << 64) - 1
_STEP, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX1) & _ALL
    z = ((z ^ (z >> 27)) * _MIX2) & _ALL
    return z ^ (z >> 31)


class Draws:
    """A stream of draws, named by a path of integers; streams of different paths are independent."""

    def __init__(self, *path: int) -> None:
        state = 0
        for part in path:
            state = _mixed((state + _STEP + part) & _ALL)
        self._state = state

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + _STEP) & _ALL
        return _mixed(self._state)

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return (self.bits() >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self.below(high - low + 1) if high > low else low

    def real(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def array(self, n: int) -> UInt64[np.ndarray, " n"]:
        """(n,) uint64 of random bits, as n calls of `bits` would give."""
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(self._state)
        self._state = (self._state + n * _STEP) & _ALL
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
        return z ^ (z >> np.uint64(31))

    def bytes(self, n: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """(n,) uint8; the same on machines of either byte order."""
        return self.array(-(-n // 8)).astype("<u8").view(np.uint8)[:n]
