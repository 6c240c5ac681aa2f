"""Learned whitening: images of one thing come to lie close (Radenović et al. 2019).

The differences of matching pairs are made white (Mikolajczyk and Matas 2007), then the directions of most
variance of all vectors are kept. PCA-whitening, which needs no pairs, shrinks every direction by how much
all images differ in it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field, field_validator

from index.fitting import fit_threads
from index.projection import Projection, gram, notes_of_rank, random_projection, rank_of, with_fixed_signs
from ingest.errors import BadInput

# What epsilon becomes where the pairs' covariance has no inverse. Of 0.001 to 3 it retrieved best on made-up
# vectors (256-D, classes and noise with falling spectra, 60 to 2,400 pairs).
_SINGULAR = 0.01
_CHUNK = 1024

Back = Callable[[Float64[np.ndarray, "d r"]], Float64[np.ndarray, "d D"]]


class LearnedWhiteningSettings(BaseModel):
    """How many dimensions are kept, and where the pairs come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["learned"] = "learned"
    dim: int = Field(
        default=128,
        ge=1,
        description="components kept; D x dim x 4 bytes of model in every worker (16 MiB for 32,768 to 128)",
    )
    label_pattern: str = Field(
        description="regular expression searched in SOURCE/KEY; its first group is the image's label, images "
        "where nothing matches have none. Images of one label show one thing, and are paired"
    )
    epsilon: float = Field(
        default=0.01,
        ge=0,
        description="added to every variance of the pairs' differences, as a multiple of the mean variance; "
        "more trusts few pairs less (0: nothing, as published, but 0.01 if there is no inverse without)",
    )
    sample_images: int = Field(
        default=4096,
        ge=1,
        description="images fitted on, label by label (up to 16 of each), then any; memory while fitting "
        "= 2 x sample_images x D x 4 bytes (1 GiB at D = 32,768) + 10 x min(sample_images, D)^2 x 8 bytes "
        "(1.3 GiB)",
    )
    sample_pairs: int = Field(
        default=16_384,
        ge=1,
        description="pairs fitted on, at most; each costs min(sample_images, D)^2 multiplications",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="draws the pairs")

    @field_validator("label_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if groups < 1:
            raise ValueError(f"{pattern!r} has no group: put the part that is the label in parentheses")
        return pattern


def labels_of(names: Sequence[str], pattern: str) -> list[str | None]:
    """The label of each SOURCE/KEY: the pattern's first group where it matches somewhere, else None."""
    search = re.compile(pattern).search
    return [found[1] if (found := search(name)) else None for name in names]


def pairs_of_labels(
    labels: Sequence[str | None], seed: int, most: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Pairs of places that bear the same label, no pair twice.

    The images of a label stand in a circle, in random order, and each is paired with the one after it, then
    with the one after that, and so on, until all pairs are made or there would be more than `most`; the last
    round is drawn from. So each image is in about as many pairs as any other, whatever the size of its label.

    Args:
        labels: of each image; None for an image without one.
        seed: draws the circles and the last round.
        most: pairs, 1 or more.

    Returns:
        Queries and positives, m <= most places each, m = 0 if no two images share a label.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            members.setdefault(label, []).append(place)
    circles = [rng.permutation(places) for places in members.values() if len(places) > 1]
    queries, positives = np.empty(0, np.int64), np.empty(0, np.int64)
    step = 1
    while len(queries) < most and (circles := [circle for circle in circles if len(circle) >= 2 * step]):
        # Half way round an even circle each pair comes up from both its ends.
        ends = [circle[:step] if len(circle) == 2 * step else circle for circle in circles]
        others = [np.roll(circle, -step)[: len(end)] for circle, end in zip(circles, ends, strict=True)]
        found = np.stack([np.concatenate(ends), np.concatenate(others)])
        if found.shape[1] > most - len(queries):
            found = found[:, np.sort(rng.permutation(found.shape[1])[: most - len(queries)])]
        queries, positives = np.concatenate([queries, found[0]]), np.concatenate([positives, found[1]])
        step += 1
    return queries, positives


def fit_learned_whitening(
    vectors: Float32[np.ndarray, "n D"],
    queries: Int64[np.ndarray, "m"],
    positives: Int64[np.ndarray, "m"],
    settings: LearnedWhiteningSettings,
) -> Projection:
    """Fits the projection on vectors and on pairs of them that show one thing.

    With `m = mean(queries)`, S the mean of `(q - p)(q - p)^T` plus epsilon times its mean variance on the
    diagonal, L its Cholesky factor and `P = L^-1`, the rows of the result are the leading eigenvectors of all
    `P (x - m)`, times P. Only directions that the vectors span count. Sums run in float64; the sign of each
    row is fixed: its largest component is positive. The same input gives the same bytes.

    Pairs that differ in fewer directions than the vectors span (too few pairs, mostly) leave the rest to
    epsilon, which is 0.01 there if the settings say 0; pairs of copies whiten nothing; vectors that span
    fewer dimensions than asked give fewer; vectors that are all equal, random directions. Each is said in
    `notes`.

    Args:
        vectors: (n, D) float32; the caller draws at most `sample_images`. The pairs' images are among them.
        queries, positives: (m,) rows of `vectors`, as `pairs_of_labels` pairs them.
        settings: dimensions and epsilon; the rest is for whoever draws.

    Raises:
        BadInput: there are no pairs, or some vectors are not finite.
    """
    if len(queries) == 0 or len(queries) != len(positives):
        raise BadInput(
            f"learned whitening needs pairs, got {len(queries)} queries and {len(positives)} positives: "
            f"no two images share a label of label_pattern {settings.label_pattern!r}; change it, or take "
            "kind: pca"
        )
    if not np.isfinite(vectors).all():
        raise BadInput("cannot fit a projection: some vectors are NaN or infinite; check what made them")
    with fit_threads():
        mean = _mean(vectors, queries)
        coordinates, back = _span(vectors - mean)
        r = coordinates.shape[1]
        if r == 0:
            return random_projection(vectors.shape[1], len(vectors), settings.dim, settings.seed)
        whitener, notes = _whitener(
            _covariance(coordinates, queries, positives), len(queries), settings.epsilon
        )
        projected = coordinates @ whitener.T
        directions = np.linalg.eigh(projected.T @ projected)[1].T[::-1][: settings.dim]
        matrix = with_fixed_signs(back(directions @ whitener)).astype(np.float32)
    notes += notes_of_rank(len(matrix), len(vectors), settings.dim)
    return Projection(mean, matrix, settings.dim, notes)


def _mean(vectors: Float32[np.ndarray, "n D"], queries: Int64[np.ndarray, "m"]) -> Float32[np.ndarray, "D"]:
    counts = np.bincount(queries, minlength=len(vectors)) / len(queries)
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), _CHUNK):
        rows = slice(start, start + _CHUNK)
        total += counts[rows] @ vectors[rows].astype(np.float64)
    return total.astype(np.float32)


