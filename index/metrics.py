"""Retrieval metrics on ranks: average precision, precision and recall at k, the Revisited protocol.

A *rank* is 0-based and counted after junk was removed. A positive that was not returned has no rank and
counts as zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ingest.errors import BadInput

Rule = Literal["trapezoid", "rectangle"]
Difficulty = Literal["easy", "medium", "hard"]

# Radenovic et al. 2018, section 3.3: which labels are positive; the others of the three are junk.
POSITIVE_LABELS: dict[Difficulty, tuple[str, ...]] = {
    "easy": ("easy",),
    "medium": ("easy", "hard"),
    "hard": ("hard",),
}


def ranks_of_positives(
    ranked: Int[np.ndarray, "n"],
    positives: Int[np.ndarray, "p"],
    junk: Int[np.ndarray, "j"] | None = None,
) -> Int[np.ndarray, "r"]:
    """The ranks of the positives among the results that are not junk, ascending; r <= p.

    Args:
        ranked: ids of the results, best first; negative ids (missing results) are skipped.
        positives: ids that are right.
        junk: ids that count neither as right nor as wrong, the query itself for one.
    """
    skipped = ranked < 0
    if junk is not None:
        skipped |= np.isin(ranked, junk)
    return np.flatnonzero(np.isin(ranked[~skipped], positives))


def average_precision(ranks: Int[np.ndarray, "r"], n_positives: int, rule: Rule = "trapezoid") -> float:
    """The area under the precision-recall curve of one query.

    For the j-th positive (0-based) at rank r, precision is (j+1)/(r+1) after it and j/r before it (1 at
    r = 0). The trapezoid rule takes the mean of both (the Oxford buildings benchmark), the rectangle rule
    the first alone (information retrieval, GLDv2). Either is divided by n_positives.

    Raises:
        BadInput: n_positives < 1, or more ranks than positives, or ranks that do not ascend.
    """
    ranks = np.asarray(ranks)
    if n_positives < 1 or len(ranks) > n_positives:
        raise BadInput(
            f"average precision of {len(ranks)} returned positives out of {n_positives}: there must be at "
            "least one positive, and each is returned once"
        )
    if len(ranks) and (ranks[0] < 0 or (np.diff(ranks) <= 0).any()):
        raise BadInput("average precision takes distinct 0-based ranks in ascending order")
    j = np.arange(len(ranks))
    after = (j + 1) / (ranks + 1)
    if rule == "rectangle":
        return float(after.sum() / n_positives)
    before = np.where(ranks == 0, 1.0, j / np.maximum(ranks, 1))
    return float((before + after).sum() / 2 / n_positives)


def mean_average_precision(
    ranks: Sequence[Int[np.ndarray, "_"]], n_positives: Sequence[int], rule: Rule = "trapezoid"
) -> float:
    """The mean over queries; a query without positives is left out.

    Raises:
        BadInput: no query has a positive.
    """
    values = [average_precision(r, n, rule) for r, n in zip(ranks, n_positives, strict=True) if n > 0]
    if not values:
        raise BadInput("no query has a positive: check that labels of queries and gallery are of one kind")
    return float(np.mean(values))


def precision_at(ranks: Int[np.ndarray, "r"], n_positives: int, k: int) -> float:
    """The share of positives among the first k' results, k' = min(k, 1 + rank of the last positive).

    Where a positive was not returned, the last rank lies beyond the results and k' = k.
    """
    if n_positives < 1 or k < 1:
        raise BadInput(f"precision at {k} with {n_positives} positives: both must be at least 1")
    depth = min(k, int(ranks[-1]) + 1) if len(ranks) == n_positives else k
    return float((np.asarray(ranks) < depth).sum() / depth)


def recall_at(ranks: Sequence[Int[np.ndarray, "_"]], k: int) -> float:
    """The share of queries with at least one positive among the first k (place recognition's recall@k)."""
    if not ranks or k < 1:
        raise BadInput(f"recall at {k} over {len(ranks)} queries: both must be at least 1")
    return float(np.mean([bool((np.asarray(r) < k).any()) for r in ranks]))


def neighbour_recall(
    exact: Float[np.ndarray, "q m"], returned: Float[np.ndarray, "q r"], k: int, tolerance: float = 1e-6
) -> float:
    """Recall@k of an approximate search, judged by score, so that either of two equals is right.

    Args:
        exact: (q, m) the m >= k best exact scores of each query, descending.
        returned: (q, r) the exact scores of the rows that the approximate search returned, best first;
            -inf for a missing row. The first k are looked at.
        k: neighbours that should be found.
        tolerance: how far below the k-th exact score still counts as equal.
    """
    if k < 1 or exact.shape[1] < k or len(exact) != len(returned) or len(exact) == 0:
        raise BadInput(
            f"neighbour recall at {k} needs at least {k} exact scores for each query, got {exact.shape} "
            f"exact and {returned.shape} returned"
        )
    threshold = exact[:, k - 1 : k] - tolerance
    return float((returned[:, :k] >= threshold).sum(axis=1).mean() / k)


@dataclass(frozen=True)
class RevisitedResult:
    """Figures of one difficulty. Queries without positives have NaN of their own and are left out of means.

    mean_average_precision: over queries. average_precisions: (q,). mean_precisions: mP@k by k.
    """

    mean_average_precision: float
    average_precisions: Float[np.ndarray, "q"]
    mean_precisions: dict[int, float]


def revisited(
    ranked: Int[np.ndarray, "q n"],
    ground_truth: Sequence[Mapping[str, Any]],
    difficulty: Difficulty,
    depths: Sequence[int] = (1, 5, 10),
) -> RevisitedResult:
    """Revisited Oxford and Paris (Radenovic et al. 2018): trapezoid AP with junk removed.

    Args:
        ranked: (q, n) gallery positions of each query, best first.
        ground_truth: for each query the gallery positions under `easy`, `hard` and `junk`.
        difficulty: easy, medium (easy and hard are positive) or hard; what is not positive is junk.
        depths: the k of mP@k.
    """
    if len(ranked) != len(ground_truth):
        raise BadInput(f"{len(ranked)} rankings for {len(ground_truth)} queries: give one for each")
    average = np.full(len(ranked), np.nan)
    precisions = np.full((len(ranked), len(depths)), np.nan)
    for place, (results, truth) in enumerate(zip(ranked, ground_truth, strict=True)):
        positives, junk = _positives_and_junk(truth, difficulty)
        if len(positives) == 0:
            continue
        ranks = ranks_of_positives(results, positives, junk)
        average[place] = average_precision(ranks, len(positives))
        precisions[place] = [precision_at(ranks, len(positives), k) for k in depths]
    if np.isnan(average).all():
        raise BadInput(f"no query has a positive at difficulty {difficulty!r}")
    means = np.nanmean(precisions, axis=0)
    return RevisitedResult(
        float(np.nanmean(average)), average, {k: float(mean) for k, mean in zip(depths, means, strict=True)}
    )


def _positives_and_junk(
    truth: Mapping[str, Any], difficulty: Difficulty
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "j"]]:
    positive = POSITIVE_LABELS[difficulty]
    groups = {name: np.asarray(truth[name], np.int64).ravel() for name in ("easy", "hard", "junk")}
    return (
        np.concatenate([ids for name, ids in groups.items() if name in positive]),
        np.concatenate([ids for name, ids in groups.items() if name not in positive]),
    )
