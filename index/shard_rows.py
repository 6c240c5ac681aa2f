"""The rows of some shards in memory: which image each is, where it lies, and what came with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        self._tables = [_described(table) for table in tables]
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

    def row(self, row: int) -> Row:
        """All that is known of a row."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        table, at = self._tables[shard], row - int(self._starts[shard])
        metadata = {}
        for column, name in self._metadata[shard]:
            value = table.column(column)[at].as_py()
            if value is not None:
                metadata[name] = value
        source, key = (table.column(column)[at].as_py() for column in range(len(OWN_COLUMNS)))
        (place,) = self.places(np.array([row]))
        return Row(int(self.image_ids[row]), place, source, decode_key(key), metadata)

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

    @cached_property
    def _metadata(self) -> list[list[tuple[int, str]]]:
        """Each table's metadata columns, by name: place and name."""
        return [
            sorted(
                (
                    (place, name.removeprefix(METADATA_PREFIX))
                    for place, name in enumerate(table.column_names)
                    if name.startswith(METADATA_PREFIX)
                ),
                key=lambda pair: pair[1],
            )
            for table in self._tables
        ]

    def _coded_parts(self, tables: Sequence[pa.Table]) -> Int32[np.ndarray, " n"]:
        codes = [np.empty(0, np.int32)]
        for table in tables:
            for chunk in table["part"].dictionary_encode().chunks:
                codes.append(chunk.indices.to_numpy().astype(np.int32) + len(self._parts))
                self._parts += chunk.dictionary.to_pylist()
        return np.concatenate(codes)


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
