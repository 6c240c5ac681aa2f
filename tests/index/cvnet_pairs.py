"""What the tests of CVNet-Rerank share: seeded weights and maps, and the published formula, plainly."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from index.cvnet import CvLearner, load_learner
from tests.golden.seeded import tensor, weight

GOLDEN = Path(__file__).parents[1] / "golden" / "cvnet.npz"
SCALES = (0.5, 0.7071, 1.0)


def golden(name: str) -> np.ndarray:
    with np.load(GOLDEN) as file:
        return file[name]


def relative_error(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    difference = np.abs(np.asarray(found) - np.asarray(expected))
    return float(difference.max() / np.abs(np.asarray(expected)).max())


@cache
def seeded_learner() -> CvLearner:
    shapes = {f"cv_learner.{name}": tuple(own.shape) for name, own in CvLearner().state_dict().items()}
    learner = load_learner({name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    return learner.requires_grad_(False)


@cache
def golden_pyramids() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of the feature maps `fq` (10, 7) and `fk` (6, 9)."""
    weights = [weight(f"conv2ds.{scale}.weight", (256, 1024, 3, 3)) for scale in range(3)]

    def projected(features: np.ndarray) -> list[np.ndarray]:
        levels = []
        for scale, kernel in zip(SCALES, weights, strict=True):
            size = [round(side * scale) for side in features.shape[2:]]
            resized = functional.interpolate(
                torch.from_numpy(features), size, mode="bilinear", align_corners=True
            )
            levels.append(functional.conv2d(resized, torch.from_numpy(kernel), padding=1)[0].numpy())
        return levels

    return projected(tensor("fq", (1, 1024, 10, 7))), projected(tensor("fk", (1, 1024, 6, 9)))


def random_pyramid(height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth random maps, so that neighbouring cells are alike as in an image, off zero mean as there."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.standard_normal((1, 256, -(-height // 3) + 1, -(-width // 3) + 1)) + 0.5)
    levels = []
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        level = functional.interpolate(coarse, size, mode="bilinear", align_corners=True)[0].numpy()
        levels.append((level + 0.3 * rng.standard_normal(level.shape)).astype(np.float32))
    return levels


def tensors(pyramid: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(level)[None] for level in pyramid]


def plain_correlation(query: Sequence[np.ndarray], key: Sequence[np.ndarray]) -> Tensor:
    """(9, hq, wq, hk, wk) float64, as published: each of the 9 whole, then resized in 4-D, then cut off."""
    found = []
    for q in query:
        for k in key:
            a, b = (torch.from_numpy(level).double().flatten(1) for level in (q, k))
            products = (a.T @ b) / (a.norm(dim=0)[:, None] * b.norm(dim=0) + 1e-8)
            found.append(resized_4d(products.view(*q.shape[1:], *k.shape[1:]), query[-1], key[-1]))
    return torch.stack(found).clamp(min=0)


def resized_4d(x: Tensor, query: np.ndarray, key: np.ndarray) -> Tensor:
    over_query = functional.interpolate(
        x.flatten(2).permute(2, 0, 1)[None], query.shape[1:], mode="bilinear", align_corners=True
    )
    turned = over_query[0].flatten(1).T.reshape(1, -1, *x.shape[2:])
    over_key = functional.interpolate(turned, key.shape[1:], mode="bilinear", align_corners=True)
    return over_key.view(*query.shape[1:], *key.shape[1:])
