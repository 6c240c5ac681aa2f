"""IVFADC (Jegou, Douze and Schmid 2011) with OPQ (Ge et al. 2013): lists of product-quantized residuals.

Scores are inner products: query with centroid, plus query with the decoded residual.
"""

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from index.fitting import fit_threads
from index.flat import FlatSettings, train_flat
from ingest.errors import BadInput

if TYPE_CHECKING:
    import faiss

CODE_VALUES = 256  # one byte a sub-vector: fewer vectors than this cannot train it
LEAST_A_LIST = 39  # faiss's own least number of training vectors a centroid
# Below, one list: it is read in a millisecond, and centroids fitted on few vectors cost precision (mAP .889
# with one list, .877 with 14, of 564 photographs).
FEW_VECTORS = 10_000
_OPQ_SAMPLE = 16_384


class IvfadcSettings(BaseModel):
    """Size, speed and precision of the codes. An image costs code_bytes + 8 (its row number)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ivfadc"] = "ivfadc"
    lists: int | Literal["auto"] = Field(
        default="auto",
        description="inverted lists; auto is 4 sqrt(n) for n vectors fitted on, and 1 below 10,000. Never "
        "more than n / 39. A "
        "query reads nprobe / lists of the codes",
    )
    code_bytes: int = Field(
        default=16,
        ge=1,
        le=256,
        description="m, bytes a code: sub-vectors of 8 bits each; scan time is proportional",
    )
    opq: bool = Field(
        default=True,
        description="rotate first so that sub-vectors are balanced; d x d multiplications a query",
    )
    opq_dim: int | None = Field(
        default=None,
        ge=1,
        description="dimensions kept by the rotation, a multiple of code_bytes; null keeps all, and pads",
    )
    opq_iterations: int = Field(
        default=8, ge=1, description="rounds of fitting the rotation, on 16,384 vectors at most"
    )
    nprobe: int = Field(
        default=16,
        ge=1,
        description="lists that a query reads unless it says otherwise; time is proportional",
    )
    sample_vectors: int = Field(
        default=131_072,
        ge=1,
        description="vectors fitted on, drawn at random where there are more; memory while fitting = "
        "sample_vectors x d x 4 bytes (64 MiB at 128-D), three times",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="draws the sample and the first centroids")


def train_ivfadc(
    vectors: Float32[np.ndarray, "n d"], settings: IvfadcSettings
) -> tuple["faiss.Index", tuple[str, ...]]:
    """An empty trained index, and what was done otherwise than asked, a sentence each.

    Fewer than 256 vectors cannot train 8-bit codes: the index is then flat (exact, d x 4 bytes a vector).
    """
    import faiss

    n, d = vectors.shape
    if n < CODE_VALUES:
        index, _ = train_flat(vectors, FlatSettings())
        return index, (
            f"the index is flat (exact, uncompressed): {n} vectors cannot train 8-bit codes, which takes "
            f"{CODE_VALUES}; refit when there are more images",
        )
    lists, notes = _lists(n, settings)
    code_bytes, rotated, more_notes = _code_shape(d, settings)
    index = faiss.index_factory(rotated, f"IVF{lists},PQ{code_bytes}np", faiss.METRIC_INNER_PRODUCT)
    _quietly_seeded(index.cp, settings.seed)
    _quietly_seeded(index.pq.cp, settings.seed)
    if settings.opq:
        rotation = faiss.OPQMatrix(d, code_bytes, rotated)
        rotation.niter = settings.opq_iterations
        rotation.max_train_points = _OPQ_SAMPLE
        codes = faiss.ProductQuantizer(rotated, code_bytes, 8)
        _quietly_seeded(codes.cp, settings.seed)
        rotation.pq = codes
    with fit_threads():
        if settings.opq:
            rotation.train(vectors)
            rotation.pq = None
            index.train(rotation.apply(vectors))
            index = faiss.IndexPreTransform(rotation, index)
        else:
            index.train(vectors)
    return index, notes + more_notes


def _lists(n: int, settings: IvfadcSettings) -> tuple[int, tuple[str, ...]]:
    most = n // LEAST_A_LIST
    if settings.lists == "auto":
        return (1 if n < FEW_VECTORS else min(4 * math.isqrt(n), most)), ()
    if settings.lists < 1:
        raise BadInput(f"lists is {settings.lists}: set it to auto or at least 1")
    if settings.lists <= most:
        return settings.lists, ()
    return most, (
        f"the index has {most} lists instead of {settings.lists}: that takes "
        f"{settings.lists * LEAST_A_LIST} vectors to fit on, and there were {n}",
    )


def _code_shape(d: int, settings: IvfadcSettings) -> tuple[int, int, tuple[str, ...]]:
    """Bytes a code, and the dimension that is coded, a multiple of it."""
    m = settings.code_bytes
    if settings.opq:
        rotated = settings.opq_dim or math.ceil(d / m) * m
        if rotated % m:
            raise BadInput(f"opq_dim ({rotated}) must be a multiple of code_bytes ({m})")
        return m, rotated, ()
    if settings.opq_dim is not None:
        raise BadInput("opq_dim is set but opq is off: turn opq on, or leave opq_dim out")
    fitting = max(bytes_ for bytes_ in range(1, min(m, d) + 1) if d % bytes_ == 0)
    if fitting == m:
        return m, d, ()
    return (
        fitting,
        d,
        (
            f"codes have {fitting} bytes instead of {m}: vectors of {d} components do not divide into {m} "
            "equal parts; turn opq on to have them padded",
        ),
    )


def _quietly_seeded(clustering: "faiss.ClusteringParameters", seed: int) -> None:
    clustering.seed = seed
    clustering.min_points_per_centroid = 1  # only silences a warning
