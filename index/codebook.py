"""The visual words: k-means centroids of local descriptors, and the nearest of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, Field

from index.fitting import draw_rows, fit_threads
from ingest.errors import BadInput

_CHUNK_ROWS = 8192


class CodebookSettings(BaseModel):
    """How the words are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="k, the number of words; a VLAD has words x d components, and assigning a descriptor "
        "costs words x d multiplications",
    )
    sample_descriptors: int = Field(
        default=131_072,
        ge=1,
        description="descriptors fitted on, drawn at random where there are more; memory while fitting = "
        "sample_descriptors x d x 4 bytes (64 MiB at 128-D), twice",
    )
    iterations: int = Field(
        default=20,
        ge=1,
        description="k-means iterations, each sample_descriptors x words x d multiplications",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="draws the sample and the first centroids")


@dataclass(frozen=True)
class Codebook:
    """Fitted words.

    centroids: (k, d) float32.
    asked: the number of words that the settings asked for; k is less where the descriptors fitted on had
    fewer distinct values.
    """

    centroids: Float32[np.ndarray, "k d"]
    asked: int

    @property
    def reduced(self) -> bool:
        return len(self.centroids) < self.asked

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the fit, a sentence each."""
        if not self.reduced:
            return ()
        return (
            f"the codebook has {len(self.centroids)} words instead of {self.asked}: the descriptors that it "
            "was fitted on have no more distinct values; refit when there are more images",
        )

    def assign(self, descriptors: Float32[np.ndarray, "n d"]) -> Int64[np.ndarray, "n"]:
        """The nearest word of each descriptor by Euclidean distance, exactly; of equals, the lowest index.

        Distances are compared as c.x - |c|^2/2 in float32, so words nearer than its rounding are equals.
        Memory: 8192 x k x 4 bytes.
        """
        words = np.empty(len(descriptors), np.int64)
        half_norms = np.einsum("kd,kd->k", self.centroids, self.centroids) / 2
        for start in range(0, len(descriptors), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            closeness = descriptors[rows] @ self.centroids.T
            closeness -= half_norms
            words[rows] = closeness.argmax(axis=1)
        return words

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"centroids": self.centroids, "asked": np.array(self.asked, np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(np.ascontiguousarray(arrays["centroids"], np.float32), int(arrays["asked"]))


def fit_codebook(descriptors: Float32[np.ndarray, "n d"], settings: CodebookSettings) -> Codebook:
    """Fits the words by k-means (faiss), on at most `sample_descriptors` of the descriptors.

    The same descriptors in the same order give the same bytes.

    Raises:
        BadInput: there are no descriptors, or some are not finite.
    """
    if len(descriptors) == 0:
        raise BadInput(
            "cannot fit a codebook on no descriptors: none of the images has a key point; "
            "check the images, or lower contrast_threshold"
        )
    sample = draw_rows(descriptors, settings.sample_descriptors, settings.seed)
    if not np.isfinite(sample).all():
        raise BadInput("cannot fit a codebook: some descriptors are NaN or infinite; check what made them")
    distinct = _distinct_rows(sample, settings.words + 1)
    if len(distinct) <= settings.words:  # k-means would only find these again, and near-copies of them
        return Codebook(distinct, settings.words)
    return Codebook(_k_means(sample, settings), settings.words)


def _distinct_rows(rows: Float32[np.ndarray, "n d"], enough: int) -> Float32[np.ndarray, "m d"]:
    """The distinct rows in the order of their first appearance; looks no further once it has `enough`."""
    seen: dict[bytes, int] = {}
    for position, row in enumerate(rows):
        seen.setdefault(row.tobytes(), position)
        if len(seen) >= enough:
            break
    return rows[list(seen.values())]


def _k_means(sample: Float32[np.ndarray, "n d"], settings: CodebookSettings) -> np.ndarray:
    import faiss

    with fit_threads():
        kmeans = faiss.Kmeans(
            sample.shape[1],
            settings.words,
            niter=settings.iterations,
            seed=settings.seed,
            min_points_per_centroid=1,  # only silences a warning; reduced codebooks are handled above
            max_points_per_centroid=len(sample),  # faiss would draw a sample of its own
        )
        kmeans.train(sample)
    return np.ascontiguousarray(kmeans.centroids, np.float32)
