"""Decoded pixels become a network's input: resized as uint8, then normalised; equal sizes meet in a batch.

Nothing is ever padded, so what an image gives does not depend on what it is batched with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from ingest.network_kinds import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


def reduction(height: int, width: int, longest: int) -> float:
    """The scale that brings the longest side down to `longest` pixels; 1 for what is small enough."""
    return min(1.0, longest / max(height, width))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times a scale, each rounded (halves to even), at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(
    pixels: UInt8[np.ndarray, "h w 3"], scale: float, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "i j 3"]:
    """An image times a scale, of the size of `scaled_size`; as it is if that is its size.

    Corners keep their places: pixel x of the result is centred on `(x + 0.5) w / w' - 0.5` of the image.
    """
    import cv2

    height, width = scaled_size(pixels.shape[0], pixels.shape[1], scale)
    if (height, width) == pixels.shape[:2]:
        return pixels
    rules = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
    rule = rules[preprocessing.shrink if scale < 1 else preprocessing.enlarge]
    resized: np.ndarray = cv2.resize(pixels, (width, height), interpolation=rule)
    return resized


def to_tensor(pixels: UInt8[np.ndarray, "h w 3"], preprocessing: Preprocessing) -> "Float32[Tensor, '3 h w']":
    """A network's input, on the CPU: `(value / scale - mean) / std`, channels in the network's order.

    Args:
        pixels: (h, w, 3) uint8, RGB.

    Returns:
        (3, h, w) float32, contiguous.
    """
    import cv2
    import torch

    # Only 256 values go in: they are computed, in float64, and looked up plane by plane.
    values = np.arange(256)[:, None] / preprocessing.scale
    table = ((values - preprocessing.mean) / preprocessing.std).astype(np.float32)
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    for place, channel in enumerate((0, 1, 2) if preprocessing.order == "rgb" else (2, 1, 0)):
        plane = np.ascontiguousarray(pixels[:, :, channel])
        planes[place] = cv2.LUT(plane, np.ascontiguousarray(table[:, place]))
    return torch.from_numpy(planes)


def groups_by_size(sizes: Sequence[tuple[int, int]], batch: int) -> list[list[int]]:
    """The places of images of equal (height, width), at most `batch` together.

    Places ascend within a group; groups come in the order in which their sizes first appear.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        by_size.setdefault(size, []).append(place)
    return [
        places[start : start + batch] for places in by_size.values() for start in range(0, len(places), batch)
    ]
