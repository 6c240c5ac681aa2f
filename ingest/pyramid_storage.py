"""How the projected pyramid of an image (`ingest.network_cvnet`) is stored, and what that costs.

A pyramid is three maps of 256 channels: 256 numbers a cell, 5,370 cells for 1024 x 768 pixels. It is most of
what a gallery stores: 5.5 MB an image of that size as float32, 2.75 MB as float16, 1.4 MB as int8; for ten
million images 55, 27 and 14 TB. A cap on the map's longest side bounds it. The cells, and with them the cost,
fall with its square (16 cells, as for 256 pixels: .23 MB at most as float16); so does what reranking sees.

The correlation divides each cell by its length, so a factor a cell is never seen in a score: int8 has a step
of its own for each cell, and a cell beyond the range of float16 is scaled into it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

from ingest.errors import BadInput

PyramidStorage = Literal["float32", "float16", "int8"]

_LEVELS = 3
_LARGEST_INT8 = 127
_LEAST_SIDE = 2  # half of it is the least side of a level


def to_stored(
    maps: Sequence[Float32[np.ndarray, "c h w"]],
    storage: PyramidStorage,
    longest_map_side: int | None = None,
) -> dict[str, np.ndarray]:
    """A pyramid as named arrays.

    Args:
        maps: (256, h, w) float32 for each level, the largest last.
        storage: the type of the numbers.
        longest_map_side: a pyramid whose largest map is longer is first reduced, each level bilinearly with
            aligned corners, to the sizes that the pyramid of a map of `capped_size` has; None for no cap.

    Returns:
        `scale0`, `scale1`, `scale2`: (256, h, w) in the type of `storage`. With int8, the numbers are
        value / step, rounded, from -127 to 127; `steps0` to `steps2`: (h, w) float32, the largest absolute
        value of each cell / 127 (0 where all are 0).

    Raises:
        BadInput: there are not three maps of one number of channels, or a value is not finite.
    """
    _check(maps)
    stored = {}
    for number, values in enumerate(_capped(maps, longest_map_side)):
        if storage == "int8":
            steps = np.abs(values).max(axis=0) / np.float32(_LARGEST_INT8)
            shares = values / np.where(steps > 0, steps, np.float32(1))
            stored[f"scale{number}"] = np.rint(shares).clip(-_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
            stored[f"steps{number}"] = steps
        elif storage == "float16":
            stored[f"scale{number}"] = _within_float16(values).astype(np.float16)
        else:
            stored[f"scale{number}"] = np.ascontiguousarray(values, np.float32)
    return stored


def from_stored(arrays: Mapping[str, np.ndarray]) -> list[Float32[np.ndarray, "c h w"]]:
    """The pyramid in what `to_stored` returned, as float32: each number times its cell's step, if it has one.

    Raises:
        BadInput: an array is missing.
    """
    maps = []
    for number in range(_LEVELS):
        values = _named(arrays, f"scale{number}")
        if values.dtype == np.int8:
            values = values * _named(arrays, f"steps{number}")
        maps.append(values.astype(np.float32, copy=False))
    return maps


def stored_bytes(
    height: int, width: int, storage: PyramidStorage, stride: int = 16, longest_map_side: int | None = None
) -> int:
    """Bytes that the pyramid of one image takes, without the container's header (some 300 bytes).

    Args:
        height: of the image as the network sees it, in pixels.
        width: likewise.
        storage: the type of the numbers.
        stride: pixels a cell; a part of a cell makes a cell more.
        longest_map_side: as in `to_stored`.

    Raises:
        BadInput: the image is too small for a pyramid.
    """
    from ingest.network_cvnet import PROJECTED_CHANNELS, pyramid_sizes

    size = capped_size(-(-height // stride), -(-width // stride), longest_map_side)
    cells = sum(rows * columns for rows, columns in pyramid_sizes(*size))
    bytes_a_cell = PROJECTED_CHANNELS * np.dtype(storage).itemsize + (4 if storage == "int8" else 0)
    return cells * bytes_a_cell


def capped_size(height: int, width: int, longest: int | None) -> tuple[int, int]:
    """(rows, columns) of a map reduced, in its proportions, until its longest side is at most `longest`.

    A side of 2 cells or more keeps 2, so that it has a pyramid.

    Raises:
        BadInput: `longest` below 2.
    """
    if longest is None or max(height, width) <= longest:
        return height, width
    if longest < _LEAST_SIDE:
        raise BadInput(f"longest_map_side is {longest}; a pyramid needs {_LEAST_SIDE} cells or more a side")
    factor = longest / max(height, width)
    return (
        min(height, max(_LEAST_SIDE, round(height * factor))),
        min(width, max(_LEAST_SIDE, round(width * factor))),
    )


def _check(maps: Sequence[np.ndarray]) -> None:
    shapes = [values.shape for values in maps]
    if len(maps) != _LEVELS or any(values.ndim != 3 for values in maps) or len({s[0] for s in shapes}) != 1:
        raise BadInput(f"a pyramid is {_LEVELS} maps (channels, h, w) of equal channels, not {shapes}")
    if not all(np.isfinite(values).all() for values in maps):
        raise BadInput("the pyramid has values that are infinite or no numbers; check the network's weights")


def _named(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise BadInput(
            f"the stored pyramid has no {name!r} (it has {', '.join(sorted(arrays)) or 'nothing'}); extract "
            "the features again, with the pyramid among them"
        )
    return arrays[name]


def _within_float16(values: Float32[np.ndarray, "c h w"]) -> Float32[np.ndarray, "c h w"]:
    excess = np.abs(values).max(axis=0) / np.float32(np.finfo(np.float16).max)
    return values / np.maximum(excess, 1) if excess.max(initial=0) > 1 else values


def _capped(
    maps: Sequence[Float32[np.ndarray, "c h w"]], longest: int | None
) -> Sequence[Float32[np.ndarray, "c h w"]]:
    from ingest.network_cvnet import pyramid_sizes

    height, width = maps[-1].shape[1:]
    size = capped_size(height, width, longest)
    if size == (height, width):
        return maps
    return [_reduced(values, *sides) for values, sides in zip(maps, pyramid_sizes(*size), strict=True)]


def _reduced(values: Float32[np.ndarray, "c h w"], rows: int, columns: int) -> Float32[np.ndarray, "c i j"]:
    """Bilinear, corners aligned."""
    _, height, width = values.shape
    down, across = _weights(rows, height), _weights(columns, width)
    return np.ascontiguousarray(down @ values @ across.T, np.float32)


def _weights(positions: int, given: int) -> Float32[np.ndarray, "i h"]:
    """(positions, given): the weight of each given value in each of some equally spaced positions."""
    at = np.linspace(0, given - 1, positions)
    nearness = 1 - np.abs(at[:, None] - np.arange(given))
    return nearness.clip(min=0).astype(np.float32)
