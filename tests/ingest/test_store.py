"""Laws of a store, the same for a folder, memory and S3."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ingest.backends
from ingest.backends import FsspecBackend, LocalBackend
from ingest.errors import BadInput, NotFound, Unavailable
from ingest.store import UNFINISHED, Store, probe_create_only
from tests.faults.faulty import ERRORS, FAULTS, STOPS, Stopped, faulty_store, operations_of


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/store"
    return f"s3://{request.getfixturevalue('s3').bucket()}/store"


@pytest.fixture
def store(url: str) -> Store:
    return Store(url)


def test_a_name_is_given_once(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"


def test_one_of_eight_threads_wins_and_its_bytes_stay(store: Store) -> None:
    for path in ("pins/x", "pins/y"):
        start = threading.Barrier(8)

        def race(i: int, path: str = path, start: threading.Barrier = start) -> bool:
            start.wait()
            return store.create(path, b"writer %d" % i * 1000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert sum(won) == 1
        assert store.read(path) == b"writer %d" % won.index(True) * 1000


def test_a_listing_is_what_was_created(store: Store) -> None:
    objects = {"a": b"1", "b/c": b"", "b/d/e": b"333", "bb": b"4444", "b/é x#1": b"5"}
    for path, data in objects.items():
        assert store.create(path, data)
    assert {info.path: info.size for info in store.listing("")} == {p: len(d) for p, d in objects.items()}
    assert [info.path for info in store.listing("b")] == ["b/c", "b/d/e", "b/é x#1"]
    assert store.listing("b/") == store.listing("b")
    assert store.listing("a") == []  # an object is not a folder
    assert store.listing("nowhere/at/all") == []
    assert store.unfinished() == []
    for info in store.listing(""):
        assert store.info(info.path).size == info.size
        assert abs(store.info(info.path).modified - info.modified) <= 1
        assert abs(info.modified - store.info("a").modified) < 600


def test_a_listing_sees_what_another_store_did(store: Store) -> None:
    other = Store(store.url)
    assert [info.path for info in other.listing("")] == []
    store.create("a", b"1")
    assert [info.path for info in other.listing("")] == ["a"]
    assert other.exists("a")
    store.delete("a")
    assert other.listing("") == []
    assert not other.exists("a")


def test_replace_writes_over(store: Store) -> None:
    store.replace("pins/a", b"first")
    store.replace("pins/a", b"2nd")
    assert store.read("pins/a") == b"2nd"
    assert store.info("pins/a").size == 3
    assert [info.path for info in store.listing("")] == ["pins/a"]


def test_deleting_twice_is_deleting_once(store: Store) -> None:
    store.create("a/b", b"x")
    store.create("a/c", b"y")
    for _ in range(2):
        store.delete("a/b")
        assert not store.exists("a/b")
    assert store.read("a/c") == b"y"
    assert store.create("a/b", b"again")


def test_what_is_not_there_is_not_found_by_name(store: Store) -> None:
    store.create("folder/object", b"x")
    for path in ("nothing", "folder", "folder/object/below"):
        for ask in (store.read, store.info, lambda path: store.read_range(path, 0, 1)):
            with pytest.raises(NotFound, match=path):
                ask(path)
        assert not store.exists(path)


def test_ranges_are_slices(store: Store) -> None:
    data = bytes(range(100))
    store.create("a", data)
    store.create("empty", b"")
    for offset, length in ((0, 100), (0, 1), (99, 1), (90, 50), (100, 1), (1000, 5), (3, 0)):
        assert store.read_range("a", offset, length) == data[offset : offset + length]
    assert store.read_range("empty", 0, 10) == b""
    assert store.read("empty") == b""
    for offset, length in ((-1, 5), (5, -1)):
        with pytest.raises(BadInput, match="a"):
            store.read_range("a", offset, length)


@given(data=st.binary(max_size=200), offset=st.integers(0, 300), length=st.integers(0, 300))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_any_range_is_a_slice(kind: str, tmp_path: Path, data: bytes, offset: int, length: int) -> None:
    store = Store(str(tmp_path) if kind == "file" else "memory://ranges")
    store.replace("a", data)
    assert store.read_range("a", offset, length) == data[offset : offset + length]


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "../x", "a/../../x", "a/./b", "a//b", "a/", "a\0b", f"a/{UNFINISHED}1"]
)
def test_a_path_stays_inside_the_store(tmp_path: Path, path: str) -> None:
    store = Store(str(tmp_path / "store"))
    for use in (store.read, store.info, lambda p: store.create(p, b""), lambda p: store.replace(p, b"")):
        with pytest.raises(BadInput):
            use(path)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_opens_the_same_store(store: Store) -> None:
    store.create("a", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert hash(copy) == hash(store)
    assert copy.read("a") == b"x"


def test_a_relative_folder_is_the_same_from_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("gallery")
    store.create("a", b"x")
    pickled = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickled).read("a") == b"x"


def test_options_are_not_printed() -> None:
    assert "hush" not in repr(Store("memory://x", {"secret": "hush"}))


def test_an_unknown_kind_of_store_names_the_extras() -> None:
    with pytest.raises(BadInput, match=r"reseen\[s3\]"):
        Store("nosuch://a/b")


# Faults


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_writer_leaves_all_or_nothing(url: str, stop: str) -> None:
    for verb, path in (("create", "a/new"), ("replace", "a/pin")):
        clean = Store(url)
        if verb == "replace":
            clean.create(path, b"old")
        before = {info.path: clean.read(info.path) for info in clean.listing("")}
        faulty = faulty_store(url, at=1, fault=stop)
        with pytest.raises(Stopped):
            getattr(faulty, verb)(path, b"whole" * 100)
        after = {info.path: clean.read(info.path) for info in clean.listing("")}
        assert after == (before if stop != "stop_after" else {**before, path: b"whole" * 100})
        for info in clean.unfinished():
            clean.delete(info.path)
        assert clean.unfinished() == []


@pytest.mark.parametrize("verb", ["create", "replace", "read", "read_range", "info", "listing", "delete"])
@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_that_passes_is_not_seen(url: str, verb: str, fault: str) -> None:
    clean = Store(url)
    clean.replace("old", b"0123456789")
    arguments = {
        "create": ("new", b"bytes"),
        "replace": ("old", b"bytes"),
        "read_range": ("old", 2, 3),
        "listing": ("",),
    }
    faulty = faulty_store(url, at=1, fault=fault)
    ask = lambda store: getattr(store, verb)(*arguments.get(verb, ("old",)))  # noqa: E731
    if fault == "no_space":  # does not pass
        with pytest.raises(Unavailable, match="make room"):
            ask(faulty)
        assert len(operations_of(faulty)) == 1
        assert clean.read("old") == b"0123456789"
        return
    answer = ask(faulty)
    assert len(operations_of(faulty)) >= 2
    match verb:
        case "create":
            assert answer is True
            assert clean.read("new") == b"bytes"
        case "replace":
            assert clean.read("old") == b"bytes"
        case "delete":
            assert not clean.exists("old")
        case _:
            assert answer == ask(clean)


def test_an_error_that_stays_is_unavailable_with_its_reason(url: str) -> None:
    faulty = faulty_store(url, at=1, fault="io_error", times=None)
    with pytest.raises(Unavailable, match=r"could not write .*/a/b: OSError: .*input/output.*run the same"):
        faulty.create("a/b", b"x")
    assert operations_of(faulty) == [("create", "a/b")] * 5
    assert not Store(url).exists("a/b")


def test_a_lost_reply_and_then_silence_is_unavailable_though_the_object_is_there(url: str) -> None:
    faulty = faulty_store(url, at=1, fault="lost_reply")
    inner_put = faulty.backend.inner.put_new
    calls = []

    def put_once(path: str, data: bytes) -> bool:
        calls.append(path)
        if len(calls) > 1:
            raise TimeoutError("gone")
        return inner_put(path, data)

    faulty.backend.inner.put_new = put_once
    with pytest.raises(Unavailable, match="gone"):
        faulty.create("a", b"mine")
    assert len(calls) == 5
    assert Store(url).read("a") == b"mine"
    assert faulty_store(url, at=1, fault="timeout").create("a", b"mine")  # the same command again
    assert not faulty_store(url, at=1, fault="timeout").create("a", b"another's")


def test_a_lost_race_after_an_error_is_told_by_the_bytes(url: str) -> None:
    Store(url).create("a", b"winner's")
    assert not faulty_store(url, at=1, fault="timeout").create("a", b"loser's")
    assert Store(url).read("a") == b"winner's"


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_the_loser_of_equal_bytes_is_told_so_if_its_answer_was_clear(kind: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if kind == "file" else f"memory://{uuid.uuid4().hex}")
    assert store.create("a", b"same")
    assert not store.create("a", b"same")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_at_every_operation_of_the_probe(url: str, fault: str) -> None:
    def at(number: int | None) -> Store:
        return faulty_store(url, at=number, fault=fault)

    counted = at(None)
    probe_create_only(counted)
    for number in range(1, len(operations_of(counted)) + 1):
        faulty = at(number)
        try:
            probe_create_only(faulty)
        except (Stopped, Unavailable):
            assert fault in STOPS or fault == "no_space"
        else:
            assert fault in ERRORS
        for info in Store(url).listing(""):
            assert Store(url).read(info.path) == b"first"


# Create-only


class OverwritingFileSystem(MemoryFileSystem):
    """Takes `mode="create"` and overwrites, as obstore's adapter and JuiceFS's gateway do."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        super().pipe_file(path, value, mode="overwrite")