def _span(centred: Float32[np.ndarray, "n D"]) -> tuple[Float64[np.ndarray, "n r"], Back]:
    """Coordinates of the vectors in an orthonormal basis of what they span, and the way back from it.

    The basis V (r, D) itself is not made where there are more dimensions than vectors: `V = E^T X / s`, with
    E and s^2 the eigenvectors and eigenvalues of `X X^T`.
    """
    dual = len(centred) < centred.shape[1]
    eigenvalues, vectors = np.linalg.eigh(gram(centred) if dual else gram(centred.T))
    r = rank_of(eigenvalues / len(centred))
    if r == 0:
        return np.empty((len(centred), 0)), lambda rows: rows
    lengths, basis = np.sqrt(eigenvalues[-r:]), np.ascontiguousarray(vectors[:, -r:])
    if dual:
        return basis * lengths, lambda rows: _times((rows / lengths) @ basis.T, centred)
    return _times(basis.T, centred.T).T, lambda rows: rows @ basis.T


def _times(left: Float64[np.ndarray, "m k"], right: Float32[np.ndarray, "k c"]) -> Float64[np.ndarray, "m c"]:
    """`left right` in float64, a block of columns at a time."""
    product = np.empty((len(left), right.shape[1]))
    for start in range(0, right.shape[1], _CHUNK):
        columns = slice(start, start + _CHUNK)
        product[:, columns] = left @ right[:, columns].astype(np.float64)
    return product


def _covariance(
    coordinates: Float64[np.ndarray, "n r"],
    queries: Int64[np.ndarray, "m"],
    positives: Int64[np.ndarray, "m"],
) -> Float64[np.ndarray, "r r"]:
    """The mean of `(q - p)(q - p)^T`; not centred, for which of a pair is the query is chance."""
    total = np.zeros((coordinates.shape[1],) * 2)
    for start in range(0, len(queries), _CHUNK):
        pairs = slice(start, start + _CHUNK)
        differences = coordinates[queries[pairs]] - coordinates[positives[pairs]]
        total += differences.T @ differences
    return total / len(queries)


def _whitener(
    covariance: Float64[np.ndarray, "r r"], pairs: int, epsilon: float
) -> tuple[Float64[np.ndarray, "r r"], tuple[str, ...]]:
    """`L^-1` for the covariance's Cholesky factor L, and what to say of it."""
    r = len(covariance)
    variances, mean = np.linalg.eigvalsh(covariance), np.trace(covariance) / r
    rank = rank_of(variances)
    if rank == 0:
        return np.eye(r), ("the projection does not whiten: the images of each of its pairs are copies",)
    if rank_of(variances + epsilon * mean) < r:
        epsilon = _SINGULAR
    whitener = np.linalg.inv(np.linalg.cholesky(covariance + epsilon * mean * np.eye(r)))
    if rank == r:
        return whitener, ()
    note = (
        f"the {pairs} pairs that the projection learned from differ in {rank} of {r} directions; the others "
        f"are scaled by epsilon {epsilon:g} alone: give more images labels, or raise epsilon"
    )
    return whitener, (note,)
