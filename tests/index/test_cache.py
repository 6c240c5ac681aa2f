"""The local cache: bounded, always checked, and never in the way."""

import os
from pathlib import Path

import pytest

from index.cache import Cache
from ingest.errors import Corrupt
from ingest.store import Store
from ingest.tables import ObjectRef, write_object
from tests.tiny import memory_store


def stored(store: Store, *letters: str) -> list[ObjectRef]:
    """Objects of ten bytes."""
    return [write_object(store, f"shards/{letter}", letter.encode() * 10) for letter in letters]


def kept(cache: Cache) -> set[bytes]:
    return {file.read_bytes()[:1] for file in cache.folder.glob("??/*")}


def place(cache: Cache, ref: ObjectRef) -> Path:
    return cache.folder / ref.sha256[:2] / ref.sha256


def test_what_was_read_is_not_fetched_again(tmp_path: Path) -> None:
    store, cache = memory_store(), Cache(tmp_path)
    (ref,) = stored(store, "a")
    assert cache.read(store, ref) == b"a" * 10
    store.delete(ref.name)
    assert cache.read(store, ref) == b"a" * 10


def test_what_was_read_longest_ago_makes_room(tmp_path: Path) -> None:
    store, cache = memory_store(), Cache(tmp_path, limit_bytes=25)
    a, b, c = stored(store, "a", "b", "c")
    for ref in (a, b):
        cache.read(store, ref)
    os.utime(place(cache, a), (1, 1))
    os.utime(place(cache, b), (2, 2))
    cache.read(store, a)  # now the youngest
    cache.read(store, c)
    assert kept(cache) == {b"a", b"c"}


def test_a_damaged_copy_is_fetched_anew(tmp_path: Path) -> None:
    store, cache = memory_store(), Cache(tmp_path)
    (ref,) = stored(store, "a")
    for damage in (b"b" * 10, b"", b"a" * 11):
        cache.read(store, ref)
        place(cache, ref).write_bytes(damage)
        assert cache.read(store, ref) == b"a" * 10
        assert place(cache, ref).read_bytes() == b"a" * 10


def test_a_damaged_object_is_refused_and_not_kept(tmp_path: Path) -> None:
    store, cache = memory_store(), Cache(tmp_path)
    (ref,) = stored(store, "a")
    store.replace(ref.name, b"b" * 10)
    with pytest.raises(Corrupt, match="shards/a"):
        cache.read(store, ref)
    assert kept(cache) == set()


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    store = memory_store()
    (ref,) = stored(store, "a")
    (tmp_path / "file").write_bytes(b"in the way")
    assert Cache(tmp_path / "file").read(store, ref) == b"a" * 10
    assert (tmp_path / "file").read_bytes() == b"in the way"
