"""Near-duplicates: copies of one photograph (resized, encoded anew, cropped a little), by their vectors.

Groups are the connected components of "similarity at or above a threshold", single linkage: a copy of a copy
belongs to the group even where it is a little too far from the first.

Measured on stored vectors of covers, products and places, by `sift-vlad`, `effnet-patches` and `effnet-gem`:
a photograph encoded anew (JPEG quality 50), or cropped by 2.5 % on each side, is at a median of .90 or more
from itself (frames of 160 x 120 pixels by `effnet-gem`: .65 to .8). Of pairs of different photographs of one
thing 1 in 100 reaches .60 to .92, bursts mostly; where only the exposure changes .97. Different things stay
below .85. A photograph no larger than the recipe's `longest_side`, halved, is at .4 to .9 only: vectors do
not tell copies at another scale of description from other photographs.
"""

import numpy as np
from jaxtyping import Float32, Int64

from ingest.errors import BadInput

THRESHOLD = 0.9  # for all of the recipes above
_ROUNDING = 1e-6  # of an inner product in float32: equal vectors reach a threshold of 1


def groups(vectors: Float32[np.ndarray, "n d"], threshold: float = THRESHOLD) -> Int64[np.ndarray, " n"]:
    """For each row the first row of its group; a row that repeats no other is its own.

    Rows in the order of their rank: the first of a group is then the best. An image without features (a row
    of zeros) repeats nothing. Memory: 5 n^2 bytes.

    Args:
        vectors: (n, d) float32, L2-normalised.
        threshold: inner product of two rows from which on they are linked, in (0, 1].

    Raises:
        BadInput: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"a threshold of {threshold} finds no near-duplicates: give one above 0, up to 1")
    linked = vectors @ vectors.T >= threshold - _ROUNDING
    linked |= linked.T
    first = np.full(len(vectors), -1, np.int64)
    for row in range(len(vectors)):
        reached = np.array([row] if first[row] < 0 else [], np.int64)
        while len(reached):
            first[reached] = row
            reached = np.flatnonzero(linked[reached].any(axis=0) & (first < 0))
    return first
