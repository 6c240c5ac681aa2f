"""A generation opened for search: shards fetched and checked, their lists merged into one faiss index.

Merged lists answer as the separate shards would, at the speed of one index. Everything here is read-only
and may be shared by threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

from index.cache import Cache
from index.generation import Generation, read_generation
from index.nearest import MISSING_ROW, ranked, widened
from index.quantizer import deserialise, merge_indexes, search, selector_bitmap
from index.shards import Shard
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.gallery import Gallery
from ingest.tables import ObjectRef, decode_table, read_object

if TYPE_CHECKING:
    import faiss

_FETCHERS = 4  # shards fetched at once


@dataclass(frozen=True)
class Hits:
    """Ranked answers to q queries: by score descending, then image id ascending.

    scores: (q, k) float32 in [-1, 1]; image_ids: (q, k) int64; both -1 where there are fewer than k images.
    """

    scores: Float32[np.ndarray, "q k"]
    image_ids: Int64[np.ndarray, "q k"]


@dataclass(frozen=True)
class OpenGeneration:
    """A generation in memory.

    Attributes:
        index: all shards' lists in one faiss index; row numbers run on from shard to shard.
        image_ids: the image of each row.
        live: bitmap of the rows that may be found; None if all may.
        tables: the shards' row tables, in order.
    """

    generation: Generation
    index: "faiss.Index | None"
    image_ids: Int64[np.ndarray, " n"]
    live: UInt8[np.ndarray, " bytes"] | None
    tables: tuple[pa.Table, ...]

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

    def locate(self, image_id: int) -> tuple[str, int]:
        """The part, and the row in it, of an image that search can return; `NotFound` if it cannot."""
        first = int(np.searchsorted(self.image_ids, image_id, sorter=self._by_id))
        for row in map(int, self._by_id[first:]):
            if self.image_ids[row] != image_id:
                break
            if self.live is None or self.live[row // 8] >> (row % 8) & 1:
                return self._place(row)
        raise NotFound(f"generation {self.generation.number} has no image {image_id}")

    @cached_property
    def _by_id(self) -> Int64[np.ndarray, " n"]:
        """The rows in the order of their image ids: 8 bytes a row, from the first look-up on."""
        return np.argsort(self.image_ids, kind="stable")

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " shards"]:
        """The first row of each shard."""
        return np.cumsum([0, *(table.num_rows for table in self.tables)])

    def _place(self, row: int) -> tuple[str, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        table, row = self.tables[shard], row - int(self._starts[shard])
        return table["part"][row].as_py(), table["row"][row].as_py()


def open_generation(
    gallery: Gallery, number: int | None = None, cache: Cache | None = None
) -> OpenGeneration:
    """Fetches, checks and merges a generation, the newest by default.

    Memory: its codes and some 24 bytes a row, and one shard's bytes while loading.

    Raises:
        NotFound: there is no such generation, or it was collected.
        Corrupt: an object is not what its manifest names; it is named.
    """
    for _ in range(5):
        generation = read_generation(gallery, number)
        try:
            return _open(gallery, generation, cache)
        except NotFound:
            # Collected while it was being read: a newer one must be in force, unless this one was asked for.
            if number is not None or gallery.generations.newest() == generation.number:
                raise
    raise NotFound(f"{gallery.store.url} changes faster than it can be opened; try again")


def _open(gallery: Gallery, generation: Generation, cache: Cache | None) -> OpenGeneration:
    def read(ref: ObjectRef) -> bytes:
        return read_object(gallery.store, ref) if cache is None else cache.read(gallery.store, ref)

    with ThreadPoolExecutor(_FETCHERS) as pool:
        tables = tuple(
            pool.map(lambda shard: _row_table(gallery, shard, read(shard.rows)), generation.shards)
        )
        filled = [shard for shard in generation.shards if shard.count]
        # `map` would hold all bytes at once; the merge takes one index after the other.
        index = (
            merge_indexes(_index(gallery, shard, read(shard.index)) for shard in filled) if filled else None
        )
    ids = [table["image_id"].to_numpy() for table in tables]
    live: np.ndarray | None = None
    if generation.masks:
        masks = [
            generation.masks.get(shard.shard, np.zeros(shard.count, bool)) for shard in generation.shards
        ]
        live = selector_bitmap(~np.concatenate(masks))
    return OpenGeneration(
        generation, index, np.concatenate(ids) if ids else np.empty(0, np.int64), live, tables
    )


def _row_table(gallery: Gallery, shard: Shard, data: bytes) -> pa.Table:
    columns = ["image_id", "part", "row"]
    table = decode_table(data, gallery.store.where(shard.rows.name), columns, shard.rows.name)
    return table.set_column(1, "part", table["part"].dictionary_encode())


def _index(gallery: Gallery, shard: Shard, data: bytes) -> "faiss.Index":
    index = deserialise(data)
    if index.ntotal != shard.count:
        where = gallery.store.where(shard.index.name)
        raise Corrupt(
            f"{where} has {index.ntotal} vectors and its row table {shard.count}: build again with --rebuild"
        )
    return index
