"""Laws of vector files: any range gives the rows that were written, or says which row is bad."""

import pickle
import struct
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import BadInput, NotFound
from ingest.sources import VectorSource, open_source

ROWS, DIM = 23, 5
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


def fvecs(vectors: np.ndarray) -> bytes:
    return b"".join(struct.pack(f"<i{len(row)}f", len(row), *row) for row in vectors)


def opened(path: Path | str) -> VectorSource:
    source = open_source(f"vectors:{path}")
    assert isinstance(source, VectorSource)
    return source


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[VectorSource]:
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "a.npy", VECTORS)
    (folder / "b.fvecs").write_bytes(fvecs(VECTORS))
    ragged = pa.array(VECTORS.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": ragged}), folder / "c.parquet", row_group_size=4)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIM)
    table = pa.table({"id": [f"k{i}" for i in range(ROWS)], "vector": fixed, "n": list(range(ROWS))})
    pq.write_table(table, folder / "d.parquet", row_group_size=7)
    memory = fsspec.filesystem("memory")
    for name in ("a.npy", "b.fvecs", "d.parquet"):
        memory.pipe_file(f"/vectors/{name}", (folder / name).read_bytes())
    local = [opened(path) for path in sorted(folder.iterdir())]
    return local + [opened(f"memory://vectors/{name}") for name in ("a.npy", "b.fvecs", "d.parquet")]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, ROWS + 3), st.integers(0, ROWS + 3))
def test_every_range_gives_the_rows_that_were_written(
    files: list[VectorSource], one: int, other: int
) -> None:
    start, stop = min(one, other), max(one, other)
    for source in files:
        assert (source.rows, source.dim) == (ROWS, DIM)
        found = source.read(start, stop)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, VECTORS[start:stop])
        numbers = range(ROWS)[start:stop]
        named = source.name == "d.parquet"
        assert source.keys(start, stop) == [f"k{i}" if named else f"{i:09d}" for i in numbers]
        assert source.metadata(start, stop) == [{"n": i} if named else {} for i in numbers]


def test_sources_of_vectors_are_pickled(files: list[VectorSource]) -> None:
    for source in files:
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.read(3, 5), VECTORS[3:5])


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", "uint8", "int8"])
def test_other_number_types_are_converted(tmp_path: Path, dtype: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(opened(tmp_path / "a.npy").read(0, 3), np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4), np.complex64),
        np.zeros(3, np.float32),
        np.zeros((3, 4), object),
        np.asfortranarray(np.zeros((3, 4), np.float32)),
        np.zeros((3, 0), np.float32),
    ],
)
def test_an_npy_file_that_holds_no_vectors_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=r"a\.npy holds"):
        opened(tmp_path / "a.npy")


def test_files_cut_short_are_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS)
    (tmp_path / "b.fvecs").write_bytes(fvecs(VECTORS))
    pq.write_table(pa.table({"vector": VECTORS.tolist()}), tmp_path / "c.parquet")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for cut in (0, 3, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(BadInput, match=path.name):
                opened(path)


def test_a_bad_row_is_named_with_its_file(tmp_path: Path) -> None:
    bad = VECTORS.copy()
    bad[17, 2] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    bad[17, 2] = np.inf
    (tmp_path / "inf.fvecs").write_bytes(fvecs(bad))
    wrong = bytearray(fvecs(VECTORS))
    wrong[17 * 24 : 17 * 24 + 4] = struct.pack("<i", 6)
    (tmp_path / "ragged.fvecs").write_bytes(wrong)
    lists: list[list[float | None] | None] = VECTORS.tolist()
    for name, row in (
        ("short", [1.0]),
        ("absent", None),
        ("hole", [1.0, None, 2.0, 3.0, 4.0]),
        ("nan", [np.nan] * DIM),
    ):
        lists[17] = row  # type: ignore[assignment]
        column = pa.array(lists, pa.list_(pa.float32()))
        pq.write_table(pa.table({"vector": column}), tmp_path / f"{name}.parquet", row_group_size=5)
    np.save(
        tmp_path / "huge.npy", np.where(np.arange(ROWS)[:, None] == 17, 1e300, VECTORS.astype(np.float64))
    )
    for path in sorted(tmp_path.iterdir()):
        source = opened(path)
        np.testing.assert_allclose(source.read(0, 17), VECTORS[:17])
        with pytest.raises(BadInput, match=rf"{path.name}.*row 17 "):
            source.read(15, 20)


def test_parquet_without_a_usable_vector_column_or_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for table in (
        {"v": [[1.0]]},
        {"vector": [1.0]},
        {"vector": [["a"]]},
        {"vector": pa.array([], pa.list_(pa.float32()))},
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(BadInput, match=r"a\.parquet"):
            opened(path)
    pq.write_table(pa.table({"vector": [[1.0], [2.0]], "id": ["x", None]}), path)
    with pytest.raises(BadInput, match="row 1"):
        opened(path).keys(0, 2)
    with pytest.raises(NotFound, match="no vector file"):
        opened(tmp_path / "none.npy")
