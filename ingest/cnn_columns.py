"""Columns of a map as local features: one descriptor for each cell, where the cell lies in the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from ingest.cnn import Maps, Seen
from ingest.image_features import Arrays, to_float16
from ingest.networks import NETWORKS, NetworkSettings
from ingest.outcomes import Rejected

if TYPE_CHECKING:
    from ingest.network_maps import Network


class ColumnsSettings(BaseModel):
    """Which map's columns are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cnn-columns"] = "cnn-columns"
    network: NetworkSettings = Field(description="what makes the map; labels of one network share its work")
    layer: str | None = Field(
        default=None,
        description="whose map; null: the network's last before its classifier; earlier ones are finer: four "
        "times the columns for half the stride",
    )
    max_columns: int = Field(
        default=2048,
        ge=1,
        le=65_536,
        description="columns kept an image, those of greatest L2 norm; channels x 2 bytes of storage each",
    )
    longest_side: int | None = Field(
        default=None, ge=16, description="pixels that the decoded image is reduced to first; null: not at all"
    )


@dataclass(frozen=True)
class ColumnsReader:
    """See `ingest.cnn.MapReader`."""

    settings: ColumnsSettings

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.settings.layer or NETWORKS[self.settings.network.name].default_layer,)

    @property
    def scales(self) -> tuple[float, ...]:
        return (1.0,)

    @property
    def longest_side(self) -> int | None:
        return self.settings.longest_side

    def arrays(
        self, network: "Network", maps: Mapping[float, Maps], images: Sequence[Seen]
    ) -> list[Arrays | Rejected]:
        """Local features (`ingest.image_features`): row by row of the map, descriptors (n, c) float16."""
        (layer,) = self.layers
        found = maps[1.0][layer]
        height, width = found.shape[2:]
        columns = found.flatten(2).transpose(1, 2).cpu().numpy()
        return [self._local(rows, seen, width, height) for rows, seen in zip(columns, images, strict=True)]

    def _local(self, columns: Float32[np.ndarray, "n c"], seen: Seen, width: int, height: int) -> Arrays:
        stride, offset = self._grid(seen, width, height)
        y, x = np.divmod(np.arange(len(columns)), width)
        places = np.stack([x, y], axis=1) * stride + offset
        kept = np.arange(len(columns))
        if len(columns) > self.settings.max_columns:
            norms = np.einsum("nc,nc->n", columns, columns)
            kept = np.sort(np.argsort(-norms, kind="stable")[: self.settings.max_columns])
        first, second = seen.to_original(np.array([[0.0, 0.0], [1.0, 1.0]]))
        side = float(np.sqrt(np.prod(second - first)) * np.sqrt(np.prod(stride)))
        return {
            "keypoints": seen.to_original(places[kept]),
            "diameters": np.full(len(kept), side, np.float32),
            "descriptors": to_float16(columns[kept]),
        }

    def _grid(self, seen: Seen, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Stride and centre of the first cell, (x, y), in pixels of what the network saw."""
        known = NETWORKS[self.settings.network.name].layers.get(self.layers[0])
        if known is not None:
            return np.full(2, float(known.stride)), np.full(2, float(known.offset))
        stride = np.array([seen.width / width, seen.height / height])  # a module of somebody's
        return stride, stride / 2 - 0.5
