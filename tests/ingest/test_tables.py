"""Laws of sealed Parquet objects, references and manifests."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import Corrupt, NotFound
from ingest.records import digest_of_bytes, sha256
from ingest.store import Store
from ingest.tables import (
    ObjectRef,
    decode_table,
    encode_table,
    manifest_path,
    read_manifest,
    read_object,
    read_table,
    write_manifest,
    write_object,
    write_table,
)
from tests.faults.faulty import STOPS, Stopped, faulty_store

REFS = pa.schema([("name", pa.string()), ("size", pa.int64()), ("sha256", pa.string()), ("rows", pa.int64())])


def example(rows: int = 5) -> pa.Table:
    generator = np.random.default_rng(rows)
    vectors = generator.standard_normal((rows, 8), np.float32)
    counts = (i % 4 for i in range(rows))
    # Parquet calls a list's items "element"; under another name a list comes back with that one.
    ragged = pa.list_(pa.field("element", pa.float32()))
    return pa.table(
        {
            "image_id": pa.array(generator.integers(0, 2**62, rows)),
            "vector": pa.array(list(vectors), pa.list_(pa.field("element", pa.float32()), 8)),
            "name": pa.array([None if i % 3 == 2 else f"é{i}" for i in range(rows)], pa.string()),
            "ragged": pa.array([[float(j) for j in range(n)] for n in counts], ragged),
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
def test_a_table_comes_back(rows: int) -> None:
    table = example(rows)
    back = decode_table(encode_table(table), "x")
    assert back.schema == table.schema
    assert back == table
    assert decode_table(encode_table(table), "x", ["name"]) == table.select(["name"])


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=9), st.floats(width=32))))
@settings(deadline=None, max_examples=50)
def test_any_bits_come_back(rows: list[tuple[int, bytes, float]]) -> None:
    columns = {
        "a": pa.array([row[0] for row in rows], pa.int64()),
        "b": pa.array([row[1] for row in rows], pa.binary()),
        "c": pa.array(np.array([row[2] for row in rows], np.float32)),
    }
    back = decode_table(encode_table(pa.table(columns)), "x")
    assert back["a"].to_pylist() == columns["a"].to_pylist()
    assert back["b"].to_pylist() == columns["b"].to_pylist()
    assert back["c"].to_numpy().tobytes() == columns["c"].to_numpy().tobytes()  # NaN and -0.0, too


def test_equal_tables_give_equal_bytes() -> None:
    table = example(3000)
    data = encode_table(table)
    assert encode_table(example(3000)) == data
    assert encode_table(decode_table(data, "x")) == data
    assert encode_table(decode_table(encode_table(table, "parts/a"), "x", name="parts/a")) == data
    assert encode_table(pa.concat_tables([table.slice(0, 1000), table.slice(1000)])) == data
    assert encode_table(pa.concat_tables([example(2), table]).slice(2)) == data


def test_another_process_gives_the_same_bytes() -> None:
    script = (
        "import pyarrow as pa, sys; from ingest.tables import encode_table\n"
        "sys.stdout.buffer.write(encode_table(pa.table({'a': list(range(1000)), 'b': ['x'] * 1000})))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert run.stdout == encode_table(pa.table({"a": list(range(1000)), "b": ["x"] * 1000}))


def test_every_changed_byte_is_refused_by_name() -> None:
    data = encode_table(pa.table({"a": [1, 2, 3]}))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Corrupt, match="parts/7"):
            decode_table(bytes(damaged), "parts/7")


def test_every_shortened_or_lengthened_table_is_refused() -> None:
    data = encode_table(pa.table({"a": [1, 2, 3]}))
    for other in [*(data[:n] for n in range(len(data))), data + b"\0", data + data, b"\0" + data]:
        with pytest.raises(Corrupt):
            decode_table(other, "x")


def test_content_that_looks_like_the_seal_does_no_harm() -> None:
    mark = "sha256-of-this-file:"
    table = pa.table({mark + "0" * 64: [mark + "0" * 64, mark, mark * 9]})
    assert decode_table(encode_table(table), "x") == table
    tagged = table.replace_schema_metadata({"zz": mark + "0" * 64})
    assert decode_table(encode_table(tagged), "x") == table


def test_a_table_under_another_ones_name_is_refused() -> None:
    data = encode_table(pa.table({"a": [1]}), "parts/a")
    assert decode_table(data, "x", name="parts/a").num_rows == 1
    with pytest.raises(Corrupt, match="where"):
        decode_table(data, "where", name="parts/b")


# In a store


def test_a_rerun_adopts_what_is_there(store: Store) -> None:
    ref = write_table(store, "parts/a", example())
    assert write_table(store, "parts/a", example()) == ref
    assert ref == ObjectRef("parts/a", store.info("parts/a").size, sha256(store.read("parts/a")), 5)
    assert read_table(store, ref) == read_table(store, "parts/a") == example()
    assert read_table(store, ref, ["name"]) == example().select(["name"])


def test_what_differs_is_never_adopted(store: Store) -> None:
    write_table(store, "parts/a", example())
    before = store.read("parts/a")
    with pytest.raises(Corrupt, match="parts/a"):
        write_table(store, "parts/a", example(6))
    assert store.read("parts/a") == before


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_writer_can_be_run_again(store: Store, stop: str) -> None:
    with pytest.raises(Stopped):
        write_table(faulty_store(store.url, at=1, fault=stop), "parts/a", example())
    assert read_table(store, write_table(store, "parts/a", example())) == example()


def damage(store: Store, path: str, data: bytes) -> None:
    (Path(store.url) / path).write_bytes(data)


def test_an_object_that_is_not_what_its_reference_says_is_refused(store: Store) -> None:
    data = b"some bytes"
    ref = write_object(store, "shards/a", data, rows=3)
    assert ref == ObjectRef("shards/a", 10, sha256(data), 3)
    assert read_object(store, ref) == data
    for other in (b"", data[:-1], data + b"x", b"Some bytes"):
        damage(store, "shards/a", other)
        with pytest.raises(Corrupt, match="shards/a"):
            read_object(store, ref)
    store.delete("shards/a")
    with pytest.raises(NotFound, match="shards/a"):
        read_object(store, ref)


def test_an_intact_table_in_another_ones_place_is_refused_by_reference(store: Store) -> None:
    ref = write_table(store, "parts/a", example())
    write_table(store, "parts/b", example(6))
    damage(store, "parts/a", store.read("parts/b"))
    with pytest.raises(Corrupt, match="parts/a"):
        read_table(store, ref)


def test_a_manifest_comes_back_by_its_digest(store: Store) -> None:
    refs = [write_object(store, f"shards/{i}", bytes(i), rows=i) for i in range(4)]
    digest = write_manifest(store, refs, REFS)
    assert write_manifest(store, iter(refs), REFS) == digest
    assert digest == digest_of_bytes(store.read(manifest_path(digest)))
    assert [ObjectRef(**row) for row in read_manifest(store, digest).to_pylist()] == refs
    empty = write_manifest(store, [], REFS)
    assert read_manifest(store, empty).num_rows == 0
    assert empty != digest


def test_a_manifest_under_another_ones_name_is_refused(store: Store) -> None:
    one = write_manifest(store, [ObjectRef("a", 1, "x")], REFS)
    two = write_manifest(store, [ObjectRef("b", 1, "x")], REFS)
    damage(store, manifest_path(one), store.read(manifest_path(two)))
    with pytest.raises(Corrupt, match=one):
        read_manifest(store, one)
    damage(store, manifest_path(one), b"")
    with pytest.raises(Corrupt, match=one):
        read_manifest(store, one)
