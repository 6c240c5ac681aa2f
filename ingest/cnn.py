"""Networks at work: images of equal size in one batch, a network run once for all labels that want its maps.

A label says which layers it wants, of the image at which sizes, and makes its arrays of their maps. Batches
hold images of one size: nothing is ever padded, so what is found in an image does not depend on those beside
it (on a GPU, but for the last bits of the arithmetic).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ingest.decode import Decoded
from ingest.devices import Devices
from ingest.image_features import Arrays, Found, joined
from ingest.image_tensors import groups_by_size, reduction, resize, scaled_size, to_tensor
from ingest.networks import NETWORKS, NetworkSettings
from ingest.outcomes import Outcome, Rejected

if TYPE_CHECKING:
    from torch import Tensor

    from ingest.network_maps import Network

_BATCH = {"cpu": 1, "cuda": 16}  # images of one size at once; a CPU gains nothing by more

_BATCH_PIXELS = 2**23  # of a batch, at the largest scale: some 4 GiB of maps in a ResNet, in half precision

Maps = Mapping[str, "Tensor"]  # (b, c, h, w), float32, by layer


@dataclass(frozen=True)
class Seen:
    """One image as networks saw it.

    image: as it was decoded.
    width, height: pixels of what the network saw at scale 1, after the label's own reduction.
    """

    image: Decoded
    width: int
    height: int

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2), (x, y), of what the network saw, in pixels of the original; centres are whole."""
        height, width = self.image.pixels.shape[:2]
        scale = np.array([width / self.width, height / self.height])
        decoded = (np.asarray(points, np.float64) + 0.5) * scale - 0.5
        return self.image.to_original(decoded.astype(np.float32))


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class MapReader(Protocol):
    """What one label wants of a network.

    layers: whose maps it wants. scales: of the image, 1 being its full size.
    longest_side: pixels that it is reduced to first; None for none.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def scales(self) -> tuple[float, ...]: ...

    @property
    def longest_side(self) -> int | None: ...

    def arrays(
        self, network: "Network", maps: Mapping[float, Maps], images: Sequence[Seen]
    ) -> list[Arrays | Rejected]:
        """The arrays of images of one size, from their maps by scale and layer."""


class NetworkDescriber:
    """All labels of one network."""

    def __init__(
        self,
        settings: NetworkSettings,
        network: "Network",
        readers: Mapping[str, MapReader],
        devices: Devices,
    ) -> None:
        self._settings, self._preprocessing = settings, settings.preprocessing
        self._network, self._readers, self._devices = network, readers, devices

    def describe(self, images: Sequence[Decoded]) -> Found:
        """The arrays of each image by label; `too_small` is one of which the network has no map."""
        found: Found = [{} for _ in images]
        for longest, readers in self._by_reduction().items():
            pixels = [self._reduced(image.pixels, longest) for image in images]
            sizes = [(len(array), array.shape[1]) for array in pixels]
            for group in groups_by_size(sizes, self._batch(max(map(_area, sizes), default=1))):
                seen = [Seen(images[at], sizes[at][1], sizes[at][0]) for at in group]
                described = self._group(readers, seen, [pixels[at] for at in group])
                for at, made in zip(group, joined([found[at] for at in group], described), strict=True):
                    found[at] = made
        return found

    def _batch(self, pixels: int) -> int:
        """Images at once: on a GPU as many as keep the maps of the largest within its memory."""
        scale = max(scale for reader in self._readers.values() for scale in reader.scales)
        return max(1, min(_BATCH[self._devices.device], int(_BATCH_PIXELS / (pixels * scale**2))))

    def _by_reduction(self) -> dict[int | None, dict[str, MapReader]]:
        grouped: dict[int | None, dict[str, MapReader]] = {}
        for label, reader in self._readers.items():
            grouped.setdefault(reader.longest_side, {})[label] = reader
        return grouped

    def _group(
        self, readers: Mapping[str, MapReader], seen: Sequence[Seen], pixels: Sequence[np.ndarray]
    ) -> Found:
        """The arrays of images of one size."""
        scales = {scale for reader in readers.values() for scale in reader.scales}
        if refused := self._refused(seen[0], min(scales)):
            return [refused for _ in seen]
        layers: dict[float, set[str]] = {}
        for reader in readers.values():
            for scale in reader.scales:
                layers.setdefault(scale, set()).update(reader.layers)
        maps = {scale: self._maps(pixels, scale, sorted(layers[scale])) for scale in sorted(layers)}
        found: Found = [{} for _ in seen]
        for label, reader in readers.items():
            made = reader.arrays(self._network, maps, seen)
            found = joined(found, [x if isinstance(x, Rejected) else {label: x} for x in made])
        return found

    def _maps(self, pixels: Sequence[np.ndarray], scale: float, layers: Sequence[str]) -> Maps:
        import torch

        inputs = [
            to_tensor(resize(array, scale, self._preprocessing), self._preprocessing) for array in pixels
        ]
        return self._devices.run(self._network, torch.stack(inputs), layers)

    def _refused(self, seen: Seen, scale: float) -> Rejected | None:
        least = NETWORKS[self._settings.name].least_side
        height, width = scaled_size(seen.height, seen.width, scale)
        if min(height, width) >= least:
            return None
        return Rejected(
            Outcome.TOO_SMALL,
            f"{self._settings.name} would see {width} x {height} pixels; it needs {least} or more a side",
        )

    def _reduced(self, pixels: np.ndarray, longest: int | None) -> np.ndarray:
        if longest is None:
            return pixels
        return resize(pixels, reduction(len(pixels), pixels.shape[1], longest), self._preprocessing)
