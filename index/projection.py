"""PCA, whitening and L2 normalisation: long vectors to short ones (Jegou and Chum 2012)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Float32, Float64
from pydantic import BaseModel, ConfigDict, Field

from index.fitting import draw_rows, fit_threads
from ingest.errors import BadInput

_CHUNK_COLUMNS = 2048
_RANK_TOLERANCE = 1e-7  # of the largest eigenvalue: float32 input carries no more
_NO_VARIANCE = 1e-7  # what is below it times the tolerance is rounding, for vectors of about unit length


class ProjectionSettings(BaseModel):
    """How many dimensions are kept, and how they are scaled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pca"] = "pca"
    dim: int = Field(
        default=128,
        ge=1,
        description="components kept; D x dim x 4 bytes of model in every worker (16 MiB for 32,768 to 128)",
    )
    whiten: bool = Field(default=True, description="divide each component by its standard deviation")
    epsilon: float = Field(
        default=0.0,
        ge=0,
        description="added to every variance before whitening, as a multiple of the mean variance of the "
        "kept components; more trusts small components less (0: plain whitening)",
    )
    sample_images: int = Field(
        default=4096,
        ge=1,
        description="images fitted on, drawn at random where there are more; memory while fitting = "
        "2 x sample_images x D x 4 bytes (1 GiB at D = 32,768) + 4 x min(sample_images, D)^2 x 8 bytes "
        "(512 MiB)",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="draws the sample")


