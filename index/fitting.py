"""What every fit shares: a bounded sample, and a fixed number of threads."""

from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float32

from ingest.threads import fixed_threads

# PCA and OPQ give other bytes at other thread counts, so the count is part of the work and not of the
# machine. One thread never spins against another process, and costs little: on 2 busy cores, 1 and 2 threads
# took 14 and 10 s for OPQ and IVFADC of 20,000 x 128, 5 and 23 s for PCA of 1,500 x 32,768, 2.5 and 2.6 s
# for k-means of 60,000 x 128.
FIT_THREADS = 1


def fit_threads() -> AbstractContextManager[None]:
    """A block that fits at the fixed count. Import faiss before it: what is loaded later is not held."""
    return fixed_threads(FIT_THREADS)


def draw_rows(rows: Float32[np.ndarray, "n d"], most: int, seed: int) -> Float32[np.ndarray, "m d"]:
    """All rows if there are at most `most`, else that many, drawn at random and kept in their order."""
    if len(rows) > most:
        drawn = np.random.default_rng(seed).choice(len(rows), most, replace=False, shuffle=False)
        rows = rows[np.sort(drawn)]
    return np.ascontiguousarray(rows, np.float32)
