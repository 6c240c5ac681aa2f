"""The hybrid: patches as local features, each described by a network (Zheng et al. 2018, section 4.2).

Patches lie on a grid, on maximally stable regions (Matas et al. 2002) or on SIFT key points; each is cut out,
resized to one size and pooled. The descriptors are aggregated as any local features are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from jaxtyping import Float64, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ingest.decode import Decoded
from ingest.devices import Devices
from ingest.image_features import Arrays, Found, to_float16
from ingest.image_tensors import resize, to_tensor
from ingest.networks import NETWORKS, NetworkSettings
from ingest.pooling import PoolingSettings, pool
from ingest.sift import SiftSettings
from ingest.sift import describe as describe_sift

if TYPE_CHECKING:
    from ingest.network_maps import Network

Squares = Float64[np.ndarray, "n 3"]  # x, y of the centre and side, in pixels of the decoded image

_BATCH = 64  # patches that a network sees at once
_AROUND = 3.0  # side of a patch by the diameter of its key point, as SIFT itself looks at 3 to 6 of them
_LEAST_FOR_REGIONS = 3  # pixels a side, below which OpenCV looks for none
_AROUND_REGION = 1.5  # side of a patch by the longer side of its region


class PatchesSettings(BaseModel):
    """Where patches lie, and how each is described."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cnn-patches"] = "cnn-patches"
    network: NetworkSettings = Field(description="what describes a patch")
    layer: str | None = Field(
        default=None, description="whose map is pooled; null: the network's last before its classifier"
    )
    pooling: PoolingSettings = Field(default_factory=PoolingSettings, description="a map to one vector")
    at: Literal["grid", "mser", "keypoints"] = Field(
        default="grid", description="grid: everywhere; mser: on stable regions; keypoints: on SIFT's"
    )
    sizes: tuple[float, ...] = Field(
        default=(0.33, 0.5),
        min_length=1,
        max_length=6,
        description="grid: sides of patches by the image's shorter side; neighbours overlap by half",
    )
    max_patches: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="patches an image: the largest regions, the strongest key points, of a grid evenly "
        "chosen ones; each costs a pass of the network at `side`",
    )
    least: int = Field(
        default=32, ge=8, description="mser, keypoints: shortest side of a patch, in pixels of the image"
    )
    side: int = Field(
        default=96, ge=16, le=512, description="pixels that a patch is resized to; time grows with its square"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not all(0.05 <= size <= 1 for size in self.sizes):
            raise ValueError(f"sizes {self.sizes}: give numbers from 0.05 to 1")
        if self.side < (least := NETWORKS[self.network.name].least_side):
            raise ValueError(f"side {self.side}: {self.network.name} needs patches of {least} pixels or more")
        return self


class PatchesDescriber:
    """See `ingest.describe.Describer`."""

    def __init__(self, label: str, settings: PatchesSettings, network: "Network", devices: Devices) -> None:
        self._label, self._settings = label, settings
        self._network, self._devices = network, devices
        self._layer = settings.layer or NETWORKS[settings.network.name].default_layer

    def describe(self, images: Sequence[Decoded]) -> Found:
        """Local features (`ingest.image_features`) of each image, descriptors (n, c) float16."""
        return [{self._label: self._local(image)} for image in images]

    def _local(self, image: Decoded) -> Arrays:
        squares = place_patches(image.pixels, self._settings)
        centres = image.to_original(squares[:, :2].astype(np.float32))
        x0, _, x1, _ = image.box
        scale = (x1 - x0) / image.pixels.shape[1]
        descriptors = [
            self._described([cut(image.pixels, square) for square in squares[start : start + _BATCH]])
            for start in range(0, len(squares), _BATCH)
        ]
        return {
            "keypoints": centres,
            "diameters": (squares[:, 2] * scale).astype(np.float32),
            "descriptors": np.concatenate(descriptors) if descriptors else np.empty((0, 0), np.float16),
        }

    def _described(self, patches: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        side, seen = self._settings.side, self._settings.network.preprocessing
        resized = [resize(patch, side / len(patch), seen) for patch in patches]
        inputs = torch.stack([to_tensor(patch, seen) for patch in resized])
        maps = self._devices.run(self._network, inputs, (self._layer,))[self._layer]
        return to_float16(pool(maps, self._settings.pooling).cpu().numpy())


def place_patches(pixels: UInt8[np.ndarray, "h w 3"], settings: PatchesSettings) -> Squares:
    """Where patches lie: squares inside the image, at most `max_patches`, in a fixed order.

    An image in which no region or key point is found has the grid's patches instead.
    """
    height, width = pixels.shape[:2]
    if settings.at == "mser":
        squares = _on_regions(pixels, settings)
    elif settings.at == "keypoints":
        squares = _on_keypoints(pixels, settings)
    else:
        squares = np.empty((0, 3))
    if not len(squares):
        squares = _evenly(_on_grid(height, width, settings.sizes), settings.max_patches)
    squares[:, 2] = np.clip(squares[:, 2], min(settings.least, height, width), min(height, width))
    half = squares[:, 2] / 2
    squares[:, 0] = np.clip(squares[:, 0], half - 0.5, width - half - 0.5)
    squares[:, 1] = np.clip(squares[:, 1], half - 0.5, height - half - 0.5)
    return squares


def cut(pixels: UInt8[np.ndarray, "h w 3"], square: Float64[np.ndarray, "3"]) -> UInt8[np.ndarray, "s t 3"]:
    """The pixels of a square, to whole pixels."""
    height, width = pixels.shape[:2]
    side = min(max(1, round(square[2])), height, width)
    x0, y0 = (
        min(max(0, round(centre + 0.5 - side / 2)), length - side)
        for centre, length in zip(square[:2], (width, height), strict=True)
    )
    return pixels[y0 : y0 + side, x0 : x0 + side]


def _on_grid(height: int, width: int, sizes: Sequence[float]) -> Squares:
    squares = []
    for size in sizes:
        side = max(1.0, size * min(height, width))
        across, down = (max(1, round(2 * (length - side) / side) + 1) for length in (width, height))
        for y in np.linspace(side / 2, height - side / 2, down):
            squares += [(x - 0.5, y - 0.5, side) for x in np.linspace(side / 2, width - side / 2, across)]
    return np.array(squares)


def _evenly(squares: Squares, most: int) -> Squares:
    if len(squares) <= most:
        return squares
    return squares[np.linspace(0, len(squares) - 1, most).round().astype(np.int64)]


def _on_regions(pixels: np.ndarray, settings: PatchesSettings) -> Squares:
    import cv2

    if min(pixels.shape[:2]) < _LEAST_FOR_REGIONS:
        return np.empty((0, 3))
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    _, boxes = cv2.MSER_create().detectRegions(grey)
    if not len(boxes):
        return np.empty((0, 3))
    x, y, w, h = np.asarray(boxes, np.float64).T
    squares = np.stack([x + (w - 1) / 2, y + (h - 1) / 2, np.maximum(w, h) * _AROUND_REGION], axis=1)
    order = np.lexsort((squares[:, 0], squares[:, 1], -squares[:, 2]))
    return _apart(squares[order], settings.max_patches)


def _on_keypoints(pixels: np.ndarray, settings: PatchesSettings) -> Squares:
    local = describe_sift(pixels, SiftSettings(max_keypoints=8 * settings.max_patches))
    squares = np.column_stack([local["keypoints"], local["diameters"] * _AROUND]).astype(np.float64)
    squares[:, 2] = np.maximum(squares[:, 2], settings.least)
    return _apart(squares, settings.max_patches)


def _apart(squares: Squares, most: int) -> Squares:
    """The first squares that do not nearly cover an earlier one: centres a quarter of a side apart."""
    kept: list[int] = []
    for at, (x, y, side) in enumerate(squares):
        others = squares[kept]
        near = np.hypot(others[:, 0] - x, others[:, 1] - y) < np.minimum(others[:, 2], side) / 4
        alike = np.abs(np.log2(np.maximum(others[:, 2], 1) / max(side, 1))) < 0.5
        if not (near & alike).any():
            kept.append(at)
        if len(kept) == most:
            break
    return squares[np.array(kept, np.int64)]
