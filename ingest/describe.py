"""Describers by kind: how the pixels of images become features, each under the label that the recipe gave it.

To add one: a settings model with its `kind` in a file of its own, its class in the union
`DescribeSettings`, and a branch in `_open`. Describers of one network share its passes (`ingest.cnn`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from ingest.cnn import MapReader, NetworkDescriber
from ingest.cnn_columns import ColumnsReader, ColumnsSettings
from ingest.cnn_global import GlobalReader, GlobalSettings
from ingest.cnn_patches import PatchesDescriber, PatchesSettings
from ingest.compute import Compute
from ingest.cvnet_pyramid import PyramidReader, PyramidSettings
from ingest.decode import Decoded
from ingest.devices import Devices, choose_devices
from ingest.image_features import Arrays, Found, ImageFeatures, joined
from ingest.networks import NetworkSettings, build_network
from ingest.outcomes import Outcome, Rejected
from ingest.sift import SiftSettings
from ingest.sift import describe as describe_sift
from ingest.threads import torch_threads
from ingest.weights import known_digest

DescribeSettings = Annotated[
    SiftSettings | GlobalSettings | ColumnsSettings | PatchesSettings | PyramidSettings,
    Field(discriminator="kind"),
]

LoadWeights = Callable[[str], Mapping[str, Any]]  # a network's state by the digest of its weights


class Describer(Protocol):
    """Makes the arrays of some labels, for several images at once; an image may be rejected instead."""

    def describe(self, images: Sequence[Decoded]) -> Found: ...


class ImageDescriber:
    """All describers of a recipe.

    Attributes:
        window: images to hand over at once.
        devices: what networks use; None where there is none.
    """

    def __init__(
        self, settings: Mapping[str, DescribeSettings], load_weights: LoadWeights, compute: Compute
    ) -> None:
        self.devices: Devices | None = None
        self._describers = list(self._open(settings, load_weights, compute))
        self._threads = compute.threads
        # Without a network, one image is described while the next is decoded.
        self.window = 1 if self.devices is None else compute.window

    def _open(
        self, settings: Mapping[str, DescribeSettings], load_weights: LoadWeights, compute: Compute
    ) -> Iterator[Describer]:
        """The describers of all labels; one for all labels of one network that read its maps."""
        readers: dict[str, dict[str, MapReader]] = {}  # by network
        networks: dict[str, NetworkSettings] = {}
        for label, chosen in settings.items():
            if isinstance(chosen, SiftSettings):
                yield SiftDescriber(label, chosen)
                continue
            name = chosen.network.model_dump_json()
            networks[name] = chosen.network
            readers.setdefault(name, {})
            if not isinstance(chosen, PatchesSettings):
                readers[name][label] = _reader(chosen)
        for name, network in networks.items():
            devices = choose_devices(network.precision, compute.device, compute.compile)
            self.devices = devices
            placed = devices.placed(build_network(network, load_weights(known_digest(network))))
            if readers[name]:
                yield NetworkDescriber(network, placed, readers[name], devices)
            for label, chosen in settings.items():
                if isinstance(chosen, PatchesSettings) and chosen.network == network:
                    yield PatchesDescriber(label, chosen, placed, devices)

    def describe(self, images: Sequence[Decoded]) -> list[ImageFeatures | Rejected]:
        """What each image holds, in their order; it does not depend on the other images.

        Rejected is an image that a describer rejects, and one in which none finds anything.
        """
        found: Found = [{} for _ in images]
        on_cpu = self.devices is not None and self.devices.device == "cpu"
        with torch_threads(self._threads) if on_cpu else nullcontext():
            for describer in self._describers:
                found = joined(found, describer.describe(images))
        return [_features(image, arrays) for image, arrays in zip(images, found, strict=True)]


def _features(image: Decoded, by_label: dict[str, Arrays] | Rejected) -> ImageFeatures | Rejected:
    if isinstance(by_label, Rejected):
        return by_label
    if not any(len(array) for arrays in by_label.values() for array in arrays.values()):
        return Rejected(Outcome.NO_FEATURES, "no keypoint was found")
    if odd := [label for label, arrays in by_label.items() if not all(map(_finite, arrays.values()))]:
        return Rejected(Outcome.NOT_FINITE, f"{', '.join(odd)}: some values are NaN or infinite")
    return ImageFeatures(image.width, image.height, original_scale(image), by_label)


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def original_scale(image: Decoded) -> float:
    """Original pixels a pixel of the decoded image, the geometric mean of both directions."""
    height, width = image.pixels.shape[:2]
    x0, y0, x1, y1 = image.box
    return float(np.sqrt((x1 - x0) / width * ((y1 - y0) / height)))


def _reader(settings: GlobalSettings | ColumnsSettings | PyramidSettings) -> MapReader:
    if isinstance(settings, GlobalSettings):
        return GlobalReader(settings)
    if isinstance(settings, ColumnsSettings):
        return ColumnsReader(settings)
    return PyramidReader(settings)


@dataclass(frozen=True)
class SiftDescriber:
    """SIFT key points, moved into pixels of the original."""

    label: str
    settings: SiftSettings

    def describe(self, images: Sequence[Decoded]) -> Found:
        return [{self.label: self._arrays(image)} for image in images]

    def _arrays(self, image: Decoded) -> Arrays:
        local = describe_sift(image.pixels, self.settings)
        scale = np.float32(original_scale(image))
        moved = {
            "keypoints": image.to_original(local["keypoints"]),
            "diameters": local["diameters"] * scale,
        }
        return local | moved