def test_a_store_that_overwrites_is_refused_by_name(store: Store) -> None:
    probe_create_only(store)
    assert store.listing("") == []
    root = f"/{uuid.uuid4().hex}"
    lax = Store(f"memory:/{root}", backend=FsspecBackend(OverwritingFileSystem(), root))
    with pytest.raises(BadInput, match=f"{root}.*create-only"):
        probe_create_only(lax)
    assert lax.listing("") == []


class HesitatingFileSystem(MemoryFileSystem):
    """Waits between looking and writing, so that threads meet there."""

    def exists(self, path: str, **kwargs: object) -> bool:
        found = super().exists(path, **kwargs)
        time.sleep(0.02)
        return found


def test_threads_take_turns_in_memory() -> None:
    backend = FsspecBackend(HesitatingFileSystem(), uuid.uuid4().hex)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda i: backend.put_new("a", b"%d" % i), range(4))) == 1


class CachingFileSystem(MemoryFileSystem):
    """Answers from what it saw before until it is told to forget, as gcsfs and s3fs do."""

    seen: ClassVar[dict[str, Any]] = {}

    def invalidate_cache(self, path: str | None = None) -> None:
        self.seen.clear()

    def info(self, path: str, **kwargs: Any) -> Any:
        return self.seen.setdefault(f"info {path}", super().info(path, **kwargs))

    def find(self, path: str, **kwargs: Any) -> Any:
        return self.seen.setdefault(f"find {path}", super().find(path, **kwargs))


