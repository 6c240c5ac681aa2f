"""Parquet objects that prove themselves, references to them, and manifests of references.

Every Parquet object carries the sha256 of its own bytes (computed with that field blank), so that it can
be believed before any manifest names it: a rerun adopts what an earlier run left only if it is intact.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import Corrupt
from ingest.records import DIGEST_LENGTH, digest_of_bytes, sha256
from ingest.store import Store

_MARK = b"sha256-of-this-file:"
_BLANK = b"0" * 64
_NAME = "reseen.name"


@dataclass(frozen=True)
class ObjectRef:
    """An object as a manifest names it: path in the gallery, bytes, sha256, rows (0 if it has none)."""

    name: str
    size: int
    sha256: str
    rows: int = 0


def encode_table(table: pa.Table, name: str = "") -> bytes:
    """A table as a sealed Parquet file. Equal tables give equal bytes.

    Args:
        name: the object's path, which the seal covers, so that another object of the same kind cannot
            stand in for it; empty for objects that are named by their content.
    """
    sink = io.BytesIO()
    # Vectors do not compress, and trying to takes longer than making them.
    vectors = any(pa.types.is_fixed_size_list(kind) for kind in table.schema.types)
    packing = {"compression": "none" if vectors else "zstd", "use_dictionary": not vectors}
    with pq.ParquetWriter(sink, table.schema, write_statistics=False, **packing) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({"reseen.seal": (_MARK + _BLANK).decode(), _NAME: name})
    data = sink.getvalue()
    head, tail = _split_at_seal(data, "a new table")
    return head + sha256(data).encode() + tail


def decode_table(data: bytes, path: str, columns: list[str] | None = None, name: str = "") -> pa.Table:
    """The table of a sealed Parquet file; `Corrupt`, naming `path`, unless every byte is as written.

    Args:
        path: where it lies, for the message.
        name: what `encode_table` was given.
    """
    head, tail = _split_at_seal(data, path)
    stated = data[len(head) : len(head) + 64]
    whole = hashlib.sha256(head)
    whole.update(_BLANK)
    whole.update(tail)
    if stated != whole.hexdigest().encode():
        raise _damaged(path)
    file = pq.ParquetFile(io.BytesIO(data))
    written_as = file.metadata.metadata[_NAME.encode()].decode()
    if written_as != name:
        raise Corrupt(
            f"{path} holds {written_as!r}: another object was copied over it; restore it from a copy"
        )
    table = file.read(columns=columns)
    own = {
        key: value for key, value in (table.schema.metadata or {}).items() if not key.startswith(b"reseen.")
    }
    return table.replace_schema_metadata(own or None)


def _split_at_seal(data: bytes, path: str) -> tuple[bytes, bytes]:
    at = data.rfind(_MARK)
    if at < 0 or len(data) < at + len(_MARK) + 64:
        raise _damaged(path)
    at += len(_MARK)
    return data[:at], data[at + 64 :]


def _damaged(path: str) -> Corrupt:
    return Corrupt(f"{path} is damaged: its bytes do not match its checksum; restore it from a copy")


def write_table(store: Store, path: str, table: pa.Table) -> ObjectRef:
    """Puts a table, sealed with its path, unless it is there; what is there must be the same bytes."""
    return write_object(store, path, encode_table(table, path), table.num_rows)


def write_object(
    store: Store, path: str, data: bytes, rows: int = 0, checksum: str | None = None
) -> ObjectRef:
    """Puts an object unless it is there; what is there must be the same bytes, or it is `Corrupt`.

    Args:
        checksum: the sha256 of the data, where it is known already.
    """
    ref = ObjectRef(path, len(data), checksum or sha256(data), rows)
    if not store.create(path, data) and sha256(store.read(path)) != ref.sha256:
        raise Corrupt(
            f"{store.where(path)} differs from what the same work gives now: it is damaged, or was written "
            "by another version of a library; move it away and run again"
        )
    return ref


def read_table(store: Store, ref: ObjectRef | str, columns: list[str] | None = None) -> pa.Table:
    """A table by its reference (checked against it too) or by its path (checked against its seal alone)."""
    if isinstance(ref, str):
        return decode_table(store.read(ref), store.where(ref), columns, ref)
    return decode_table(read_object(store, ref), store.where(ref.name), columns, ref.name)


def read_object(store: Store, ref: ObjectRef) -> bytes:
    """A whole object; `Corrupt` unless it has the size and sha256 that its manifest states."""
    data = store.read(ref.name)
    check_object(data, ref, store)
    return data


def check_object(data: bytes, ref: ObjectRef, store: Store) -> None:
    """`Corrupt`, by name, unless the bytes are those that the reference states."""
    if len(data) != ref.size or sha256(data) != ref.sha256:
        raise Corrupt(
            f"{store.where(ref.name)} is damaged: its {len(data)} bytes are not the {ref.size} bytes that "
            "its manifest names; restore it from a copy, or build again with --rebuild"
        )


def write_manifest(store: Store, entries: Iterable[dict[str, Any] | ObjectRef], schema: pa.Schema) -> str:
    """Writes a long list as `manifests/<digest of its bytes>.parquet`; returns the digest."""
    rows = [asdict(entry) if isinstance(entry, ObjectRef) else entry for entry in entries]
    data = encode_table(pa.Table.from_pylist(rows, schema=schema))
    digest = digest_of_bytes(data)
    write_object(store, manifest_path(digest), data, len(rows))
    return digest


def read_manifest(store: Store, digest: str) -> pa.Table:
    """A manifest's table; `Corrupt` unless its bytes have the digest that is its name."""
    path = manifest_path(digest)
    data = store.read(path)
    if sha256(data)[:DIGEST_LENGTH] != digest:
        raise _damaged(store.where(path))
    return decode_table(data, store.where(path))


def manifest_path(digest: str) -> str:
    return f"manifests/{digest}.parquet"
