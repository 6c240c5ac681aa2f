"""Search in one faiss index: the nearest rows, under a mask, with as many lists as that takes."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from index.serialised import ivf_of
from ingest.errors import BadInput

if TYPE_CHECKING:
    import faiss

MISSING_ROW = -1
MISSING_SCORE = -1.0


def selector_bitmap(allowed: Bool[np.ndarray, "n"]) -> UInt8[np.ndarray, "n_bytes"]:
    """Which rows may be found, as `search` takes it: row i is bit `i % 8` of byte `i // 8`."""
    return np.packbits(np.asarray(allowed, bool), bitorder="little")


def search(
    index: "faiss.Index",
    queries: Float32[np.ndarray, "q d"],
    k: int,
    nprobe: int | None = None,
    selector: UInt8[np.ndarray, "n_bytes"] | None = None,
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """The k rows with the largest inner product with each query, as the index estimates it.

    The index is shared and never changed: parameters travel with the call. Where fewer than
    min(k, rows allowed) were found, twice as many lists are read, and so on to all of them: k results
    come back if k exist.

    Args:
        index: flat, IVF, or a transform before either; inner product.
        queries: (q, d) float32, L2-normalised.
        k: results a query.
        nprobe: lists to read first; None reads the index's own number. No meaning for a flat index.
        selector: (ceil(rows / 8),) uint8 from `selector_bitmap`; None allows every row.

    Returns:
        scores: (q, k) float32, clipped to [-1, 1], descending; of equals, the lower row first.
        rows: (q, k) int64. Where fewer than k rows are allowed, the rest is row -1 with score -1.

    Raises:
        BadInput: shapes do not fit, k < 1, nprobe < 1, or a query is not finite.
    """
    _check(index, queries, k, nprobe, selector)
    queries = np.ascontiguousarray(queries, np.float32)
    allowed = index.ntotal if selector is None else _count(selector, index.ntotal)
    depth = min(k, allowed)
    scores = np.full((len(queries), k), MISSING_SCORE, np.float32)
    rows = np.full((len(queries), k), MISSING_ROW, np.int64)
    if depth == 0 or len(queries) == 0:
        return scores, rows
    pending = np.arange(len(queries))
    for lists in _list_counts(index, nprobe):
        found_scores, found_rows = index.search(
            queries[pending], depth, params=_parameters(index, lists, selector)
        )
        scores[pending, :depth], rows[pending, :depth] = _ordered(found_scores, found_rows)
        pending = pending[rows[pending, depth - 1] == MISSING_ROW]
        if len(pending) == 0:
            break
    return scores, rows


def _check(
    index: "faiss.Index", queries: np.ndarray, k: int, nprobe: int | None, selector: np.ndarray | None
) -> None:
    if queries.ndim != 2 or queries.shape[1] != index.d:
        raise BadInput(
            f"the index holds vectors of {index.d} components, the queries have shape {queries.shape}: "
            "encode the query with the models of the same generation"
        )
    if not np.isfinite(queries).all():
        raise BadInput("a query vector has NaN or infinite components; check what made it")
    if k < 1:
        raise BadInput(f"asked for the {k} nearest: ask for at least 1")
    if nprobe is not None and nprobe < 1:
        raise BadInput(f"nprobe is {nprobe}: read at least 1 list")
    if selector is not None and (selector.dtype != np.uint8 or selector.shape != (-(-index.ntotal // 8),)):
        raise BadInput(
            f"the selector has shape {selector.shape} and type {selector.dtype}, for {index.ntotal} rows it "
            f"must be ({-(-index.ntotal // 8)},) uint8: make it with selector_bitmap"
        )


def _count(selector: UInt8[np.ndarray, "n_bytes"], rows: int) -> int:
    whole = int(np.bitwise_count(selector).sum())
    spare = 8 * len(selector) - rows
    return whole - (int(selector[-1]) >> (8 - spare)).bit_count() if spare else whole


def _list_counts(index: "faiss.Index", nprobe: int | None) -> list[int]:
    """The numbers of lists to try, each twice the one before, up to all; one try for a flat index."""
    ivf = ivf_of(index)
    if ivf is None:
        return [0]
    counts = [min(nprobe or ivf.nprobe, ivf.nlist)]
    while counts[-1] < ivf.nlist:
        counts.append(min(2 * counts[-1], ivf.nlist))
    return counts


def _parameters(
    index: "faiss.Index", lists: int, selector: UInt8[np.ndarray, "n_bytes"] | None
) -> "faiss.SearchParameters":
    import faiss

    chosen = {} if selector is None else {"sel": faiss.IDSelectorBitmap(selector)}
    if ivf_of(index) is None:
        return faiss.SearchParameters(**chosen)
    parameters = faiss.SearchParametersIVF(nprobe=lists, **chosen)
    if isinstance(faiss.downcast_index(index), faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=parameters)
    return parameters


def _ordered(
    scores: Float32[np.ndarray, "q k"], rows: Int64[np.ndarray, "q k"]
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """By score descending, then row ascending; missing rows last, with the missing score."""
    missing = rows == MISSING_ROW
    clipped = np.where(missing, np.float32(MISSING_SCORE), np.clip(scores, -1, 1))
    order = np.lexsort((rows, -clipped, missing), axis=1)
    return np.take_along_axis(clipped, order, axis=1), np.take_along_axis(rows, order, axis=1)
