"""Networks small enough to follow, which recipes name by import path, and whose calls tests can watch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PATH = "tests.ingest.tiny_networks"
_calls: list[tuple[int, ...]] = []


@contextmanager
def watched() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all batches that these networks see inside the block."""
    _calls.clear()
    yield _calls


class Averages(nn.Module):
    """`near`: the mean colours of cells of 8 x 8 pixels; `far`: five sums of the colours of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        _calls.append(tuple(x.shape))
        near = functional.avg_pool2d(x, 8, ceil_mode=True)
        return {"near": near, "far": self.mix(functional.avg_pool2d(near, 2, ceil_mode=True))}


def network(name: str, weights: str = "seed:0", **others: Any) -> dict[str, Any]:
    """Settings of one of them, as a recipe has them."""
    return {"name": "module", "factory": f"{PATH}:{name}", "weights": weights, **others}


def averages_state(seed: int = 0) -> dict[str, Tensor]:
    """Weights for `Averages`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "mix.weight": torch.randn(5, 3, 1, 1, generator=generator),
        "mix.bias": torch.randn(5, generator=generator),
    }
