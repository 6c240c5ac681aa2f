"""VLAD (Jegou et al. 2010) and its normalisations (Arandjelovic and Zisserman 2013)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float32, Int64, Real
from pydantic import BaseModel, ConfigDict, Field

from index.codebook import Codebook, CodebookSettings
from ingest.errors import BadInput
from ingest.sift import rootsift

Normalisation = Literal["l2", "ssr", "intra", "ssr+intra"]
Preparation = Literal["rootsift", "l2"]


class VladSettings(BaseModel):
    """How an image's descriptors become one vector of words x d float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vlad"] = "vlad"
    reads: str = Field(default="local", description="label of the features that are encoded")
    prepare: Preparation = Field(
        default="rootsift",
        description="what becomes of each descriptor first: RootSIFT (for SIFT), or its L2 norm (l2, for the "
        "columns of maps and patches); none costs time worth counting",
    )
    codebook: CodebookSettings = Field(default_factory=CodebookSettings, description="the words")
    normalise: Normalisation = Field(
        default="intra",
        description="before the global L2 norm: nothing (l2), the signed square root (ssr), each word's L2 "
        "norm (intra), or both in that order (ssr+intra); none costs time worth counting",
    )
    mass: bool = Field(
        default=False, description="first divide each word's residual by its number of descriptors"
    )


def prepared(descriptors: Real[np.ndarray, "n d"], how: Preparation) -> Float32[np.ndarray, "n d"]:
    """Descriptors as they are stored, made ready for words: (n, d) float32, of unit length or zero.

    Args:
        descriptors: (n, d); uint8 for rootsift, any real type for l2.

    Raises:
        BadInput: RootSIFT of descriptors that are not SIFT's.
    """
    if how == "rootsift":
        if descriptors.dtype != np.uint8:
            raise BadInput(
                f"RootSIFT is made of uint8 descriptors, got {descriptors.dtype}: set `prepare: l2` in the "
                "encoder for features of a network, or let it read SIFT features"
            )
        return rootsift(descriptors)
    rows = descriptors.astype(np.float32)
    rows /= _safe_norms(rows)
    return rows


def vlad(
    descriptors: Float32[np.ndarray, "n d"],
    words: Int64[np.ndarray, "n"],
    centroids: Float32[np.ndarray, "k d"],
) -> Float32[np.ndarray, "k d"]:
    """Sums of residuals: `V_k = sum over x with word k of (x - c_k)` (Jegou et al. 2010, equation 1).

    Args:
        descriptors: (n, d) float32.
        words: (n,) integers, the word of each descriptor, 0 <= word < k.
        centroids: (k, d) float32.

    Returns:
        (k, d) float32, not normalised; zeros for a word without descriptors.
    """
    sums = np.zeros_like(centroids)
    if len(words) == 0:
        return sums
    order = np.argsort(words.astype(np.uint16), kind="stable")  # 16-bit keys: numpy sorts them by radix
    ordered = words[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    present = ordered[starts]
    residuals = descriptors[order]
    residuals -= centroids[ordered]  # before the sums, which would lose digits to cancellation
    sums[present] = np.add.reduceat(residuals, starts, axis=0)
    return sums


def normalise(residuals: Float32[np.ndarray, "k d"], how: Normalisation) -> Float32[np.ndarray, "kd"]:
    """Flattens a VLAD, word by word, to an L2-normalised vector.

    Order: signed square root of each component, L2 norm of each word, L2 norm of the whole. What is zero
    stays zero.
    """
    if how in ("ssr", "ssr+intra"):
        residuals = np.sign(residuals) * np.sqrt(np.abs(residuals))
    if how in ("intra", "ssr+intra"):
        residuals = residuals / _safe_norms(residuals)
    flat = residuals.reshape(1, -1)
    return np.ascontiguousarray((flat / _safe_norms(flat))[0], np.float32)


def _safe_norms(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 1"]:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return np.where(norms > 0, norms, np.float32(1))


@dataclass(frozen=True)
class Vlad:
    """The fitted encoder: descriptors of one image in, one vector out."""

    codebook: Codebook
    settings: VladSettings

    @property
    def dim(self) -> int:
        """Components of the vector: words x d."""
        return int(self.codebook.centroids.size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the fit, a sentence each."""
        return self.codebook.notes

    def encode(self, local: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "kd"]:
        """The L2-normalised VLAD of an image's descriptors, prepared as the settings say.

        Args:
            local: arrays of the features that `reads` names; `descriptors` (n, d) is read: uint8 for
                RootSIFT, any real type for l2. n > 0: an image without key points is rejected as
                `no_features` before it gets here (with n = 0 the result is the zero vector, which scores 0
                against everything).
        """
        descriptors = prepared(local["descriptors"], self.settings.prepare)
        words = self.codebook.assign(descriptors)
        residuals = vlad(descriptors, words, self.codebook.centroids)
        if self.settings.mass:
            counts = np.bincount(words, minlength=len(residuals))
            residuals = residuals / np.maximum(counts, 1).astype(np.float32)[:, None]
        return normalise(residuals, self.settings.normalise)

    def to_arrays(self) -> dict[str, np.ndarray]:
        settings = np.frombuffer(self.settings.model_dump_json().encode(), np.uint8)
        return {**self.codebook.to_arrays(), "settings": settings}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        settings = VladSettings.model_validate_json(np.asarray(arrays["settings"], np.uint8).tobytes())
        return cls(Codebook.from_arrays(arrays), settings)