def test_cached_answers_are_not_believed() -> None:
    store = Store("memory://x", backend=FsspecBackend(CachingFileSystem(), uuid.uuid4().hex))
    for size in (1, 2):
        store.replace("a", bytes(size))
        assert store.info("a").size == size
    for size in (3, 4):
        store.replace("a", bytes(size))
        assert [info.size for info in store.listing("")] == [size]


# A folder


def test_what_is_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.create("a", b"x")

    def write(*_: object) -> None:
        raise AssertionError("wrote")

    monkeypatch.setattr(LocalBackend, "_write_temporary", write)
    assert not store.create("a", bytes(100))


_KILLED_WRITER = """
import os, signal, sys
from ingest.store import Store
os.link = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).create("a/b", b"x" * 1000)
"""


def test_a_killed_writer_leaves_an_unfinished_file_that_nobody_reads(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED_WRITER, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    store = Store(str(tmp_path))
    assert store.listing("") == []
    (left,) = store.unfinished()
    assert left.size == 1000
    assert left.path.startswith(f"a/{UNFINISHED}")
    store.delete(left.path)
    assert store.unfinished() == []
    assert store.create("a/b", b"y")


@pytest.mark.parametrize("verb", ["create", "replace"])
@pytest.mark.parametrize("step", ["fsync", "link"])
def test_an_exception_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, step: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    store = Store(str(tmp_path))
    store.create("a/there", b"x")
    monkeypatch.setattr(os, "fsync" if step == "fsync" else "link", interrupt)
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        getattr(store, verb)("a/b", b"x")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["there"]


@pytest.mark.parametrize("reason", ["EPERM", "EXDEV", "ENOTSUP"])
def test_a_disk_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(*_: object) -> None:
        number = getattr(ingest.backends.errno, reason)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BadInput, match=f"{tmp_path}.*hard links"):
        Store(str(tmp_path)).create("a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_made_though_nfs_says_it_exists_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_deny(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", link_and_deny)
    assert LocalBackend(tmp_path).put_new("a", b"x")


def test_a_name_or_a_file_in_the_way_is_said_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("a", b"x")
    with pytest.raises(Unavailable, match=r"NotADirectoryError.*folder"):
        store.create("a/b", b"y")
    with pytest.raises(Unavailable, match="shorter path"):
        store.create("n" * 300, b"y")
