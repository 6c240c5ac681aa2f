"""What is asked of a group of shards, what it answers, and the answers of several as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from index.filters import Filter
from index.shard_rows import Row
from ingest.feature_reader import Place


@dataclass(frozen=True, eq=False)
class Scan:
    """One question to a group.

    vector: (d,) float32, L2-normalised. k: images wanted. lists: inverted lists to read.
    where: only images that it lets through. detail: how many of the best come with their `Row`.
    """

    vector: Float32[np.ndarray, " d"]
    k: int
    lists: int
    where: Filter | None = None
    detail: int = 0


@dataclass(frozen=True, eq=False)
class Scanned:
    """The answer: m <= k images, by score descending, then image id ascending.

    scores: (m,) float32 in [-1, 1]. image_ids: (m,) int64. places: of each.
    allowed: rows that masks and filter let through, found or not.
    rows: of the first images, as many as were asked for. seconds: that it took.
    """

    scores: Float32[np.ndarray, " m"]
    image_ids: Int64[np.ndarray, " m"]
    places: tuple[Place, ...]
    allowed: int
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0


def merge_scanned(scanned: Sequence[Scanned], k: int, detail: int | None = None) -> Scanned:
    """The k best of several answers to one scan, as one group of all their shards would give them.

    Args:
        detail: rows to keep at the most; by default for as many of the best as all have theirs, which are
            the scan's `detail` at least. `seconds` are those of the slowest.
    """
    if len(scanned) == 1 and len(scanned[0].places) <= k and detail is None:
        return scanned[0]
    scores = np.concatenate([np.empty(0, np.float32), *(each.scores for each in scanned)])
    ids = np.concatenate([np.empty(0, np.int64), *(each.image_ids for each in scanned)])
    places = [place for each in scanned for place in each.places]
    rows = [
        each.rows[at] if at < len(each.rows) else None for each in scanned for at in range(len(each.places))
    ]
    order = np.lexsort((ids, -scores))[:k]
    best = order.tolist()
    known: list[Row] = []
    for at in best[:detail]:
        row = rows[at]
        if row is None:
            break
        known.append(row)
    return Scanned(
        scores[order],
        ids[order],
        tuple(places[at] for at in best),
        sum(each.allowed for each in scanned),
        tuple(known),
        max((each.seconds for each in scanned), default=0.0),
    )


def enough(merged: Scanned, k: int) -> bool:
    """Whether min(k, rows allowed) were found; if not, scan again with more lists (`list_schedule`)."""
    return len(merged.image_ids) >= min(k, merged.allowed)
