"""Best-region scoring: the part of an image that is most like the query, for objects that are small in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from index.projection import Projection, l2_normalised


class RegionStepSettings(BaseModel):
    """Look again at the best candidates region by region."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["regions"] = "regions"
    reads: str = Field(default="global", description="label of the pooled descriptors with regions")
    depth: int = Field(
        default=100,
        ge=1,
        description="candidates looked at; each costs a read of regions x channels x 4 bytes",
    )


@dataclass(frozen=True)
class BestRegion:
    """The region of an image that is most like the query.

    score: its inner product with the query, in [-1, 1]; row: of the image's regions, 0 being the whole.
    """

    score: float
    row: int


def best_regions(
    query: Float32[np.ndarray, " d"],
    candidates: Sequence[Float32[np.ndarray, "r c"]],
    projection: Projection | None,
) -> list[BestRegion]:
    """For each image the region with the largest inner product with the query; of equals the first.

    Args:
        query: (d,), L2-normalised, as the encoder and the projection make it.
        candidates: pooled descriptors (r, c) of each image, a row a region.
        projection: what turns a descriptor into a vector like the query; None if it is one already.
    """
    found = []
    for regions in candidates:
        vectors = l2_normalised(np.asarray(regions, np.float32))
        scores = (vectors if projection is None else projection.apply(vectors)) @ query
        row = int(scores.argmax())
        found.append(BestRegion(float(np.clip(scores[row], -1, 1)), row))
    return found
