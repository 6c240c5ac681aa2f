"""Shards: consecutive parts' vectors in one faiss index, and the table that says which row is which image.

The row table has all that an answer says of an image, so that a server reads no listings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from index.encodings import read_encodings
from index.filter_columns import as_text
from index.quantizer import Quantizer, serialise
from ingest.catalogue import METADATA_PREFIX, PartRef, read_part
from ingest.errors import Corrupt, NotFound
from ingest.gallery import Gallery, shard_index_path, shard_rows_path
from ingest.job import Job
from ingest.models import load_model
from ingest.records import digest_of, sha256
from ingest.tables import ObjectRef, decode_table, write_object, write_table

FORMAT = 2  # 1 had neither source nor key

# A row table's columns, before `metadata.*`; `key` as listings store it (`ingest.records.decode_key`).
ROWS_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("part", pa.string()),
        ("row", pa.int32()),
        ("source", pa.string()),
        ("key", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """A shard as a generation names it: its digest, its two objects, and the parts that it covers."""

    shard: str
    index: ObjectRef
    rows: ObjectRef
    parts: tuple[str, ...]

    @property
    def count(self) -> int:
        return self.rows.rows


@dataclass(frozen=True)
class ShardPlan:
    """A shard to build: its parts, in order, and what it is named after."""

    parts: tuple[PartRef, ...]
    encodings: str
    quantizer: str

    @property
    def digest(self) -> str:
        parts = [part.part for part in self.parts]
        inputs = {"encodings": self.encodings, "quantizer": self.quantizer, "parts": parts}
        return digest_of({"stage": "shard", "format": FORMAT, **inputs})

    def __str__(self) -> str:
        return f"shard {self.digest} ({len(self.parts)} parts)"


def plan_shards(
    parts: Sequence[PartRef], vectors: Mapping[str, int], rows: int, encodings: str, quantizer: str
) -> list[ShardPlan]:
    """Cuts parts, in order, into shards of about `rows` vectors each, as even as whole parts allow.

    Args:
        vectors: number of vectors of each part.
        rows: the most vectors of a shard; one part is never cut, however many it has.
    """
    total = sum(vectors[part.part] for part in parts)
    shards = max(1, -(-total // rows))
    groups: list[list[PartRef]] = [[] for _ in range(shards)]
    before = 0
    for part in parts:
        middle = before + vectors[part.part] / 2
        groups[min(shards - 1, int(middle * shards / max(total, 1)))].append(part)
        before += vectors[part.part]
    return [ShardPlan(tuple(group), encodings, quantizer) for group in groups if group]


def build_shards(job: Job, plans: Sequence[ShardPlan], vectors: Mapping[str, int]) -> list[Shard]:
    """Builds shards in parallel, in the order of the plans; those that are there are adopted.

    Memory a worker: the codes of one shard twice (index and its bytes) and one part's vectors.
    """
    built: dict[str, Shard] = {}
    total = sum(vectors[part.part] for plan in plans for part in plan.parts)
    with job.progress.stage("build shards", total, "vectors") as stage:
        for shard in job.engine.map(ShardWorker(job.gallery), plans):
            built[shard.shard] = shard
            stage.advance(shard.count)
    return [built[plan.digest] for plan in plans]


@dataclass(frozen=True)
class ShardWorker:
    """Builds shards; runs in any engine."""

    gallery: Gallery

    def start(self) -> "_ShardBuilder":
        return _ShardBuilder(self.gallery)


class _ShardBuilder:
    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.quantizers: dict[str, Quantizer] = {}

    def __call__(self, plan: ShardPlan) -> Shard:
        try:
            return self._existing(plan)
        except NotFound:
            pass
        index = self._quantizer(plan.quantizer).new_index()
        tables = []
        for part in plan.parts:
            rows, ids, vectors = read_encodings(self.gallery, plan.encodings, part.part)
            if len(ids):
                index.add(vectors)
            tables.append(self._row_table(part, rows, ids))
        table = united_rows(tables).combine_chunks()
        index_ref = write_object(
            self.gallery.store, shard_index_path(plan.digest), serialise(index), table.num_rows
        )
        # The row table names the bytes of the index: a table that is there is a shard that is complete.
        table = table.replace_schema_metadata(
            {"index_sha256": index_ref.sha256, "index_size": str(index_ref.size)}
        )
        rows_ref = write_table(self.gallery.store, shard_rows_path(plan.digest), table)
        return Shard(plan.digest, index_ref, rows_ref, tuple(part.part for part in plan.parts))

    def _existing(self, plan: ShardPlan) -> Shard:
        path = shard_rows_path(plan.digest)
        data = self.gallery.store.read(path)
        table = decode_table(data, self.gallery.store.where(path), name=path)
        stated = table.schema.metadata
        index = ObjectRef(
            shard_index_path(plan.digest),
            int(stated[b"index_size"]),
            stated[b"index_sha256"].decode(),
            table.num_rows,
        )
        # A collection that was stopped may have left the table alone: `NotFound` builds the shard again.
        if self.gallery.store.info(index.name).size != index.size:
            raise Corrupt(f"{self.gallery.store.where(index.name)} is damaged: its size is not {index.size}")
        rows = ObjectRef(path, len(data), sha256(data), table.num_rows)
        return Shard(plan.digest, index, rows, tuple(part.part for part in plan.parts))

    def _row_table(self, part: PartRef, rows: np.ndarray, ids: np.ndarray) -> pa.Table:
        listed = read_part(self.gallery, part)
        metadata = [name for name in listed.column_names if name.startswith(METADATA_PREFIX)]
        taken = listed.select(["key", *metadata]).take(pa.array(rows))
        own = {
            "image_id": ids,
            "part": pa.array([part.part] * len(ids), pa.string()),
            "row": rows,
            "source": pa.array([part.source] * len(ids), pa.string()),
            "key": taken["key"],
        }
        fixed = pa.table(own).cast(ROWS_SCHEMA)
        for name in metadata:
            fixed = fixed.append_column(name, taken[name])
        return fixed

    def _quantizer(self, digest: str) -> Quantizer:
        if digest not in self.quantizers:
            self.quantizers = {
                digest: Quantizer.from_arrays(load_model(self.gallery, digest, "quantizer")[1])
            }
        return self.quantizers[digest]


def united_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """The row tables of some parts as one; metadata that is text in one and not in another is text.

    Integers beside numbers become numbers; what a part has not is null.
    """
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            if not pa.types.is_null(column.type):
                types.setdefault(column.name, set()).add(column.type)
    mixed = {name for name, found in types.items() if len(found) > 1 and not _numbers(found)}
    alike = []
    for table in tables:
        for place, column in enumerate(table.schema):
            if column.name in mixed:
                table = table.set_column(place, column.name, as_text(table[column.name]))
        alike.append(table)
    return pa.concat_tables(alike, promote_options="permissive")


def _numbers(types: set[pa.DataType]) -> bool:
    return all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in types)
