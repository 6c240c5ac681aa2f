"""Cross-scale correlation of two images (CVNet, Lee et al. 2022, section 3.2).

Each image is a pyramid, three projected maps of 256 channels. Every map of the query is compared with every
map of the key, `q.k / (|q| |k|)` for each pair of their cells. Each of the 9 results is resized (bilinear,
corners aligned) to the sizes of both largest maps, then cut off at 0.

Resizing is linear in each image, and so need not wait for the products. One image is resized first: columns
of unit length, at the cells that are asked for, its *rows*. Across the other image the products are resized,
by a matrix from each side. All 9 come out as maps over the other image, ready for a convolution. The
network's first layer reads the correlation only where one of the two images is at a *pivot*, every second
cell in both directions: half of it is never made.

The published 1e-8 beside `|q| |k|` stands beside each length here; the two agree to 1e-6 where lengths are .1
or more, and a cell of zeros correlates with nothing in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEVELS = 3
_EPS = 1e-8


@dataclass(frozen=True)
class Columns:
    """What a correlation needs of an image, or of p images of equal sizes. It depends on no other image.

    Attributes:
        levels: (p, h_i w_i, 256) for each level of the pyramid, the largest last; unit length.
        sides: (h_i, w_i) of each level.
        rows: (p, hs, ws, 3, 256), the unit columns of each level resized to the largest, at every `step`-th
            cell of it in both directions.
    """

    levels: tuple[Float[Tensor, "p n c"], ...]
    sides: tuple[tuple[int, int], ...]
    rows: Float[Tensor, "p hs ws l c"]


def columns(pyramid: Sequence[Float[Tensor, "p c h w"]], step: int) -> Columns:
    """Prepares images of equal sizes.

    Args:
        pyramid: (p, 256, h_i, w_i) for each level, the largest last.
        step: from row to row: the stride of the layer that reads the correlation; 1 for all cells.
    """
    unit = [level / (torch.linalg.vector_norm(level, dim=1, keepdim=True) + _EPS) for level in pyramid]
    size = unit[-1].shape[2:]
    rows = [_resized(level, size)[:, :, ::step, ::step].permute(0, 2, 3, 1) for level in unit]
    return Columns(
        levels=tuple(level.flatten(2).transpose(1, 2) for level in unit),
        sides=tuple((level.shape[2], level.shape[3]) for level in unit),
        rows=torch.stack(rows, dim=3),
    )


def _resized(level: Float[Tensor, "p c h w"], size: Sequence[int]) -> Float[Tensor, "p c i j"]:
    if level.shape[2:] == size:
        return level
    return functional.interpolate(level, size=size, mode="bilinear", align_corners=True)


def together(several: Sequence[Columns]) -> Columns:
    """Columns of images of equal sizes as one."""
    if len(several) == 1:
        return several[0]
    levels = zip(*(one.levels for one in several), strict=True)
    return Columns(
        levels=tuple(torch.cat(level) for level in levels),
        sides=several[0].sides,
        rows=torch.cat([one.rows for one in several]),
    )


def correlate_rows(
    rows: Float[Tensor, "p m l c"], image: Columns, rows_are_query: bool
) -> Float[Tensor, "p m k h w"]:
    """Correlations of some cells of one image with all cells of the other, pair by pair.

    Args:
        rows: (p, m, 3, 256), some of the `rows` of one image.
        image: the other image.
        rows_are_query: whether `rows` is of the query; if not, `image` is.

    Returns:
        (p, m, 9, h, w), from 0 to 1; the query's level is outermost in the 9, (h, w) is the largest level of
        `image`.
    """
    size = image.sides[-1]
    found = []
    for level, sides in zip(image.levels, image.sides, strict=True):
        products = (rows.flatten(1, 2) @ level.transpose(1, 2)).view(-1, *sides)
        found.append(_spread(products, size).view(*rows.shape[:3], *size))
    return torch.stack(found, dim=3 if rows_are_query else 2).flatten(2, 3).relu_()


def _spread(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n i j"]:
    """Bilinear, corners aligned; by a matrix from each side, in a third of the time of torch's own."""
    if maps.shape[1:] == size:
        return maps
    down, across = (_weights(n, given, maps) for n, given in zip(size, maps.shape[1:], strict=True))
    return down @ (maps.flatten(0, 1) @ across.T).view(len(maps), -1, size[1])


def _weights(positions: int, given: int, like: Tensor) -> Float[Tensor, "i h"]:
    """(positions, given): the weight of each given value in each position of the resized axis."""
    identity = torch.eye(given, dtype=like.dtype, device=like.device)
    return functional.interpolate(identity[None], size=positions, mode="linear", align_corners=True)[0].T


def correlation(query: Columns, key: Columns) -> Float[Tensor, "p k hq wq hk wk"]:
    """The whole correlation, as published: (p, 9, hq, wq, hk, wk), from 0 to 1, the query's level outermost.

    Args:
        query: prepared with a step of 1.
        key: with any step.
    """
    found = correlate_rows(query.rows.flatten(1, 2), key, rows_are_query=True)
    return found.view(len(found), *query.sides[-1], *found.shape[2:]).permute(0, 3, 1, 2, 4, 5)
