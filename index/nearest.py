"""Search in one faiss index: the nearest rows, under a mask, with as many lists as that takes."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

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
    min(k, rows allowed) were found, more lists are read (`list_schedule`): k results come back if k exist.

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
    allowed = index.ntotal if selector is None else count_rows(selector, index.ntotal)
    depth = min(k, allowed)
    if depth == 0 or len(queries) == 0:
        empty = (len(queries), k)
        return np.full(empty, MISSING_SCORE, np.float32), np.full(empty, MISSING_ROW, np.int64)
    attempts = _attempts(index, nprobe, selector)
    scores, rows = index.search(queries, depth, params=next(attempts))
    for parameters in attempts:
        pending = np.flatnonzero(rows[:, -1] == MISSING_ROW)
        if len(pending) == 0:
            break
        scores[pending], rows[pending] = index.search(queries[pending], depth, params=parameters)
    scores, rows = widened(scores, rows, k)
    if rows[:, -1].min() == MISSING_ROW:
        scores[rows == MISSING_ROW] = MISSING_SCORE
    np.minimum(np.maximum(scores, -1, out=scores), 1, out=scores)
    return ranked(scores, rows)


def widened(
    scores: Float32[np.ndarray, "q _"], numbers: Int64[np.ndarray, "q _"], k: int
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """The same answers with missing ones up to k."""
    if scores.shape[1] == k:
        return scores, numbers
    more = ((0, 0), (0, k - scores.shape[1]))
    wider = np.pad(scores, more, constant_values=MISSING_SCORE)
    return wider, np.pad(numbers, more, constant_values=MISSING_ROW)


def ranked(
    scores: Float32[np.ndarray, "q k"], numbers: Int64[np.ndarray, "q k"]
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Answers by score descending, then row or image id ascending; missing ones, which are negative, last.

    faiss's answers are in that order but for ties, so only the queries that have some are sorted: sorting
    all costs as much as a search in some thousand codes.
    """
    falling = scores[:, 1:] < scores[:, :-1]
    if falling.all():
        return scores, numbers
    uneven = np.flatnonzero(~falling.all(axis=1))
    some_scores, some_numbers = scores[uneven], numbers[uneven]
    order = np.lexsort((some_numbers, -some_scores, some_numbers < 0), axis=1)
    scores, numbers = scores.copy(), numbers.copy()
    scores[uneven] = np.take_along_axis(some_scores, order, axis=1)
    numbers[uneven] = np.take_along_axis(some_numbers, order, axis=1)
    return scores, numbers


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


def count_rows(selector: UInt8[np.ndarray, "n_bytes"], rows: int) -> int:
    """How many of some rows a selector lets through."""
    whole = int(np.bitwise_count(selector).sum())
    spare = 8 * len(selector) - rows
    return whole - (int(selector[-1]) >> (8 - spare)).bit_count() if spare else whole


def list_schedule(nprobe: int, lists: int) -> Iterator[int]:
    """How many of an index's lists to read, one try after the other: nprobe, four times that, all."""
    tries = [min(nprobe, lists)]
    if 4 * nprobe < lists:
        tries.append(4 * nprobe)
    if tries[-1] < lists:
        tries.append(lists)
    yield from tries


def _attempts(
    index: "faiss.Index", nprobe: int | None, selector: UInt8[np.ndarray, "n_bytes"] | None
) -> "Iterator[faiss.SearchParameters]":
    """Parameters with ever more lists, up to all; one try for a flat index."""
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        yield search_parameters(index, None, selector)
        return
    for lists in list_schedule(nprobe or ivf.nprobe, ivf.nlist):
        yield search_parameters(index, lists, selector)


def search_parameters(
    index: "faiss.Index", lists: int | None, selector: UInt8[np.ndarray, "n_bytes"] | None
) -> "faiss.SearchParameters":
    """What faiss is told with a search; searches only read it, so it may be shared by threads.

    Args:
        lists: to read; None for a flat index.
    """
    import faiss

    transformed = isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
    return _unfiltered(lists, transformed) if selector is None else _parameters(lists, transformed, selector)


@lru_cache(maxsize=256)
def _unfiltered(lists: int | None, transformed: bool) -> "faiss.SearchParameters":
    """Searches only read their parameters, and making them takes as long as scanning a thousand codes."""
    return _parameters(lists, transformed, None)


def _parameters(
    lists: int | None, transformed: bool, selector: UInt8[np.ndarray, "n_bytes"] | None
) -> "faiss.SearchParameters":
    import faiss

    chosen = {} if selector is None else {"sel": faiss.IDSelectorBitmap(selector)}
    if lists is None:
        return faiss.SearchParameters(**chosen)
    parameters = faiss.SearchParametersIVF(nprobe=lists, **chosen)
    return faiss.SearchParametersPreTransform(index_params=parameters) if transformed else parameters
