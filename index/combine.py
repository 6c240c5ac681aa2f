"""Several query vectors as one: Rocchio's relevance feedback (1971), on L2-normalised vectors.

    combined = mean of positives - weight x mean of negatives,    then L2-normalised

Averaging a few views of one thing before the search is average query expansion with images that a person has
picked, which no wrong answer can spoil. Measured on covers and products (`sift-vlad`, `effnet-gem`), with the
first one or three wrong answers as negatives and what was picked out of the ranking: weights of .1 and .25
change mAP by 0 to +.017, .5 by -.04 to 0, 1 by -.02 to -.23; a second positive lifts it by .03 to .05.
"""

import numpy as np
from jaxtyping import Float32

from index.projection import l2_normalised
from ingest.errors import BadInput

NEGATIVE_WEIGHT = 0.25
_NOTHING = 1e-6  # a sum this short is rounding: its direction means nothing


def combine(
    positives: Float32[np.ndarray, "n d"],
    negatives: Float32[np.ndarray, "m d"] | None = None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> Float32[np.ndarray, " d"]:
    """One query vector for images that show the thing, and images that do not.

    The order of the rows changes nothing but rounding. Where positives and negatives cancel, the negatives
    are left out; where the positives cancel each other, the first of them is what is asked for.

    Args:
        positives: (n, d) float32, L2-normalised; at least one.
        negatives: (m, d) likewise; none by default.
        negative_weight: how much the mean of the negatives counts beside that of the positives.

    Returns:
        (d,) float32, L2-normalised. One positive and no negatives: the very same numbers.

    Raises:
        BadInput: no positives, or shapes that do not belong together.
    """
    others = np.empty((0, *positives.shape[1:]), np.float32) if negatives is None else negatives
    if (
        positives.ndim != 2
        or not len(positives)
        or others.ndim != 2
        or (len(others) and others.shape[1] != positives.shape[1])
    ):
        raise BadInput(
            f"cannot combine query vectors of shapes {positives.shape} and {others.shape}: give at least one "
            "positive, and negatives as long as the positives"
        )
    first: np.ndarray = positives[0]
    if len(positives) == 1 and not len(others):
        return first
    wanted = positives.mean(axis=0, dtype=np.float64)
    unwanted = others.mean(axis=0, dtype=np.float64) if len(others) else np.zeros_like(wanted)
    for mixed in (wanted - negative_weight * unwanted, wanted):
        if np.linalg.norm(mixed) > _NOTHING:
            combined: np.ndarray = l2_normalised(mixed[None])[0].astype(np.float32)
            return combined
    return first
