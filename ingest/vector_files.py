"""Ready-made vectors in a file: `.npy`, `.fvecs` or `.parquet`, on a disk or any fsspec store.

Rows are read as ranges of bytes (`.npy`, `.fvecs`) or by row group (`.parquet`, which bounds the memory by
the largest row group): the file is never in memory as a whole. Vectors come out as float32; halves, doubles
and 8-bit integers are converted.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from ingest.errors import BadInput, NotFound, Unavailable
from ingest.sidecar import plain_column
from ingest.sources import Value, VectorSource, default_name
from ingest.store import Store

_HEAD = 4096  # bytes that hold the header of any plain .npy
_DTYPES = ("float32", "float16", "float64", "uint8", "int8")
VECTOR_COLUMN, ID_COLUMN = "vector", "id"


def open_vectors(name: str | None, url: str, options: dict[str, Any]) -> VectorSource:
    """Opens `vectors:FILE`.

    Raises:
        NotFound: there is no such file.
        BadInput: it is none of the three formats, is cut short, or holds no two-dimensional numbers.
    """
    path = url.removeprefix("vectors:")
    opener = {"npy": _open_npy, "fvecs": _open_fvecs, "parquet": _open_parquet}.get(
        path.rpartition(".")[2].lower()
    )
    if opener is None:
        raise BadInput(f"{path!r} is no vector file: give vectors:FILE ending in .npy, .fvecs or .parquet")
    file = _File(path, options)
    return opener(name or default_name(path), url, file, file.size_and_version())


@dataclass(frozen=True)
class _File:
    """One file of a store, read by ranges."""

    path: str
    options: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def _at(self) -> tuple[Store, str]:
        folder, slash, name = self.path.rpartition("/")
        return Store((folder or "/") if slash else ".", self.options), name

    def size_and_version(self) -> tuple[int, str]:
        store, name = self._at()
        try:
            info = store.info(name)
        except NotFound:
            raise NotFound(f"there is no vector file {self.path}: check the spelling") from None
        return info.size, f"{info.size}-{int(info.modified * 1e6)}"

    def range(self, offset: int, length: int) -> bytes:
        store, name = self._at()
        data = store.read_range(name, offset, length)
        if len(data) < length:
            raise BadInput(f"{self.path} became shorter while it was read: give a file that nobody rewrites")
        return data


@dataclass(frozen=True)
class _FixedRows:
    """Rows of the same number of bytes, one after another."""

    name: str
    url: str
    file: _File
    version: str
    rows: int
    dim: int
    offset: int
    dtype: str
    counted: bool  # .fvecs: each row starts with its dimension

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "n d"]:
        start, stop = _within(start, stop, self.rows)
        head = 4 if self.counted else 0
        length = head + self.dim * np.dtype(self.dtype).itemsize
        data = self.file.range(self.offset + start * length, (stop - start) * length)
        rows = np.frombuffer(data, np.uint8).reshape(stop - start, length)
        if self.counted:
            stated = np.ascontiguousarray(rows[:, :4]).view("<i4")[:, 0]
            wrong = np.flatnonzero(stated != self.dim)
            if len(wrong):
                row = int(wrong[0])
                raise BadInput(
                    f"{self.file.path}: row {start + row} has {stated[row]} values, not {self.dim}"
                )
        values = np.ascontiguousarray(rows[:, head:]).view(self.dtype)
        return _finite(values.reshape(stop - start, self.dim), start, self.file.path)

    def keys(self, start: int, stop: int) -> list[str]:
        return [f"{row:09d}" for row in range(*_within(start, stop, self.rows))]

    def metadata(self, start: int, stop: int) -> list[dict[str, Value]]:
        return [{} for _ in range(*_within(start, stop, self.rows))]


def _within(start: int, stop: int, rows: int) -> tuple[int, int]:
    if not 0 <= start <= stop:
        raise ValueError(f"rows {start} to {stop} are no range")
    return min(start, rows), min(stop, rows)


def _finite(values: np.ndarray, first: int, path: str) -> Float32[np.ndarray, "n d"]:
    """Values as float32; `BadInput`, naming the row, if one is not finite."""
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(values, np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise BadInput(
            f"{path}: row {first + int(bad[0])} has a value that is NaN or infinite: remove the row"
        )
    return vectors


def _open_npy(name: str, url: str, file: _File, about: tuple[int, str]) -> VectorSource:
    size, version = about
    head = io.BytesIO(file.range(0, min(size, _HEAD)))
    try:
        major, _ = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{file.path} is no .npy file: {error}") from error
    if len(shape) != 2 or fortran or shape[1] == 0 or dtype.name not in _DTYPES:
        order = ", Fortran order" if fortran else ""
        raise BadInput(
            f"{file.path} holds {dtype} of shape {shape}{order}; it must be (rows, dim), row by row, "
            f"{', '.join(_DTYPES)}"
        )
    rows, dim, offset = shape[0], shape[1], head.tell()
    if size != offset + rows * dim * dtype.itemsize:
        raise BadInput(
            f"{file.path} is cut short, or too long: {size} bytes, and {rows} x {dim} {dtype} take "
            f"{offset + rows * dim * dtype.itemsize}; copy it again"
        )
    return _FixedRows(name, url, file, version, rows, dim, offset, dtype.str, counted=False)


def _open_fvecs(name: str, url: str, file: _File, about: tuple[int, str]) -> VectorSource:
    size, version = about
    dim = int.from_bytes(file.range(0, 4), "little", signed=True) if size >= 4 else 0
    if not 0 < dim <= 1 << 20:
        raise BadInput(f"{file.path} is no .fvecs file: its first row states {dim} values")
    rows, rest = divmod(size, 4 + 4 * dim)
    if rest:
        raise BadInput(
            f"{file.path} is cut short or ragged: after row {rows - 1} of {dim} values {rest} bytes are left"
        )
    return _FixedRows(name, url, file, version, rows, dim, 0, "<f4", counted=True)


@dataclass(frozen=True)
class _ParquetRows:
    """A Parquet file with a list column `vector`, perhaps `id`, perhaps metadata."""

    name: str
    url: str
    file: _File
    version: str
    rows: int
    dim: int
    starts: tuple[int, ...]  # of the row groups, and the number of rows
    columns: tuple[str, ...]

    def _tables(self, start: int, stop: int, columns: tuple[str, ...]) -> Iterator[tuple[int, pa.Table]]:
        start, stop = _within(start, stop, self.rows)
        for group, (first, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            low, high = max(start, first), min(stop, end)
            if low < high:
                yield low, _row_group(self.file, self.version, group, columns).slice(low - first, high - low)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "n d"]:
        blocks = [
            _list_values(table[VECTOR_COLUMN], self.dim, first, self.file.path)
            for first, table in self._tables(start, stop, (VECTOR_COLUMN,))
        ]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *blocks])

    def keys(self, start: int, stop: int) -> list[str]:
        if ID_COLUMN not in self.columns:
            return [f"{row:09d}" for row in range(*_within(start, stop, self.rows))]
        keys: list[str] = []
        for first, table in self._tables(start, stop, (ID_COLUMN,)):
            for row, value in enumerate(table[ID_COLUMN].to_pylist()):
                if not isinstance(value, str | int) or value == "":
                    raise BadInput(
                        f"{self.file.path}: row {first + row} has no id, or one that is no text or integer"
                    )
                keys.append(str(value))
        return keys

    def metadata(self, start: int, stop: int) -> list[dict[str, Value]]:
        names = tuple(name for name in self.columns if name not in (VECTOR_COLUMN, ID_COLUMN))
        rows: list[dict[str, Value]] = [{} for _ in range(*_within(start, stop, self.rows))]
        for first, table in self._tables(start, stop, names) if names else ():
            for name in names:
                column = plain_column(table[name], name, self.file.path)
                for row, value in enumerate(column.to_pylist() if column is not None else ()):
                    if value is not None:
                        rows[first - start + row][name] = value
        return rows


def _open_parquet(name: str, url: str, file: _File, about: tuple[int, str]) -> VectorSource:
    parquet = _parquet(file)
    schema = parquet.schema_arrow
    if VECTOR_COLUMN not in schema.names:
        raise BadInput(f"{file.path} has no list column {VECTOR_COLUMN!r} but {schema.names}: rename it")
    kind = schema.field(VECTOR_COLUMN).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or str(kind.value_type).replace("halffloat", "float16") not in _ARROW_NUMBERS:
        raise BadInput(f"{file.path}: column {VECTOR_COLUMN!r} is {kind}, not a list of {', '.join(_DTYPES)}")
    starts = [0]
    for group in range(parquet.metadata.num_row_groups):
        starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(parquet)
    if starts[-1] == 0 or dim == 0:
        raise BadInput(f"{file.path} has no vectors: {starts[-1]} rows of {dim} values")
    return _ParquetRows(name, url, file, about[1], starts[-1], dim, tuple(starts), tuple(schema.names))


_ARROW_NUMBERS = ("float", "float16", "double", "uint8", "int8")


def _first_length(parquet: Any) -> int:
    for batch in parquet.iter_batches(batch_size=1, columns=[VECTOR_COLUMN]):
        value = batch.column(0)[0].as_py()
        return 0 if value is None else len(value)
    return 0


def _parquet(file: _File) -> Any:
    import fsspec
    import pyarrow.parquet as pq

    try:
        handle = fsspec.open(file.path, "rb", **file.options).open()
    except Exception as error:
        raise Unavailable(f"could not open {file.path}: {type(error).__name__}: {error}") from error
    try:
        return pq.ParquetFile(handle)
    except (pa.ArrowException, OSError, ValueError) as error:
        handle.close()
        raise BadInput(f"{file.path} is no Parquet file, or is cut short: {error}") from error


@lru_cache(maxsize=2)
def _row_group(file: _File, version: str, group: int, columns: tuple[str, ...]) -> pa.Table:
    """A row group's columns. The last ones stay in memory, since rows are read in order, part by part."""
    try:
        return _parquet(file).read_row_group(group, columns=list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{file.path}: row group {group} cannot be read: {error}") from error


def _list_values(column: pa.ChunkedArray, dim: int, first: int, path: str) -> Float32[np.ndarray, "n d"]:
    """A list column as (n, dim) float32; `BadInput`, naming the row, where a list has not `dim` values."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        row = int(wrong[0])
        has = "no vector" if lengths[row] < 0 else f"{lengths[row]} values, not {dim}"
        raise BadInput(f"{path}: row {first + row} has {has}")
    flat = pc.list_flatten(column)
    if flat.null_count:
        at = int(pc.index(pc.is_null(flat), True).as_py())
        raise BadInput(f"{path}: row {first + at // dim} has a value that is absent")
    return _finite(flat.to_numpy().reshape(-1, dim), first, path)
