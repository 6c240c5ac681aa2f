"""A source's metadata: one CSV or Parquet file with a row an image, joined by key.

`<root>/metadata.csv` or `<root>/metadata.parquet`, or any other by URL. A column `key` (or `file_name`)
names the image relative to the source's root; every other column is metadata, typed: text, integers,
numbers, true/false. In CSV the types are inferred; dates and times stay text.

Memory: the Arrow table, about the size of the file. A look-up is a binary search, or none where images
come in the order of their keys.
"""

import io
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.errors import BadInput, NotFound
from ingest.sources import Value
from ingest.store import Store

NAMES = ("metadata.csv", "metadata.parquet")
KEY_COLUMNS = ("key", "file_name")
RESERVED = frozenset(["image_id", "check", "source", "size", "version", "part", "row", "outcome", "score"])


class Sidecar:
    """A table sorted by key, that remembers which rows were taken."""

    def __init__(self, keys: pa.ChunkedArray, columns: pa.Table) -> None:
        self._keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
        self._columns = [(name, columns[name].combine_chunks()) for name in columns.column_names]
        self._taken = np.zeros(len(self._keys), bool)
        self._next = 0

    def __len__(self) -> int:
        return len(self._keys)

    def _key(self, row: int) -> str:
        return str(self._keys[row].as_py())

    def take(self, key: str) -> dict[str, Value]:
        """The metadata of an image, absent values left out; empty if it has no row."""
        row = self._next
        if row >= len(self) or self._key(row) != key:
            row = bisect_left(range(len(self)), key, key=self._key)
        if row >= len(self) or self._key(row) != key:
            return {}
        self._next = row + 1
        self._taken[row] = True
        values = ((name, column[row].as_py()) for name, column in self._columns)
        return {name: value for name, value in values if value is not None}

    def left(self) -> Iterator[str]:
        """The keys of rows that were never taken, sorted."""
        return (self._key(int(row)) for row in np.flatnonzero(~self._taken))


def find_sidecar(root: str, options: dict[str, Any]) -> str | None:
    """The URL of the sidecar in a source's root; None if it has none; `BadInput` if it has two."""
    store = Store(root, options)
    found = [name for name in NAMES if store.exists(name)]
    if len(found) > 1:
        raise BadInput(f"{root} has both {' and '.join(found)}: keep one, or name it with --metadata")
    return store.where(found[0]) if found else None


def load_sidecar(url: str, options: dict[str, Any]) -> Sidecar:
    """Reads and checks a sidecar.

    Raises:
        NotFound: there is none.
        BadInput: unreadable, no key column, a key twice or missing, a column that cannot be metadata.
    """
    folder, slash, name = url.rpartition("/")
    try:
        data = Store(folder if slash else ".", options).read(name)
    except NotFound:
        raise NotFound(f"there is no metadata file {url}: check --metadata") from None
    try:
        table = _parse(data, name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{url} cannot be read as {_format(name)}: {error}") from error
    return _checked(table, url)


def _format(name: str) -> str:
    return "Parquet" if name.lower().endswith((".parquet", ".pq")) else "CSV"


def _parse(data: bytes, name: str) -> pa.Table:
    if _format(name) == "Parquet":
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(data))
    import pyarrow.csv as csv

    convert = csv.ConvertOptions(
        column_types={column: pa.string() for column in KEY_COLUMNS},  # 007 is a name, not seven
        strings_can_be_null=True,
        null_values=[""],
    )
    parse = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)


def _checked(table: pa.Table, url: str) -> Sidecar:
    import pyarrow.compute as pc

    names = table.column_names
    key = next((name for name in KEY_COLUMNS if name in names), None)
    if key is None:
        raise BadInput(f"{url} has no column 'key' (or 'file_name') but {names}: add one")
    if len(set(names)) < len(names):
        raise BadInput(f"{url} has a column name twice: {sorted({n for n in names if names.count(n) > 1})}")
    reserved = sorted(RESERVED & set(names))
    if reserved:
        raise BadInput(f"{url} uses names that Reseen keeps for itself: {reserved}; rename these columns")
    columns = {name: plain_column(table[name], name, url) for name in names if name != key}
    keys = table[key]
    if not (pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type)):
        raise BadInput(f"{url}: column {key!r} is {keys.type}, not text; write the image's path into it")
    if keys.null_count:
        row = pc.index(pc.is_null(keys), True).as_py()
        raise BadInput(f"{url}: row {row + 1} has no {key!r}")
    order = pc.sort_indices(keys)
    keys = keys.cast(pa.large_string()).take(order)
    same = pc.equal(keys.slice(1), keys.slice(0, max(0, len(keys) - 1)))
    twice = pc.index(same, True).as_py()
    if twice >= 0:
        raise BadInput(f"{url} has two rows for {keys[twice].as_py()!r}: keep one")
    kept = {name: column.take(order) for name, column in columns.items() if column is not None}
    return Sidecar(keys, pa.table(kept))


def plain_column(column: pa.ChunkedArray, name: str, url: str) -> pa.ChunkedArray | None:
    """A column as text, int64, float64 or bool; None if all null; `BadInput` if it cannot be any of these."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_boolean(kind):
        return column
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind):
        return column.cast(pa.large_string())
    try:
        if pa.types.is_integer(kind):
            return column.cast(pa.int64())
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise BadInput(f"{url}: column {name!r} does not fit 64 bits: {error}") from error
    raise BadInput(f"{url}: column {name!r} is {kind}; metadata is text, integers, numbers or true/false")
