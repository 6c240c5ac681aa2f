"""Row tables: all that an answer says of an image, of whatever parts a shard is made, and nothing purged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index.generation import read_generation
from index.removal import delete
from index.shards import ROWS_SCHEMA, ShardPlan, united_rows
from ingest.catalogue import read_catalogue, read_part
from ingest.job import Job
from ingest.records import digest_of, encode_key, image_identity
from ingest.store import Store
from ingest.tables import read_table
from tests.tiny import RECIPE, TinyVectors, build_tiny, ingest, job_on, memory_store, purge_tiny, vectors


@dataclass(frozen=True)
class Described(TinyVectors):
    """Vectors that all have the same metadata."""

    same: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self, start: int, stop: int) -> list[dict[str, Any]]:  # type: ignore[override]
        return [dict(self.same) for _ in range(start, stop)]


def described(name: str, count: int, **same: Any) -> Described:
    return Described(name, vectors(name, count).vectors, same=same)


def rows(job: Job) -> list[dict[str, Any]]:
    tables = [read_table(job.gallery.store, shard.rows) for shard in read_generation(job.gallery).shards]
    return [row for table in tables for row in table.to_pylist()]


def test_a_row_table_says_what_the_listings_say() -> None:
    job = job_on(memory_store())
    for source in (
        described("a", 5, city="Rome"),
        described("bär", 4, city="Bari", year=1990),
        vectors("c", 3),
    ):
        ingest(job, source)
    build_tiny(job, recipe=RECIPE.model_copy(update={"shard_rows": 100}))
    (shard,) = read_generation(job.gallery).shards
    table = read_table(job.gallery.store, shard.rows)
    assert table.schema.names == [*ROWS_SCHEMA.names, "metadata.city", "metadata.year"]
    assert [table.schema.field(name) for name in ROWS_SCHEMA.names] == list(ROWS_SCHEMA)
    catalogue = read_catalogue(job.gallery)
    listed = {part.part: (part.source, read_part(job.gallery, part).to_pylist()) for part in catalogue.parts}
    assert table.num_rows == 12
    for row in table.to_pylist():
        source, entries = listed[row["part"]]
        entry = entries[row["row"]]
        assert row["source"] == source
        assert (row["key"], row["image_id"]) == (entry["key"], entry["image_id"])
        for name in ("metadata.city", "metadata.year"):
            assert row[name] == entry.get(name)


def test_columns_of_other_types_become_numbers_or_text() -> None:
    some = [
        pa.table({"n": [1, 2], "t": [1, 2], "b": [True, None], "s": ["x", "y"]}),
        pa.table({"n": [0.5], "t": ["x"], "b": [3], "u": [None]}),
        pa.table({"n": [7], "b": pa.array([None], pa.null())}),
    ]
    assert united_rows(some).to_pydict() == {
        "n": [1.0, 2.0, 0.5, 7.0],
        "t": ["1", "2", "x", None],
        "b": ["true", None, "3", None],
        "s": ["x", "y", None, None],
        "u": [None] * 4,
    }


def test_shards_of_the_older_format_have_other_names() -> None:
    """A build finds those that it makes by name: it must not adopt a table without keys."""
    job = job_on(memory_store())
    ingest(job, vectors("a", 5))
    generation = build_tiny(job)
    (shard,) = generation.shards
    parts = read_catalogue(job.gallery).parts
    plan = ShardPlan(parts, generation.models.encodings, generation.models.quantizer)
    assert plan.digest == shard.shard
    inputs = {"encodings": plan.encodings, "quantizer": plan.quantizer, "parts": [parts[0].part]}
    assert digest_of({"stage": "shard", "format": 1, **inputs}) != shard.shard


def secret_in(store: Store, secret: str) -> list[str]:
    """The objects in which a text stands, tables decoded."""
    found = []
    for folder in ("parts", "features", "encodings", "shards", "manifests", "catalogue", "generations"):
        for info in store.listing(folder):
            data = store.read(info.path)
            if info.path.endswith(".parquet"):
                table = pq.read_table(pa.BufferReader(data))
                data = repr(table.to_pylist()).encode() + data
            if secret.encode() in data:
                found.append(info.path)
    return found


def test_a_purged_images_key_and_metadata_are_nowhere_any_more() -> None:
    job = job_on(memory_store())
    named = vectors("a", 12).vectors
    keys = [f"secret-{key}" for key in named]
    ingest(job, Described("a", dict(zip(keys, named.values(), strict=True)), same={"city": "Rome"}))
    ingest(job, described("b", 5, city="Bari"))
    build_tiny(job)
    assert len(secret_in(job.gallery.store, "secret-3'")) == 2, "the listing and the row table"
    image = image_identity("a", "secret-3")[0]
    delete(job, [image])
    purge_tiny(job)
    assert secret_in(job.gallery.store, "secret-3'") == []
    left = rows(job)
    assert sorted(row["key"] for row in left if row["source"] == "a") == sorted(
        encode_key(key) for key in keys if key != "secret-3"
    )
    assert all(row["image_id"] == image_identity(row["source"], row["key"].decode())[0] for row in left)
