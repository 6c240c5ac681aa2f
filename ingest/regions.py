"""Regions of a network's map: the nine of SFRS (Ge et al. 2020) and R-MAC's grid (Tolias et al. 2016).

A region is a rectangle of whole cells. All lists begin with the whole map, and depend on its sides alone.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from ingest.errors import BadInput

_OVERLAP = 0.4  # of neighbouring squares of the coarsest level: what R-MAC comes as near to as it can
_MOST_EXTRA = 6  # squares added along the longer side, at most


class RegionSettings(BaseModel):
    """The regions that are pooled apart, for objects that fill a small part of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "sfrs", "rmac"] = Field(
        default="none",
        description="none: the whole map alone; sfrs: the whole, its halves and quarters (9 vectors an image "
        "instead of 1); rmac: the whole and R-MAC's grid (15 for a square image, 21 for 5:3, at 3 levels)",
    )
    levels: int = Field(
        default=3,
        ge=1,
        le=6,
        description="of rmac's grid; level l adds about l^2 regions, 2/(l+1) of the side",
    )


class Region(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of a map, the ends excluded, in cells."""

    y0: int
    x0: int
    y1: int
    x1: int


def regions_of(h: int, w: int, settings: RegionSettings) -> list[Region]:
    """The regions of a map of h x w cells; the first is the whole.

    Raises:
        BadInput: the map has no cells.
    """
    if min(h, w) < 1:
        raise BadInput(f"a map of {h} x {w} cells has no regions: the image is too small for the network")
    if settings.kind == "sfrs":
        return sfrs_regions(h, w)
    if settings.kind == "rmac":
        return rmac_regions(h, w, settings.levels)
    return [Region(0, 0, h, w)]


def region_boxes(h: int, w: int, settings: RegionSettings) -> Float32[np.ndarray, "r 4"]:
    """The regions as (r, 4) x0, y0, x1, y1 in fractions of the map's sides, 0 to 1, in the same order."""
    boxes = [
        (region.x0 / w, region.y0 / h, region.x1 / w, region.y1 / h) for region in regions_of(h, w, settings)
    ]
    return np.array(boxes, np.float32)


def sfrs_regions(h: int, w: int) -> list[Region]:
    """The whole, top, bottom, left, right, and the quarters top-left, top-right, bottom-left, bottom-right.

    The cell in the middle of an odd side belongs to the first half (top, left), so that the quarters share
    no cell and together are the whole. A side of one cell cannot be cut: both its halves are that cell,
    which then counts twice in sums over quarters, for every region alike.
    """
    (top, bottom), (left, right), rows, columns = _halves(h), _halves(w), (0, h), (0, w)
    pairs = [(rows, columns), (top, columns), (bottom, columns), (rows, left), (rows, right)]
    pairs += [(vertical, horizontal) for vertical in (top, bottom) for horizontal in (left, right)]
    return [Region(ys[0], xs[0], ys[1], xs[1]) for ys, xs in pairs]


def _halves(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    if side == 1:
        return (0, 1), (0, 1)
    middle = (side + 1) // 2
    return (0, middle), (middle, side)


def rmac_regions(h: int, w: int, levels: int = 3) -> list[Region]:
    """The whole, then R-MAC's squares, level by level, row by row (Tolias et al. 2016, section 3.2).

    Level l has squares of side `2 min(h, w) / (l + 1)`, l along the shorter side and l + m along the longer,
    spread evenly from border to border. m is chosen so that squares of level 1 overlap by 40 % as nearly as
    may be: 0 for a square map, 1 for 12 x 20 (21 regions with the whole). Levels whose squares would be
    smaller than a cell are left out.
    """
    shorter, longer = min(h, w), max(h, w)
    extra = _extra_squares(shorter, longer)
    found = [Region(0, 0, h, w)]
    for level in range(1, levels + 1):
        side = 2 * shorter // (level + 1)
        if side == 0:
            break
        starts_y = _starts(h, side, level + (extra if h > w else 0))
        starts_x = _starts(w, side, level + (extra if w > h else 0))
        found += [Region(y, x, y + side, x + side) for y in starts_y for x in starts_x]
    return found


def _extra_squares(shorter: int, longer: int) -> int:
    if shorter == longer:
        return 0
    overlaps = [1 - (longer - shorter) / (shorter * extra) for extra in range(1, _MOST_EXTRA + 1)]
    return 1 + int(np.argmin([abs(overlap - _OVERLAP) for overlap in overlaps]))


def _starts(length: int, side: int, count: int) -> list[int]:
    """The first cells of `count` squares spread evenly over a length, rounded down."""
    return [place * (length - side) // max(1, count - 1) for place in range(count)]
