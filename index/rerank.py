"""Looking again at the best answers, pair by pair: hits in, better ordered hits out, each with its evidence.

Every pair step adds nothing or something to a score, never takes away: an answer that was not looked at keeps
its similarity, and stands where that puts it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from index.expansion import ExpansionSettings, expand_query
from index.scan import Scanned
from index.steps import Evidence, PairStep, Query
from ingest.feature_reader import Place
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected

Read = Callable[[Sequence[Place], Collection[str]], list[ImageFeatures | Rejected]]


@dataclass(frozen=True)
class Hit:
    """One answer.

    similarity: inner product with the query, as the index estimates it, in [-1, 1].
    score: the similarity and what steps added to it.
    evidence: what each step that looked at it found.
    """

    image_id: int
    place: Place
    similarity: float
    score: float
    evidence: tuple[Evidence, ...] = ()


def hits_of(found: Scanned) -> list[Hit]:
    """The answers of an index as hits, nothing looked at yet."""
    scores = found.scores.tolist()
    return [
        Hit(image, place, score, score)
        for image, place, score in zip(found.image_ids.tolist(), found.places, scores, strict=True)
    ]


def look_again(step: PairStep, depth: int, query: Query, hits: Sequence[Hit], read: Read) -> list[Hit]:
    """The hits after a step has looked at the first `depth` of them: by score descending, then image id.

    A hit whose features cannot be had (its image is gone, and they were not stored) is not looked at.

    Args:
        hits: best first.
    """
    first = list(hits[:depth])
    found = read([hit.place for hit in first], step.labels) if first else []
    seen = {at: features for at, features in enumerate(found) if not isinstance(features, Rejected)}
    evidence = step.score(query, list(seen.values()), [first[at].score for at in seen])
    for at, each in zip(seen, evidence, strict=True):
        hit = first[at]
        first[at] = replace(hit, score=hit.score + each.added, evidence=(*hit.evidence, each))
    return ranked_hits([*first, *hits[depth:]])


def expanded(
    vector: Float32[np.ndarray, " d"],
    hits: Sequence[Hit],
    settings: ExpansionSettings,
    read: Callable[[Sequence[Place]], Float32[np.ndarray, "n d"]],
) -> Float32[np.ndarray, " d"]:
    """A query's vector mixed with its nearest hits by their similarities (`index.expansion`).

    Args:
        vector: (d,) float32, L2-normalised.
        hits: best first; without any the vector stays as it is.
        read: the stored vectors of some places.
    """
    first = hits[: settings.neighbours]
    if not first:
        return vector
    scores = np.array([hit.similarity for hit in first], np.float32)
    return expand_query(vector, read([hit.place for hit in first]), scores, settings)


def ranked_hits(hits: Sequence[Hit]) -> list[Hit]:
    """By score descending, then image id ascending."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.image_id))
