"""NetVLAD over stored local features, fitted by clustering (Arandjelovic et al. 2016, section 3.1).

The same function as the trainable `ingest.netvlad_layer.NetVladLayer`; a network's own layer, with trained
weights, is part of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Float32
from pydantic import BaseModel, ConfigDict, Field

from index.codebook import Codebook, CodebookSettings, fit_codebook
from index.fitting import draw_rows, fit_threads
from index.vlad import normalise, prepared
from ingest.errors import BadInput

_DECIDED = -np.log(0.01)  # the second nearest word gets a hundredth of the weight of the nearest, on average
_LEAST_GAP = 1e-6  # float32 does not tell words apart that are nearer to each other


class NetVladWords(CodebookSettings):
    """The words: fewer than VLAD's, for descriptors are longer (64 x 512 = 32,768 components)."""

    words: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="k, the number of words; a vector has words x d components, and assigning a descriptor "
        "costs words x d multiplications, summing it as many again",
    )
    sample_descriptors: int = Field(
        default=50_000,
        ge=1,
        description="descriptors fitted on, drawn at random where there are more; memory while fitting = "
        "sample_descriptors x d x 4 bytes (98 MiB at 512-D), three times",
    )


class NetVladSettings(BaseModel):
    """How an image's descriptors become one vector of words x d float32, each shared among all words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["netvlad"] = "netvlad"
    reads: str = Field(default="local", description="label of the features that are encoded")
    codebook: NetVladWords = Field(default_factory=NetVladWords, description="the words")
    init: Literal["v1", "v2"] = Field(
        default="v1",
        description="how assignment follows from the words: by angle (v1, the authors'), or by distance (v2, "
        "which equals VLAD's nearest word where it is decided); the same cost",
    )


@dataclass(frozen=True)
class NetVlad:
    """The fitted encoder: descriptors of one image in, one vector out.

    weights: (k, d) float32, w_k of the soft assignment.
    bias: (k,) float32, b_k; None for none.
    centroids: (k, d) float32, c_k, which residuals are taken from.
    notes: what a user should know of the fit, a sentence each.
    """

    weights: Float32[np.ndarray, "k d"]
    bias: Float32[np.ndarray, "k"] | None
    centroids: Float32[np.ndarray, "k d"]
    settings: NetVladSettings
    notes: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Components of the vector: words x d."""
        return int(self.centroids.size)

    def encode(self, local: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "kd"]:
        """The L2-normalised NetVLAD of an image, word by word, each of unit length before the last norm.

        Args:
            local: `descriptors` (n, d) of any real type is read, each L2-normalised first; their order does
                not matter. With n = 0 the result is the zero vector, which scores 0 against everything.

        Raises:
            BadInput: the descriptors have another length than those that were fitted on.
        """
        descriptors = prepared(local["descriptors"], "l2")
        if len(descriptors) == 0:
            return np.zeros(self.dim, np.float32)
        if descriptors.shape[1] != self.centroids.shape[1]:
            raise BadInput(
                f"NetVLAD was fitted on descriptors of {self.centroids.shape[1]} components, got "
                f"{descriptors.shape[1]}: encode the features {self.settings.reads!r} that it was fitted on"
            )
        return normalise(netvlad(descriptors, self.weights, self.bias, self.centroids), "intra")

    def to_arrays(self) -> dict[str, np.ndarray]:
        arrays = {"weights": self.weights, "centroids": self.centroids}
        if self.bias is not None:
            arrays["bias"] = self.bias
        settings, notes = self.settings.model_dump_json().encode(), "\n".join(self.notes).encode()
        return {
            **arrays,
            "settings": np.frombuffer(settings, np.uint8),
            "notes": np.frombuffer(notes, np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        settings, notes = (np.asarray(arrays[name], np.uint8).tobytes() for name in ("settings", "notes"))
        return cls(
            np.ascontiguousarray(arrays["weights"], np.float32),
            np.ascontiguousarray(arrays["bias"], np.float32) if "bias" in arrays else None,
            np.ascontiguousarray(arrays["centroids"], np.float32),
            NetVladSettings.model_validate_json(settings),
            tuple(notes.decode().splitlines()),
        )


def netvlad(
    descriptors: Float32[np.ndarray, "n d"],
    weights: Float32[np.ndarray, "k d"],
    bias: Float32[np.ndarray, "k"] | None,
    centroids: Float32[np.ndarray, "k d"],
) -> Float32[np.ndarray, "k d"]:
    """`V_k = sum over x of a_k(x) (x - c_k)`, `a = softmax_k(w_k.x + b_k)`, not normalised (equation 4).

    Descriptors are taken as they are: of unit length, in NetVLAD. Memory: n x k x 4 bytes.
    """
    logits = descriptors @ weights.T
    if bias is not None:
        logits += bias
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits, out=logits)
    shares /= shares.sum(axis=1, keepdims=True)
    sums: np.ndarray = shares.T @ descriptors - shares.sum(axis=0)[:, None] * centroids
    return sums


def fit_netvlad(descriptors: Float[np.ndarray, "n d"], settings: NetVladSettings) -> NetVlad:
    """Fits words by k-means on the L2-normalised descriptors, and the assignment on the same sample.

    Descriptors of zeros are left out. The same descriptors in the same order give the same bytes.

    Raises:
        BadInput: there are no descriptors (but zeros), or some are not finite.
    """
    sample = draw_rows(descriptors, settings.codebook.sample_descriptors, settings.codebook.seed)
    unit = prepared(sample, "l2")
    unit = unit[unit.any(axis=1)]
    codebook = fit_codebook(unit, settings.codebook)
    with fit_threads():
        assign = assignment_v1 if settings.init == "v1" else assignment_v2
        weights, bias = assign(codebook, unit)
    return NetVlad(weights, bias, codebook.centroids, settings, codebook.notes)


def assignment_v1(
    codebook: Codebook, descriptors: Float32[np.ndarray, "n d"]
) -> tuple[Float32[np.ndarray, "k d"], None]:
    """By angle: `w = alpha c_hat`, no bias; c_hat is the word's direction.

    `alpha = -ln .01 / mean(top1 - top2)` of `c_hat.x` over the descriptors. The centroids that residuals are
    taken from stay as long as they are.
    """
    directions = prepared(codebook.centroids, "l2")
    alpha = _sharpness(descriptors @ directions.T)
    return np.ascontiguousarray(alpha * directions), None


def assignment_v2(
    codebook: Codebook, descriptors: Float32[np.ndarray, "n d"]
) -> tuple[Float32[np.ndarray, "k d"], Float32[np.ndarray, "k"]]:
    """By distance: `a_k ~ exp(-alpha |x - c_k|^2)`, which is `w = 2 alpha c`, `b = -alpha |c|^2`.

    `alpha = -ln .01 / mean(d2_2 - d2_1)`, the two smallest squared distances of each descriptor.
    """
    centroids = codebook.centroids
    squares = np.einsum("kd,kd->k", centroids, centroids)
    alpha = _sharpness(2 * (descriptors @ centroids.T) - squares)  # |x|^2 is in both distances
    return 2 * alpha * centroids, -alpha * squares


def _sharpness(closeness: Float32[np.ndarray, "n k"]) -> np.float32:
    """alpha: the best word outdoes the second by `-ln .01` in the mean. Any value serves one word: 1."""
    if closeness.shape[1] < 2:
        return np.float32(1)
    second, best = np.partition(closeness, -2, axis=1)[:, -2:].T
    return np.float32(_DECIDED / max(np.mean(best - second, dtype=np.float64), _LEAST_GAP))
