"""Laws of the sidecar: typed values by key, and one clear refusal for each thing wrong with it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import BadInput, NotFound
from ingest.sidecar import find_sidecar, load_sidecar


def written(folder: Path, text: str) -> str:
    (folder / "metadata.csv").write_text(text)
    return str(folder / "metadata.csv")


def test_csv_columns_are_typed_and_keys_stay_text(tmp_path: Path) -> None:
    url = written(tmp_path, 'key,n,x,ok,when,note\n007,1,1.5,true,2024-05-06,"a, ""b""\nc"\nz.png,,,,,\n')
    sidecar = load_sidecar(url, {})
    row = sidecar.take("007")
    assert row == {"n": 1, "x": 1.5, "ok": True, "when": "2024-05-06", "note": 'a, "b"\nc'}
    assert [type(value) for value in row.values()] == [int, float, bool, str, str]
    assert sidecar.take("z.png") == {}
    assert sidecar.take("unknown") == {}


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_rows_and_of_questions_gives_each_key_its_own_row(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    keys = [f"{a}/{b}é.png" for a in range(7) for b in range(9)]
    shuffled = [keys[i] for i in random.permutation(len(keys))]
    table = pa.table({"key": shuffled, "n": [keys.index(key) for key in shuffled]})
    pq.write_table(table, tmp_path / "metadata.parquet", row_group_size=10)
    sidecar = load_sidecar(str(tmp_path / "metadata.parquet"), {})
    asked = [keys[i] for i in random.permutation(len(keys))[:50]]
    assert [sidecar.take(key)["n"] for key in asked] == [keys.index(key) for key in asked]
    assert list(sidecar.left()) == sorted(set(keys) - set(asked))


def test_parquet_types_become_the_four_plain_ones(tmp_path: Path) -> None:
    table = pa.table(
        {
            "file_name": pa.array(["a"]),
            "small": pa.array([3], pa.uint8()),
            "half": pa.array(np.array([0.5], np.float16)),
            "words": pa.array(["w"]).dictionary_encode(),
            "nothing": pa.nulls(1),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    assert load_sidecar(str(tmp_path / "m.parquet"), {}).take("a") == {"small": 3, "half": 0.5, "words": "w"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,n\na,1\n", "no column 'key'"),
        ("key,n\nb,1\na,2\nb,3\n", "two rows for 'b'"),
        ("key,n\na,1\n,2\n", "row 2 has no 'key'"),
        ("key,n,n\na,1,2\n", "column name twice"),
        ("key,image_id\na,1\n", "image_id"),
        ("key,n\na,1\nb\n", "cannot be read as CSV"),
        ("", "cannot be read as CSV"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    url = written(tmp_path, text)
    with pytest.raises(BadInput, match=message) as refused:
        load_sidecar(url, {})
    assert url in str(refused.value)


def test_nested_and_binary_columns_damage_and_two_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    for column in (
        pa.array([[1, 2]]),
        pa.array([{"a": 1}]),
        pa.array([b"\xff"]),
        pa.array([2**64 - 1], pa.uint64()),
    ):
        pq.write_table(pa.table({"key": ["a"], "odd": column}), path)
        with pytest.raises(BadInput, match="odd"):
            load_sidecar(str(path), {})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match="cannot be read as Parquet"):
        load_sidecar(str(path), {})
    assert find_sidecar(str(tmp_path), {}) == str(path)
    written(tmp_path, "key\na\n")
    with pytest.raises(BadInput, match="keep one"):
        find_sidecar(str(tmp_path), {})
    with pytest.raises(NotFound, match="no metadata file"):
        load_sidecar(str(tmp_path / "none.csv"), {})
