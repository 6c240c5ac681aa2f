"""Uploads: kept by their content, bounded in bytes and age, and never believed unchecked."""

from pathlib import Path

import pytest

from ingest.errors import BadInput, NotFound, OverBudget
from ingest.records import sha256
from ingest.store import Store
from serve.http.uploads import Uploads, UploadsOff
from tests.tiny import memory_store


class Clock:
    """The time of the files, moved by hand: the store's clock does not stand still."""

    def __init__(self) -> None:
        import time

        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "kept")) if request.param == "file" else memory_store()


def kept(store: Store) -> set[str]:
    return {info.path.rpartition("/")[2] for info in store.listing("uploads")}


def test_an_upload_is_named_by_its_content_and_comes_back_whole(store: Store) -> None:
    uploads = Uploads(store)
    digest = uploads.put(b"image")
    assert digest == sha256(b"image") == uploads.put(b"image")
    assert uploads.read(digest) == b"image" and kept(store) == {digest}
    assert Uploads(store).read(digest) == b"image", "another server, or the same after a restart"


def test_only_a_digest_is_looked_for(store: Store) -> None:
    uploads = Uploads(store)
    for name in ("", "a", "../gallery.json", "A" * 64, "0" * 63, "0" * 64 + "\n"):
        with pytest.raises(BadInput):
            uploads.read(name)
    with pytest.raises(NotFound, match="upload the image again"):
        uploads.read("0" * 64)


def test_what_was_not_used_for_longest_goes_first(store: Store) -> None:
    clock = Clock()
    uploads = Uploads(store, max_bytes=30, clock=clock)
    first, second, third = (uploads.put(bytes([number]) * 10) for number in range(3))
    clock.now += 10
    uploads.read(first)
    clock.now += 10
    fourth = uploads.put(b"d" * 10)
    gone = ({second, third} - kept(store)).pop()
    assert kept(store) == {first, second, third, fourth} - {gone}
    clock.now += 10
    uploads.put(b"e" * 20)
    assert fourth in kept(store) and first not in kept(store)


def test_all_together_never_exceed_their_bytes(store: Store) -> None:
    uploads = Uploads(store, max_bytes=100)
    for number in range(40):
        uploads.put(bytes([number]) * (1 + number % 37))
        assert sum(info.size for info in store.listing("uploads")) <= 100
    with pytest.raises(OverBudget, match="101 bytes"):
        uploads.put(b"x" * 101)


def test_an_upload_that_nobody_used_is_gone_after_its_age(store: Store) -> None:
    clock = Clock()
    uploads = Uploads(store, max_age_s=100, clock=clock)
    digest, other = uploads.put(b"image"), uploads.put(b"other")
    clock.now += 90
    assert uploads.read(digest) == b"image"
    clock.now += 60
    with pytest.raises(NotFound):
        uploads.read(other)
    uploads.trim()
    assert other not in kept(store)


def test_a_use_at_one_server_keeps_an_upload_at_the_other(tmp_path: Path) -> None:
    clock, store = Clock(), Store(str(tmp_path / "kept"))
    one, other = (Uploads(store, max_age_s=1_000, clock=clock) for _ in range(2))
    digest = one.put(b"image")
    assert other.read(digest) == b"image"
    clock.now += 500
    assert one.read(digest) == b"image"  # so long after, this is written down ...
    written = store.info(f"uploads/{digest[:2]}/{digest}").modified
    clock.now = written + 900
    assert other.read(digest) == b"image"  # ... and believed here
    clock.now = written + 5_000
    with pytest.raises(NotFound):
        Uploads(store, max_age_s=1_000, clock=clock).read("0" * 64)


def test_damaged_bytes_are_not_given_out_and_can_be_uploaded_again(store: Store) -> None:
    uploads = Uploads(store)
    digest = uploads.put(b"image")
    store.replace(f"uploads/{digest[:2]}/{digest}", b"imagf")
    with pytest.raises(NotFound):
        uploads.read(digest)
    assert kept(store) == set()
    assert uploads.put(b"image") == digest and uploads.read(digest) == b"image"


def test_uploads_can_be_off(store: Store) -> None:
    for uploads in (Uploads(None), Uploads(store, max_bytes=0)):
        assert not uploads.on
        with pytest.raises(UploadsOff, match="/v1/search/upload"):
            uploads.put(b"image")
        with pytest.raises(UploadsOff):
            uploads.read("0" * 64)


def test_what_a_killed_writer_left_is_taken_away_in_time(tmp_path: Path) -> None:
    clock, store = Clock(), Store(str(tmp_path / "kept"))
    uploads = Uploads(store, max_age_s=100, clock=clock)
    digest = uploads.put(b"image")
    left = tmp_path / "kept" / "uploads" / digest[:2] / ".unfinished-1"
    left.write_bytes(b"half")
    uploads.trim()
    assert left.exists()
    clock.now += 200
    uploads.trim()
    assert not left.exists()


def test_the_store_may_hold_other_things(store: Store) -> None:
    store.create("gallery.json", b"{}")
    clock = Clock()
    uploads = Uploads(store, max_bytes=10, max_age_s=1, clock=clock)
    uploads.put(b"x" * 10)
    clock.now += 100
    uploads.put(b"y" * 10)
    uploads.trim()
    assert store.read("gallery.json") == b"{}"
