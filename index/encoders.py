"""The encoders by name: how the local features of an image become one vector.

To add one: a settings model with its `kind`, a frozen fitted class with `dim`, `notes`, `encode`,
`to_arrays` and `from_arrays`, a function that fits it, and a line in `ENCODERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import Float32

from index.codebook import fit_codebook
from index.models import load_model
from index.vlad import Vlad, VladSettings
from ingest.errors import BadInput
from ingest.gallery import Gallery
from ingest.sift import rootsift

EncoderSettings = VladSettings  # a union, discriminated by `kind`, once there are several


class Encoder(Protocol):
    """A fitted encoder."""

    @property
    def dim(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def encode(self, local: Mapping[str, np.ndarray]) -> Float32[np.ndarray, " d"]: ...

    def to_arrays(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self: ...


@dataclass(frozen=True)
class EncoderKind:
    """What the table knows of an encoder: its fitted class, and how it is fitted on sampled descriptors."""

    fitted: type[Encoder]
    fit: Callable[[np.ndarray, Any], Encoder]


def _fit_vlad(descriptors: np.ndarray, settings: VladSettings) -> Vlad:
    return Vlad(fit_codebook(rootsift(descriptors), settings.codebook), settings)


ENCODERS: dict[str, EncoderKind] = {"vlad": EncoderKind(Vlad, _fit_vlad)}


def fit_encoder(descriptors: np.ndarray, settings: EncoderSettings) -> Encoder:
    """Fits the encoder that the settings name on (n, d) descriptors as they are stored."""
    return _kind(settings.kind).fit(descriptors, settings)


def load_encoder(gallery: Gallery, digest: str) -> Encoder:
    """A fitted encoder of a gallery, by the digest of its model."""
    header, arrays = load_model(gallery, digest, "encoder")
    return _kind(header["encoder"]).fitted.from_arrays(arrays)


def _kind(name: str) -> EncoderKind:
    if name not in ENCODERS:
        raise BadInput(f"there is no encoder {name!r}; there are: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name]
