"""Pooled descriptors: the maps of a network become one vector for the image, and one for each region."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ingest.cnn import Maps, Seen
from ingest.image_features import Arrays
from ingest.networks import NETWORKS, NetworkSettings
from ingest.outcomes import Rejected
from ingest.pooling import PoolingSettings, pool, pool_regions
from ingest.regions import RegionSettings, region_boxes

if TYPE_CHECKING:
    from torch import Tensor

    from ingest.network_maps import Network


class GlobalSettings(BaseModel):
    """Which map is pooled, how, at which sizes of the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cnn-global"] = "cnn-global"
    network: NetworkSettings = Field(description="what makes the maps; labels of one network share its work")
    layer: str | None = Field(
        default=None, description="whose map is pooled; null: the network's last before its classifier"
    )
    head: bool = Field(
        default=False,
        description="pool by the network's own trained head instead of `pooling` (cvnet-r50, cvnet-r101: GeM "
        "with its exponent, a linear layer)",
    )
    pooling: PoolingSettings = Field(default_factory=PoolingSettings, description="a map to one vector")
    regions: RegionSettings = Field(
        default_factory=RegionSettings,
        description="parts of the map that are pooled too, for objects that fill a small part of an image "
        "(step regions)",
    )
    scales: tuple[float, ...] = Field(
        default=(1.0,),
        min_length=1,
        max_length=8,
        description="sizes of the image, 1 being as it is; each costs scale^2 of the time of one pass",
    )
    longest_side: int | None = Field(
        default=None, ge=16, description="pixels that the decoded image is reduced to first; null: not at all"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.head and not self.network.name.startswith("cvnet-"):
            raise ValueError(f"{self.network.name} has no head of its own: leave `head` out")
        if self.head and (self.regions.kind != "none" or self.layer is not None):
            raise ValueError(
                "`head` describes the whole image from its own layer: leave `regions` and `layer` out"
            )
        if not all(0.1 <= scale <= 4 for scale in self.scales) or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales}: give different numbers from 0.1 to 4")
        if self.regions.kind == "rmac" and len(self.scales) > 1:
            raise ValueError(
                "regions rmac are others at each of several scales, so they have no mean: give one scale, or "
                "regions sfrs"
            )
        return self


@dataclass(frozen=True)
class GlobalReader:
    """See `ingest.cnn.MapReader`."""

    settings: GlobalSettings

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.settings.layer or NETWORKS[self.settings.network.name].default_layer,)

    @property
    def scales(self) -> tuple[float, ...]:
        return self.settings.scales

    @property
    def longest_side(self) -> int | None:
        return self.settings.longest_side

    def arrays(
        self, network: "Network", maps: Mapping[float, Maps], images: Sequence[Seen]
    ) -> list[Arrays | Rejected]:
        """`descriptors` (r, c) float32, each row L2-normalised, row 0 of the whole; `boxes` (r, 4).

        Several scales: the mean of the L2-normalised descriptors of each scale, L2-normalised.
        """
        from torch.nn.functional import normalize

        (layer,) = self.layers
        scaled = [normalize(self._pooled(network, maps[scale][layer]), dim=2) for scale in self.scales]
        total = sum(scaled[1:], scaled[0])
        pooled = normalize(total, dim=2).cpu().numpy() if len(scaled) > 1 else scaled[0].cpu().numpy()
        height, width = maps[self.scales[0]][layer].shape[2:]
        boxes = region_boxes(height, width, self.settings.regions)
        return [
            {"descriptors": np.ascontiguousarray(rows), "boxes": _in_original(boxes, seen)}
            for rows, seen in zip(pooled, images, strict=True)
        ]

    def _pooled(self, network: "Network", maps: "Tensor") -> "Tensor":
        """(b, r, c)"""
        if self.settings.head:
            described: Tensor = network.global_descriptor(maps)  # type: ignore[operator]
            return described[:, None]
        if self.settings.regions.kind == "none":
            return pool(maps, self.settings.pooling)[:, None]
        return pool_regions(maps, self.settings.pooling, self.settings.regions)


def _in_original(boxes: Float32[np.ndarray, "r 4"], seen: Seen) -> Float32[np.ndarray, "r 4"]:
    """Boxes in fractions of the image as boxes in pixels of the original, from edge to edge."""
    x0, y0, x1, y1 = seen.image.box
    corner, size = np.array([x0, y0, x0, y0]), np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    return np.asarray(corner + boxes * size, np.float32)
