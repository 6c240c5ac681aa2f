"""The faulty store does what it says: a test that leans on it would else pass for the wrong reason."""

from pathlib import Path

import pytest

from ingest.errors import Unavailable
from ingest.store import Store
from tests.faults.faulty import FAULTS, Stopped, count_operations, faulty_store, operations_of


def work(store: Store) -> None:
    store.create("a", b"1" * 10)
    store.replace("a", b"2" * 10)
    store.read("a")
    store.listing("")


def test_operations_are_counted_and_logged(tmp_path: Path) -> None:
    store = faulty_store(str(tmp_path))
    work(store)
    assert operations_of(store) == [("create", "a"), ("replace", "a"), ("read", "a"), ("list", "")]
    assert count_operations(str(tmp_path / "other"), work) == 4
    assert count_operations(str(tmp_path / "third"), work, verbs=("create", "list")) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_strikes_at_its_operation(tmp_path: Path, fault: str) -> None:
    store = faulty_store(str(tmp_path), at=2, fault=fault)
    clean = Store(str(tmp_path))
    assert store.create("a", b"1" * 10)
    if fault in ("io_error", "timeout", "lost_reply"):
        store.replace("a", b"2" * 10)
        assert operations_of(store) == [("create", "a"), ("replace", "a"), ("replace", "a")]
    else:
        with pytest.raises(Unavailable if fault == "no_space" else Stopped):
            store.replace("a", b"2" * 10)
        assert len(operations_of(store)) == 2
    done = fault in ("stop_after", "lost_reply", "io_error", "timeout")
    assert clean.read("a") == (b"2" if done else b"1") * 10
    assert [info.size for info in clean.unfinished()] == ([5] if fault == "stop_within" else [])


def test_the_dead_do_nothing_more(tmp_path: Path) -> None:
    store = faulty_store(str(tmp_path), at=1, fault="stop_after")
    with pytest.raises(Stopped):
        try:
            store.create("a", b"1")
        finally:
            with pytest.raises(Stopped):
                store.delete("a")
    assert Store(str(tmp_path)).read("a") == b"1"


def test_an_error_without_end_outlasts_the_retries(tmp_path: Path) -> None:
    store = faulty_store(str(tmp_path), at=2, fault="timeout", times=None)
    store.create("a", b"1")
    with pytest.raises(Unavailable):
        store.read("a")
    assert faulty_store(str(tmp_path), at=1, fault="timeout", times=4).read("a") == b"1"


def test_a_fault_can_be_kept_to_some_verbs(tmp_path: Path) -> None:
    store = faulty_store(str(tmp_path), at=1, fault="stop_before", verbs=("read",))
    store.create("a", b"1")
    with pytest.raises(Stopped, match="read a"):
        store.read("a")
