"""Pooled descriptors as they are: the whole image's row, L2-normalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from index.projection import l2_normalised


class PooledSettings(BaseModel):
    """A pooled descriptor is an image's vector already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pooled"] = "pooled"
    reads: str = Field(
        default="global", description="label of the pooled descriptors, under features.describe"
    )


@dataclass(frozen=True)
class Pooled:
    """The fitted encoder: nothing is fitted but the number of components."""

    dim: int
    settings: PooledSettings
    notes: tuple[str, ...] = ()

    def encode(self, local: Mapping[str, np.ndarray]) -> Float32[np.ndarray, " d"]:
        """The first row of `descriptors` (r, d), L2-normalised; zeros stay zeros."""
        vector: np.ndarray = l2_normalised(np.asarray(local["descriptors"][:1], np.float32))[0]
        return vector

    def to_arrays(self) -> dict[str, np.ndarray]:
        settings = np.frombuffer(self.settings.model_dump_json().encode(), np.uint8)
        return {"dim": np.array(self.dim, np.int64), "settings": settings}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        settings = PooledSettings.model_validate_json(np.asarray(arrays["settings"], np.uint8).tobytes())
        return cls(int(arrays["dim"]), settings)
