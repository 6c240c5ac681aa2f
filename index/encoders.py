"""The encoders by name: how the features of an image become one vector.

To add one: a settings model with its `kind` and `reads`, a frozen fitted class with `dim`, `notes`, `encode`,
`to_arrays` and `from_arrays`, a function that fits it, a line in `ENCODERS`, `OneEncoderSettings` and
`index.fused.EncoderSettings`, and the kinds of features that it can read in `index.recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, Self

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from index.codebook import fit_codebook
from index.netvlad import NetVlad, NetVladSettings, fit_netvlad
from index.pooled import Pooled, PooledSettings
from index.vlad import Vlad, VladSettings, prepared
from ingest.errors import BadInput
from ingest.image_features import Arrays

OneEncoderSettings = Annotated[VladSettings | NetVladSettings | PooledSettings, Field(discriminator="kind")]


class Encoder(Protocol):
    """A fitted encoder of the features under one label, which `settings.reads` names."""

    @property
    def settings(self) -> Any: ...

    @property
    def dim(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def encode(self, local: Arrays) -> Float32[np.ndarray, " d"]: ...

    def to_arrays(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self: ...


@dataclass(frozen=True)
class EncoderKind:
    """What the table knows of an encoder.

    fitted: its class. fit: from (n, d) sampled descriptors as they are stored.
    sample: how many descriptors it is fitted on, by its settings.
    """

    fitted: type[Encoder]
    fit: Callable[[np.ndarray, Any], Encoder]
    sample: Callable[[Any], int]


def _fit_vlad(descriptors: np.ndarray, settings: VladSettings) -> Vlad:
    return Vlad(fit_codebook(prepared(descriptors, settings.prepare), settings.codebook), settings)


def _fit_pooled(descriptors: np.ndarray, settings: PooledSettings) -> Pooled:
    return Pooled(descriptors.shape[1], settings)


ENCODERS: dict[str, EncoderKind] = {
    "vlad": EncoderKind(Vlad, _fit_vlad, lambda settings: settings.codebook.sample_descriptors),
    "netvlad": EncoderKind(NetVlad, fit_netvlad, lambda settings: settings.codebook.sample_descriptors),
    "pooled": EncoderKind(Pooled, _fit_pooled, lambda settings: 1),
}


def fit_encoder(descriptors: np.ndarray, settings: OneEncoderSettings) -> Encoder:
    """Fits the encoder that the settings name on (n, d) descriptors as they are stored."""
    return encoder_kind(settings.kind).fit(descriptors, settings)


def encoder_kind(name: str) -> EncoderKind:
    if name not in ENCODERS:
        raise BadInput(f"there is no encoder {name!r}; there are: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name]
