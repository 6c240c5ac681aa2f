"""The rows of some shards in memory: which image each is, where it lies, and what came with it."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64, UInt8

from index.filters import OWN_COLUMNS, Filter, columns_of, filter_json, mask, united_columns
from index.kept import Kept
from index.nearest import selector_bitmap
from ingest.catalogue import METADATA_PREFIX
from ingest.feature_reader import Place
from ingest.records import decode_key

_MASKS_KEPT = 32
_MASK_BYTES_KEPT = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """What is known of an image.

    source: the name of its source. key: its path relative to the source's root.
    metadata: what came with it in the listing, absent values left out.
    """

    image_id: int
    place: Place
    source: str
    key: str
    metadata: Mapping[str, Any]


class ShardRows:
    """The row tables of some shards, their rows numbered on from shard to shard. Safe to share by threads.

    Attributes:
        image_ids: the image of each row. columns: what filters may name, and its type (`index.filters`).
        nbytes: memory.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.image_ids: Int64[np.ndarray, " n"] = _joined(tables, "image_id", np.int64)
        self._row: Int32[np.ndarray, " n"] = _joined(tables, "row", np.int32)
        self._parts: list[str] = []
        self._part: Int32[np.ndarray, " n"] = self._coded_parts(tables)
        self._starts = [0, *accumulate(table.num_rows for table in tables)]
        self._tables = [_described(table) for table in tables]
        self._said = [_Said(table) for table in self._tables]
        self.columns = united_columns(map(columns_of, self._tables))
        by_id = 16 * len(self.image_ids)  # their order, and themselves in it
        arrays = (self.image_ids, self._row, self._part)
        self.nbytes = by_id + sum(each.nbytes for each in (*arrays, *self._tables))
        self._masks: Kept[np.ndarray] = Kept(masks_kept(len(self.image_ids)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def places(self, rows: Int64[np.ndarray, " m"]) -> list[Place]:
        """Part, and row in it, of some rows."""
        codes, numbers = self._part[rows].tolist(), self._row[rows].tolist()
        return [Place(self._parts[code], row) for code, row in zip(codes, numbers, strict=True)]

    def rows(self, rows: Int64[np.ndarray, " m"]) -> list[Row]:
        """All that is known of some rows."""
        found = []
        places, ids = self.places(rows), self.image_ids[rows].tolist()
        for row, image, place in zip(rows.tolist(), ids, places, strict=True):
            shard = bisect_right(self._starts, row) - 1
            source, key, metadata = self._said[shard].at(row - self._starts[shard])
            found.append(Row(image, place, source, key, metadata))
        return found

    def of_image(self, image_id: int) -> Int64[np.ndarray, " m"]:
        """The rows of an image: none, one, or also those that another row replaced."""
        first = int(np.searchsorted(self._sorted, image_id))
        last = int(np.searchsorted(self._sorted, image_id, side="right"))
        rows: np.ndarray = self._by_id[first:last]
        return rows

    def bitmap(self, where: Filter) -> UInt8[np.ndarray, " bytes"]:
        """The rows that a filter lets through, for `index.nearest.search_parameters`; the last are kept."""
        return self._masks.get(filter_json(where), lambda: selector_bitmap(self._mask(where)))

    def _mask(self, where: Filter) -> Bool[np.ndarray, " n"]:
        found = [mask(where, table) for table in self._tables]
        return np.concatenate(found) if found else np.zeros(0, bool)

    @cached_property
    def _by_id(self) -> Int64[np.ndarray, " n"]:
        """The rows in the order of their image ids, from the first look-up on."""
        return np.argsort(self.image_ids, kind="stable")

    @cached_property
    def _sorted(self) -> Int64[np.ndarray, " n"]:
        ids: np.ndarray = self.image_ids[self._by_id]
        return ids

    def _coded_parts(self, tables: Sequence[pa.Table]) -> Int32[np.ndarray, " n"]:
        codes = [np.empty(0, np.int32)]
        for table in tables:
            for chunk in table["part"].dictionary_encode().chunks:
                codes.append(chunk.indices.to_numpy().astype(np.int32) + len(self._parts))
                self._parts += chunk.dictionary.to_pylist()
        return np.concatenate(codes)


class _Said:
    """What a row table says of its images, row by row."""

    def __init__(self, table: pa.Table) -> None:
        # A plain array gives a value twice as fast as a chunked one.
        columns = [column.chunk(0) if column.num_chunks == 1 else column for column in table.columns]
        named = dict(zip(table.column_names, columns, strict=True))
        self._source, self._key = (named.pop(name) for name in OWN_COLUMNS)
        self._metadata = [(name.removeprefix(METADATA_PREFIX), named[name]) for name in sorted(named)]

    def at(self, row: int) -> tuple[str, str, dict[str, Any]]:
        """Source, key, and metadata by name."""
        metadata = {}
        for name, column in self._metadata:
            value = column[row].as_py()
            if value is not None:
                metadata[name] = value
        return self._source[row].as_py(), decode_key(self._key[row].as_py()), metadata


def masks_kept(rows: int) -> int:
    """How many bitmaps of so many rows are worth their memory."""
    return max(2, min(_MASKS_KEPT, _MASK_BYTES_KEPT // (rows // 8 + 1)))


def _joined(tables: Sequence[pa.Table], name: str, kind: type) -> np.ndarray:
    arrays = [table[name].to_numpy().astype(kind, copy=False) for table in tables]
    return np.concatenate([np.empty(0, kind), *arrays])


def _described(table: pa.Table) -> pa.Table:
    """Source, key and metadata of a row table."""
    metadata = [name for name in table.column_names if name.startswith(METADATA_PREFIX)]
    own = table.select(list(OWN_COLUMNS))
    own = own.set_column(0, "source", own["source"].dictionary_encode())
    for name in metadata:
        own = own.append_column(name, table[name])
    return own
