"""Comparing two ways of doing the same work on a machine that others may use too."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """What each way returns, `repeats` times, in turns (A B A B ...): what slows one slows the other."""
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            results[name].append(way())
    return results


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, the least and the most of them."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The spread of the ratios, turn by turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
