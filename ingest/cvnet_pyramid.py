"""CVNet's projected pyramid, which its reranking compares: computed once an image, stored if it shall be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ingest.cnn import Maps, Seen
from ingest.errors import BadInput
from ingest.image_features import Arrays
from ingest.networks import NetworkSettings
from ingest.outcomes import Outcome, Rejected
from ingest.pyramid_storage import PyramidStorage, to_stored

if TYPE_CHECKING:
    from ingest.network_maps import Network

LAYER = "s3_pre"


class PyramidSettings(BaseModel):
    """What is stored of the maps that CVNet's reranking compares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cvnet-pyramid"] = "cvnet-pyramid"
    network: NetworkSettings = Field(description="cvnet-r50 or cvnet-r101; shared with other labels of it")
    storage: Literal["float32", "float16", "int8", "none"] = Field(
        default="float16",
        description="float32, float16, int8 (half of float16), or none: computed from the image when it is "
        "looked at again. An image of 640 x 480 costs 2.1, 1.1, 0.5 MB or nothing; scores differ by under "
        "0.01",
    )
    longest_map_side: int | None = Field(
        default=None,
        ge=2,
        description="cells; larger maps are reduced first, and cost less to store and to compare; null: "
        "never",
    )

    @model_validator(mode="after")
    def _of_cvnet(self) -> Self:
        if not self.network.name.startswith("cvnet-"):
            raise ValueError(f"{self.network.name} makes no such pyramid: choose cvnet-r50 or cvnet-r101")
        return self


@dataclass(frozen=True)
class PyramidReader:
    """See `ingest.cnn.MapReader`."""

    settings: PyramidSettings
    layers: tuple[str, ...] = (LAYER,)
    scales: tuple[float, ...] = (1.0,)
    longest_side: int | None = None

    def arrays(
        self, network: "Network", maps: Mapping[float, Maps], images: Sequence[Seen]
    ) -> list[Arrays | Rejected]:
        """The stored form of each image's pyramid; `too_small` where a side of it would have no cell."""
        try:
            pyramid = network.project_pyramid(maps[1.0][LAYER])  # type: ignore[operator]
        except BadInput as error:
            return [Rejected(Outcome.TOO_SMALL, str(error)) for _ in images]
        scales = [made.float().cpu().numpy() for made in pyramid]
        storage: PyramidStorage = "float32" if self.settings.storage == "none" else self.settings.storage
        longest = self.settings.longest_map_side
        return [self._stored([scale[at] for scale in scales], storage, longest) for at in range(len(images))]

    def _stored(
        self, maps: list[np.ndarray], storage: PyramidStorage, longest: int | None
    ) -> Arrays | Rejected:
        if not all(np.isfinite(values).all() for values in maps):
            return Rejected(Outcome.NOT_FINITE, "the pyramid has values that are NaN or infinite")
        return to_stored(maps, storage, longest)