@dataclass(frozen=True)
class Projection:
    """A fitted projection.

    mean: (D,) float32, subtracted first.
    matrix: (d, D) float32; its rows are principal directions, most variance first, scaled if whitening.
    asked: the number of components that the settings asked for; d is less where the rank was.
    """

    mean: Float32[np.ndarray, "D"]
    matrix: Float32[np.ndarray, "d D"]
    asked: int
    notes: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Components that come out."""
        return len(self.matrix)

    def apply(self, vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n d"]:
        """`matrix (x - mean)`, then L2-normalised; what lands on zero stays zero.

        One vector at a time: the last bits of a product of many depend on how many there are, and a vector
        must not depend on the part that its image lies in.

        Raises:
            BadInput: the vectors have another length than those that were fitted on.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise BadInput(
                f"the projection takes vectors of {len(self.mean)} components, got an array of shape "
                f"{vectors.shape}: encode with the encoder that the projection was fitted with"
            )
        projected = np.empty((len(vectors), self.dim), np.float32)
        for vector, short in zip(vectors, projected, strict=True):
            short[:] = l2_normalised((self.matrix @ (vector - self.mean))[None])[0]
        return projected

    def to_arrays(self) -> dict[str, np.ndarray]:
        notes = "\n".join(self.notes).encode()
        return {
            "mean": self.mean,
            "matrix": self.matrix,
            "asked": np.array(self.asked, np.int64),
            "notes": np.frombuffer(notes, np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        notes = np.asarray(arrays["notes"], np.uint8).tobytes().decode()
        return cls(
            np.ascontiguousarray(arrays["mean"], np.float32),
            np.ascontiguousarray(arrays["matrix"], np.float32),
            int(arrays["asked"]),
            tuple(notes.splitlines()),
        )


def l2_normalised(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Each row divided by its L2 norm; a row of zeros stays zeros."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    normalised: np.ndarray = vectors / np.where(norms > 0, norms, np.float32(1))
    return normalised


def fit_projection(vectors: Float32[np.ndarray, "n D"], settings: ProjectionSettings) -> Projection:
    """Fits PCA on at most `sample_images` of the vectors.

    Eigenvectors come from the D x D covariance, or from the n x n Gram matrix where n < D: the same
    directions. Sums run in float64. The sign of each direction is fixed: its largest component is
    positive. The same vectors in the same order give the same bytes.

    n vectors span n - 1 directions at most: fewer components than asked come back where that is less. One
    vector (or copies of one) spans none: seeded random directions are taken, not centred, which keep
    similarities roughly (Johnson and Lindenstrauss). Either is said in `notes`.

    Raises:
        BadInput: there are no vectors, or some are not finite.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise BadInput("cannot fit a projection on no vectors: no image could be encoded")
    vectors = draw_rows(vectors, settings.sample_images, settings.seed)
    if not np.isfinite(vectors).all():
        raise BadInput("cannot fit a projection: some vectors are NaN or infinite; check what made them")
    with fit_threads():
        mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        variances, directions = _principal_directions(vectors - mean, settings.dim)
    if len(variances) == 0:
        return random_projection(vectors.shape[1], len(vectors), settings.dim, settings.seed)
    if settings.whiten:
        directions /= np.sqrt(variances + settings.epsilon * variances.mean())[:, None]
    notes = notes_of_rank(len(variances), len(vectors), settings.dim)
    return Projection(mean, directions.astype(np.float32), settings.dim, notes)


def _principal_directions(
    centred: Float32[np.ndarray, "n D"], dim: int
) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d D"]]:
    """The variances and unit directions of the first `dim` components with any variance, most first."""
    n = len(centred)
    dual = n < centred.shape[1]
    variances, vectors = np.linalg.eigh((gram(centred) if dual else gram(centred.T)) / n)
    kept = min(dim, rank_of(variances))
    variances = variances[::-1][:kept]
    vectors = vectors[:, ::-1][:, :kept]
    directions = _from_dual(vectors, centred, variances * n) if dual else np.ascontiguousarray(vectors.T)
    return variances, with_fixed_signs(directions)


def rank_of(variances: Float64[np.ndarray, "m"]) -> int:
    """How many eigenvalues, given in ascending order, are more than rounding."""
    return int((variances > _RANK_TOLERANCE * max(variances[-1], _NO_VARIANCE)).sum())


def gram(rows: Float[np.ndarray, "m c"]) -> Float64[np.ndarray, "m m"]:
    """`rows rows^T` in float64, a block of columns at a time."""
    product = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _CHUNK_COLUMNS):
        block = rows[:, start : start + _CHUNK_COLUMNS].astype(np.float64)
        product += block @ block.T
    return product


def _from_dual(
    vectors: Float64[np.ndarray, "n d"],
    centred: Float32[np.ndarray, "n D"],
    eigenvalues: Float64[np.ndarray, "d"],
) -> Float64[np.ndarray, "d D"]:
    """Unit eigenvectors of `X^T X` from those of `X X^T`: `X^T v / sqrt(eigenvalue)`."""
    directions = np.empty((vectors.shape[1], centred.shape[1]))
    for start in range(0, centred.shape[1], _CHUNK_COLUMNS):
        columns = slice(start, start + _CHUNK_COLUMNS)
        directions[:, columns] = vectors.T @ centred[:, columns].astype(np.float64)
    directions /= np.sqrt(eigenvalues)[:, None]
    return directions


def with_fixed_signs(directions: Float64[np.ndarray, "d D"]) -> Float64[np.ndarray, "d D"]:
    """The same rows, those turned around (in place) whose largest component is negative."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    directions *= signs[:, None]
    return directions


def random_projection(D: int, n: int, dim: int, seed: int) -> Projection:
    """Random directions, not centred, for n vectors that span none; says so in `notes`."""
    matrix = np.random.default_rng(seed).standard_normal((min(dim, D), D), dtype=np.float32)
    note = (
        f"the projection is random: the {n} vector(s) that it was fitted on span no direction; "
        "refit when there are more images"
    )
    return Projection(np.zeros(D, np.float32), matrix, dim, (note,))


def notes_of_rank(kept: int, n: int, asked: int) -> tuple[str, ...]:
    """What to say of a projection fitted on n vectors that has fewer components than asked."""
    if kept == asked:
        return ()
    return (
        f"the projection has {kept} components instead of {asked}: the {n} vectors that it was "
        "fitted on span no more; refit when there are more images",
    )
