"""A generation opened for batches of queries: its shards' lists merged into one faiss index.

For evaluations and measurements, which ask thousands of vectors at once. Single queries, filters and places
are the work of `index.group`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from index.cache import Cache
from index.generation import Generation, read_generation
from index.masks import live_bitmap
from index.nearest import MISSING_ROW, ranked, search, widened
from index.segment import merged_index, reader, row_tables
from ingest.errors import BadInput, NotFound
from ingest.gallery import Gallery

if TYPE_CHECKING:
    import faiss


Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Hits:
    """Ranked answers to q queries: by score descending, then image id ascending.

    scores: (q, k) float32 in [-1, 1]; image_ids: (q, k) int64; both -1 where there are fewer than k images.
    """

    scores: Float32[np.ndarray, "q k"]
    image_ids: Int64[np.ndarray, "q k"]


@dataclass(frozen=True)
class OpenGeneration:
    """A generation in memory. Read-only; safe to share by threads.

    Attributes:
        index: all shards' lists in one faiss index; row numbers run on from shard to shard.
        image_ids: the image of each row.
        live: bitmap of the rows that may be found; None if all may.
    """

    generation: Generation
    index: "faiss.Index | None"
    image_ids: Int64[np.ndarray, " n"]
    live: UInt8[np.ndarray, " bytes"] | None

    def search(self, vectors: Float32[np.ndarray, "q d"], k: int, nprobe: int | None = None) -> Hits:
        """The k best images for each L2-normalised vector; fewer only if the gallery has fewer.

        Args:
            nprobe: lists to read first, instead of the recipe's number.

        Raises:
            BadInput: the vectors' dimension is not the gallery's, or k is below 1.
        """
        if k < 1:
            raise BadInput(f"top {k} is no answer: ask for 1 or more")
        if self.index is None:
            empty = np.full((len(vectors), k), -1)
            return Hits(empty.astype(np.float32), empty.astype(np.int64))
        if vectors.ndim != 2 or vectors.shape[1] != self.index.d:
            raise BadInput(f"the query has {vectors.shape[-1]} dimensions, and the gallery {self.index.d}")
        lists = self.generation.recipe.nprobe if nprobe is None else nprobe
        scores, rows = search(self.index, vectors, min(k, max(1, self.index.ntotal)), lists, self.live)
        ids = self.image_ids[rows]  # for a missing row, -1, that of the last row
        if rows[:, -1].min(initial=0) < 0:
            ids[rows < 0] = MISSING_ROW
        return Hits(*widened(*ranked(scores, ids), k))


def open_generation(
    gallery: Gallery, number: int | None = None, cache: Cache | None = None
) -> OpenGeneration:
    """Fetches, checks and merges a generation, the newest by default.

    Memory: its codes and 8 bytes a row, and one shard's bytes while loading.

    Raises:
        NotFound: there is no such generation, or it was collected.
        Corrupt: an object is not what its manifest names; it is named.
    """
    return newest_whole(gallery, number, lambda generation: _open(gallery, generation, cache))


def newest_whole(gallery: Gallery, number: int | None, opened: Callable[[Generation], Opened]) -> Opened:
    """What opens a generation, on the newest one that is not collected while it is being opened."""
    for _ in range(5):
        generation = read_generation(gallery, number)
        try:
            return opened(generation)
        except NotFound:
            # Collected while it was being read: a newer one must be in force, unless this one was asked for.
            if number is not None or gallery.generations.newest() == generation.number:
                raise
    raise NotFound(f"{gallery.store.url} changes faster than it can be opened; try again")


def _open(gallery: Gallery, generation: Generation, cache: Cache | None) -> OpenGeneration:
    read = reader(gallery, cache)
    tables = row_tables(gallery, generation.shards, read, ["image_id"])
    index = merged_index(gallery, generation.shards, read)
    ids = np.concatenate([np.empty(0, np.int64), *(table["image_id"].to_numpy() for table in tables)])
    return OpenGeneration(generation, index, ids, live_bitmap(generation.shards, generation.masks))
