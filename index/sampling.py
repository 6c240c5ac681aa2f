"""Which images a model is fitted on: a bounded, even, repeatable choice.

Every image has a rank, a hash of its id and a seed. A sample of n is the n images of the lowest rank: each
part gives its share, the order of parts and workers does not matter, and adding images moves few others.
"""

import numpy as np
from jaxtyping import Int64, UInt64


def ranks(image_ids: Int64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """A uniform pseudo-random 64-bit number for each image (splitmix64 of id and seed)."""
    mask = 2**64
    start = np.uint64((seed * 0x9E3779B97F4A7C15) % mask)
    x = image_ids.astype(np.uint64) + start + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def lowest(image_ids: Int64[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " m"]:
    """Positions of the `count` images of the lowest rank, ascending; all of them if there are fewer."""
    return np.sort(_ordered(image_ids, seed)[:count])


def highest(image_ids: Int64[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " m"]:
    """Positions of the `count` images of the highest rank, ascending; all of them if there are fewer."""
    return np.sort(_ordered(image_ids, seed)[::-1][:count])


def _ordered(image_ids: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    return np.argsort(ranks(image_ids, seed), kind="stable")
