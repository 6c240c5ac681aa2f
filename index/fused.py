"""Several encoders as one: their vectors, each projected and weighted, one after the other.

With L2-normalised parts x_i and weights w_i the vector is `[sqrt(w_1) x_1, sqrt(w_2) x_2, ...]`,
L2-normalised. The inner product of two images that have every part is then `sum w_i <x_i, y_i> / sum w_i`:
the weighted mean of the parts' scores (fusion by score, exactly, while no projection follows); a projection
of the whole, fitted on it, is fusion by concatenation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from index.encoders import Encoder, OneEncoderSettings, encoder_kind
from index.learned_whitening import LearnedWhiteningSettings
from index.netvlad import NetVladSettings
from index.pooled import PooledSettings
from index.projection import Projection, ProjectionSettings, l2_normalised
from index.vlad import VladSettings
from ingest.gallery import Gallery
from ingest.image_features import Arrays
from ingest.models import load_model, save_model

AnyProjectionSettings = Annotated[ProjectionSettings | LearnedWhiteningSettings, Field(discriminator="kind")]


class FusedPart(BaseModel):
    """One encoder of several."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: OneEncoderSettings = Field(description="how this part's features become a vector")
    projection: AnyProjectionSettings | None = Field(
        default=None, description="of this part alone; null: as encoded"
    )
    weight: float = Field(
        default=1.0, gt=0, description="of this part's score in the mean of all parts; costs nothing"
    )


class FusedSettings(BaseModel):
    """Several encoders at once; the vector is as long as theirs together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fused"] = "fused"
    parts: tuple[FusedPart, ...] = Field(min_length=2, description="the encoders, in the order of the vector")


EncoderSettings = Annotated[
    VladSettings | NetVladSettings | PooledSettings | FusedSettings, Field(discriminator="kind")
]


def encoders_in(settings: EncoderSettings) -> list[OneEncoderSettings]:
    """The encoder itself, or those of its parts."""
    return [part.encoder for part in settings.parts] if isinstance(settings, FusedSettings) else [settings]


@dataclass(frozen=True)
class Vectoriser:
    """A fitted encoder and the projection that follows it, if any."""

    encoder: Encoder
    projection: Projection | None = None

    @property
    def reads(self) -> str:
        """The label of the features that it encodes."""
        label: str = self.encoder.settings.reads
        return label

    @property
    def labels(self) -> frozenset[str]:
        return frozenset([self.reads])

    @property
    def dim(self) -> int:
        return self.encoder.dim if self.projection is None else self.projection.dim

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.encoder.notes, *(self.projection.notes if self.projection else ()))

    def encode(self, by_label: Mapping[str, Arrays]) -> Float32[np.ndarray, " d"]:
        """The L2-normalised vector of an image; zeros if nothing was found in it."""
        vector = self.encoder.encode(by_label[self.reads])
        return vector if self.projection is None else projected(self.projection, vector[None])[0]


def projected(projection: Projection, vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n d"]:
    """Vectors after a projection; zeros stay zeros, or what has nothing in it would look alike."""
    short = projection.apply(vectors)
    short[~vectors.any(axis=1)] = 0
    return short


@dataclass(frozen=True)
class Fused:
    """Fitted parts and their weights; itself an encoder, of several labels."""

    parts: tuple[Vectoriser, ...]
    weights: tuple[float, ...]

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for part in self.parts for note in part.notes)

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(part.reads for part in self.parts)

    def encode(self, by_label: Mapping[str, Arrays]) -> Float32[np.ndarray, " d"]:
        """The joint vector; a part in which nothing was found is zeros, and the others count for it."""
        pieces = [
            np.float32(np.sqrt(weight)) * part.encode(by_label)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        vector: np.ndarray = l2_normalised(np.concatenate(pieces)[None])[0]
        return vector


ImageEncoder = Vectoriser | Fused


def save_encoder(gallery: Gallery, encoder: ImageEncoder, header: dict[str, Any]) -> str:
    """Saves a fitted encoder; returns its digest."""
    parts = encoder.parts if isinstance(encoder, Fused) else (encoder,)
    weights = encoder.weights if isinstance(encoder, Fused) else (1.0,)
    arrays: dict[str, np.ndarray] = {}
    for place, part in enumerate(parts):
        arrays |= _prefixed(f"{place}.encoder.", part.encoder.to_arrays())
        if part.projection is not None:
            arrays |= _prefixed(f"{place}.projection.", part.projection.to_arrays())
    stated = [
        {"kind": part.encoder.settings.kind, "projected": part.projection is not None, "weight": weight}
        for part, weight in zip(parts, weights, strict=True)
    ]
    return save_model(gallery, "encoder", {**header, "notes": list(encoder.notes), "parts": stated}, arrays)


def load_encoder(gallery: Gallery, digest: str) -> ImageEncoder:
    """A fitted encoder of a gallery, by the digest of its model."""
    header, arrays = load_model(gallery, digest, "encoder")
    parts = []
    for place, stated in enumerate(header["parts"]):
        encoder = encoder_kind(stated["kind"]).fitted.from_arrays(_below(f"{place}.encoder.", arrays))
        projection = None
        if stated["projected"]:
            projection = Projection.from_arrays(_below(f"{place}.projection.", arrays))
        parts.append(Vectoriser(encoder, projection))
    if len(parts) == 1:
        return parts[0]
    return Fused(tuple(parts), tuple(stated["weight"] for stated in header["parts"]))


def _prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in arrays.items()}


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
