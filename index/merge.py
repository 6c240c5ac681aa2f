"""Merging the answers of several shards into one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from ingest.errors import BadInput

MISSING_ID = -1
MISSING_SCORE = -1.0


def merge_topk(
    scores: Sequence[Float32[np.ndarray, "q _"]],
    ids: Sequence[Int64[np.ndarray, "q _"]],
    k: int,
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """The k best of several answers to the same queries: by score descending, then id ascending.

    Any order of the answers and any nesting of merges give the same result, for it is the first k of the
    one sorted union.

    Args:
        scores: one (q, k_i) float32 an answer.
        ids: one (q, k_i) int64 an answer; a negative id is a missing result and is dropped.
        k: results to keep.

    Returns:
        (q, k) scores and ids; where there are fewer than k results the rest is id -1 with score -1.

    Raises:
        BadInput: no answers, k < 1, or shapes that do not belong together.
    """
    if (
        not scores
        or len(scores) != len(ids)
        or any(s.shape != i.shape for s, i in zip(scores, ids, strict=True))
    ):
        raise BadInput("merge takes at least one answer, and scores and ids of the same shapes")
    if k < 1 or len({s.shape[0] for s in scores}) != 1:
        raise BadInput(f"merge takes k of at least 1 (got {k}) and answers to the same number of queries")
    all_scores, all_ids = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
    missing = all_ids < 0
    order = np.lexsort((all_ids, -all_scores, missing), axis=1)[:, :k]
    best_missing = np.take_along_axis(missing, order, axis=1)
    best_scores = np.full((len(all_scores), k), MISSING_SCORE, np.float32)
    best_ids = np.full((len(all_ids), k), MISSING_ID, np.int64)
    width = order.shape[1]
    best_scores[:, :width] = np.where(
        best_missing, MISSING_SCORE, np.take_along_axis(all_scores, order, axis=1)
    )
    best_ids[:, :width] = np.where(best_missing, MISSING_ID, np.take_along_axis(all_ids, order, axis=1))
    return best_scores, best_ids
