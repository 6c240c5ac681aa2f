"""A segment: some shards merged into one faiss index, with the rows that tell what each of its numbers is.

Its answers are exact where the index's are not: of equal scores the lower image id comes first, also at the
cut, and a score does not depend on what else the segment holds. So answers of several segments, merged, are
those of one that holds all.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from index.cache import Cache
from index.nearest import MISSING_ROW
from index.quantizer import deserialise, merge_indexes
from index.serialised import ivf_of
from index.shard_rows import ShardRows
from index.shards import Shard
from ingest.errors import BadInput, Corrupt
from ingest.gallery import Gallery
from ingest.tables import ObjectRef, decode_table, read_object

if TYPE_CHECKING:
    import faiss

Read = Callable[[ObjectRef], bytes]

_FETCHERS = 4  # objects fetched at once
_DEEPER = 8  # times deeper where the cut goes through a tie
_FLAT_SPARE = 8  # rows beyond the k-th that are looked at in a flat index
_EPS = float(np.finfo(np.float32).eps)


class Segment:
    """Read-only; safe to share by threads, and by generations.

    Attributes:
        index: None where the shards have no rows.
        lists: inverted lists; 1 where the index is flat. dim: components of a vector; 0 without an index.
        nbytes: memory of codes and rows.
    """

    def __init__(
        self, shards: Sequence[Shard], index: "faiss.Index | None", tables: Sequence[pa.Table]
    ) -> None:
        self.shards, self.index, self.rows = tuple(shards), index, ShardRows(tables)
        ivf = None if index is None else ivf_of(index)
        self.flat = ivf is None
        self.lists = 1 if ivf is None else int(ivf.nlist)
        self.dim = 0 if index is None else int(index.d)
        self.nbytes = self.rows.nbytes + sum(shard.index.size for shard in shards)
        # Rounding errors of a product in single precision, some times over: faiss adds up in blocks.
        self._rounding = _EPS * (16 + self.dim / 4)

    def nearest(
        self,
        vector: Float32[np.ndarray, " d"],
        k: int,
        parameters: "faiss.SearchParameters | None",
        allowed: int,
    ) -> tuple[Float32[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """The k best rows for a vector under `index.nearest.search_parameters`; fewer if fewer are reached.

        Args:
            allowed: rows that the parameters let through.

        Returns:
            scores: clipped to [-1, 1], descending. rows: of equal scores the lower image id first.
        """
        if self.index is None or not allowed:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        slack, spare = (self._rounding, _FLAT_SPARE) if self.flat else (0.0, 1)
        query, depth = vector[None], min(k + spare, allowed)
        while True:
            (scores,), (rows,) = self.index.search(query, depth, params=parameters)
            if rows[-1] == MISSING_ROW:
                found = int(np.searchsorted(rows == MISSING_ROW, True))
                scores, rows = scores[:found], rows[:found]
            scores = np.minimum(np.maximum(scores, -1), 1)
            # Whole when all that could rank among the first k, up to rounding, has been seen.
            if len(rows) < depth or depth == allowed or scores[-1] < scores[k - 1] - slack:
                break
            depth = min(_DEEPER * depth, allowed)
        if self.flat:
            scores = self._products(vector, rows)
        return self._ranked(scores, rows, k)

    def _products(self, vector: np.ndarray, rows: np.ndarray) -> Float32[np.ndarray, " m"]:
        """Products with some rows, each added up alone: faiss's last bits depend on a row's neighbours."""
        assert self.index is not None
        stored = self.index.reconstruct_batch(rows).astype(np.float64)
        products = (stored * vector.astype(np.float64)).sum(axis=1).astype(np.float32)
        clipped: np.ndarray = np.minimum(np.maximum(products, -1), 1)
        return clipped

    def _ranked(
        self, scores: np.ndarray, rows: np.ndarray, k: int
    ) -> tuple[Float32[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        if not (scores[1:] < scores[:-1]).all():
            order = np.lexsort((self.rows.image_ids[rows], -scores))
            scores, rows = scores[order], rows[order]
        return scores[:k], rows[:k]


def load_segment(gallery: Gallery, shards: Sequence[Shard], cache: Cache | None) -> Segment:
    """Fetches, checks and merges shards.

    Memory: codes and rows, and one shard's bytes while loading.

    Raises:
        NotFound, Corrupt: an object is gone, or is not what its manifest names; it is named.
        BadInput: the shards were built by an older version of Reseen.
    """
    read = reader(gallery, cache)
    tables = row_tables(gallery, shards, read)
    for shard, table in zip(shards, tables, strict=True):
        if "key" not in table.column_names:
            raise BadInput(
                f"{gallery.store.where(shard.rows.name)} was written by an older Reseen, without the images' "
                "keys: build again with reseen build --rebuild"
            )
    return Segment(shards, merged_index(gallery, shards, read), tables)


def reader(gallery: Gallery, cache: Cache | None) -> Read:
    """What reads whole, checked objects of a gallery."""
    if cache is None:
        return lambda ref: read_object(gallery.store, ref)
    return lambda ref: cache.read(gallery.store, ref)


def row_tables(
    gallery: Gallery, shards: Iterable[Shard], read: Read, columns: list[str] | None = None
) -> list[pa.Table]:
    """The shards' row tables, all columns by default."""

    def table(shard: Shard) -> pa.Table:
        return decode_table(read(shard.rows), gallery.store.where(shard.rows.name), columns, shard.rows.name)

    with ThreadPoolExecutor(_FETCHERS) as pool:
        return list(pool.map(table, shards))


def merged_index(gallery: Gallery, shards: Iterable[Shard], read: Read) -> "faiss.Index | None":
    """The shards' lists in one index, row numbers running on; None if there are no rows."""
    filled = [shard for shard in shards if shard.count]
    # One after the other: a pool would hold the bytes of all at once.
    return merge_indexes(_index(gallery, shard, read(shard.index)) for shard in filled) if filled else None


def _index(gallery: Gallery, shard: Shard, data: bytes) -> "faiss.Index":
    index = deserialise(data)
    if index.ntotal != shard.count:
        where = gallery.store.where(shard.index.name)
        raise Corrupt(
            f"{where} has {index.ntotal} vectors and its row table {shard.count}: build again with --rebuild"
        )
    return index
