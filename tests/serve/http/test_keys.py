"""Keys: what opens, what does not, and what a server makes of a file that changes under it."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.errors import BadInput, NotFound
from serve.http.key_file import Scope, add_key, list_keys, revoke_key
from serve.http.keys import Keys, _look


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def opened(path: Path, clock: Clock) -> Keys:
    return Keys(path, look_every_s=1.0, monotonic=clock)


def test_a_key_opens_with_its_scopes_and_nothing_else_does(path: Path) -> None:
    key, text = add_key(path, "phone", [Scope.READ])
    keys = Keys(path)
    found = keys.check(text)
    assert found == key and found is not None and found.scopes == (Scope.READ,)
    other = text[:-2] + ("AA" if text[-2:] != "AA" else "BB")
    for wrong in ("", "reseen", other, text + "x", text.upper(), " " + text, text.replace(key.id, "0" * 12)):
        assert keys.check(wrong) is None, wrong


def test_the_file_holds_no_secret_and_is_its_owners_alone(path: Path) -> None:
    key, text = add_key(path, "phone")
    secret = text.split("_", 2)[2]
    content = path.read_text()
    assert secret not in content and text not in content and key.id in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in repr(key) and key.sha256 not in repr(key)


def test_keys_are_changed_without_a_gap(path: Path) -> None:
    clock = Clock()
    old, old_text = add_key(path, "service")
    keys = opened(path, clock)
    _, new_text = add_key(path, "service")
    clock.now += 1.1
    assert keys.check(old_text) and keys.check(new_text)
    assert revoke_key(path, old.id) == old
    clock.now += 1.1
    assert keys.check(old_text) is None and keys.check(new_text)
    assert [key.name for key in list_keys(path)] == ["service"]


def test_the_file_is_looked_at_only_so_often(path: Path) -> None:
    clock = Clock()
    key, text = add_key(path, "a")
    keys = opened(path, clock)
    revoke_key(path, key.id)
    clock.now += 0.9
    assert keys.check(text)
    clock.now += 0.2
    assert keys.check(text) is None


def test_a_key_ends_when_it_expires(path: Path) -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    _, text = add_key(path, "guest", expires=end)
    now = [(end - timedelta(seconds=1)).timestamp()]
    keys = Keys(path, clock=lambda: now[0])
    assert keys.check(text)
    now[0] = end.timestamp()
    assert keys.check(text) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2, "keys": []}',
        b'{"keys": [{"id": "x"}]}',
        b'{"keys": [], "more": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "newer", "short", "more", "bytes", "deep"],
)
def test_a_broken_file_keeps_the_keys_in_force_and_is_reported(
    path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    _, text = add_key(path, "a")
    keys = opened(path, clock)
    path.write_bytes(broken)
    for _ in range(3):
        clock.now += 1.1
        assert keys.check(text)
    reports = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(reports) == 1 and str(path) in reports[0].getMessage()
    with pytest.raises(BadInput, match="no file of keys"):
        Keys(path)


def test_a_file_that_goes_and_comes_back_is_followed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    _, text = add_key(path, "a")
    keys = opened(path, clock)
    content = path.read_bytes()
    path.unlink()
    clock.now += 1.1
    assert keys.check(text)
    path.write_bytes(json.dumps(json.loads(content) | {"keys": []}).encode())
    clock.now += 1.1
    assert keys.check(text) is None
    with pytest.raises(NotFound, match="reseen keys add"):
        Keys(path.with_name("other.json"))


def test_a_swapped_link_is_noticed(path: Path) -> None:
    """Kubernetes mounts a secret as a link to a folder that it swaps."""
    clock = Clock()
    first, second = path.with_name("first.json"), path.with_name("second.json")
    _, one = add_key(first, "a")
    _, other = add_key(second, "b")
    path.symlink_to(first)
    keys = opened(path, clock)
    path.unlink()
    path.symlink_to(second)
    clock.now += 1.1
    assert keys.check(one) is None and keys.check(other)


def test_a_file_that_could_not_be_read_for_a_while_is_read_when_it_can_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A revocation that came while the disk failed must not be lost: nothing of the file changes after it."""
    clock = Clock()
    key, text = add_key(path, "a")
    keys = opened(path, clock)
    revoke_key(path, key.id)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", failing)
        for _ in range(3):
            clock.now += 1.1
            assert keys.check(text)
    clock.now += 1.1
    assert keys.check(text) is None
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def failing(*_: object, **__: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_file_that_becomes_readable_is_a_file_that_changed(path: Path) -> None:
    """Its content and its time stay as they were (root can read it anyhow, so only the look is tested)."""
    add_key(path, "a")
    before = _look(path)
    path.chmod(0o400)
    assert _look(path) != before


def test_a_link_stays_one_when_keys_change(path: Path) -> None:
    link = path.with_name("link.json")
    add_key(path, "a")
    link.symlink_to(path.name)
    key, _ = add_key(link, "b")
    assert link.is_symlink()
    assert [each.name for each in list_keys(path)] == ["a", "b"]
    revoke_key(link, key.id)
    assert [each.name for each in list_keys(path)] == ["a"]


def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "keys.json", Path("/proc/none/keys.json")):
        with pytest.raises(BadInput, match="choose another file"):
            add_key(path, "a")


def test_writers_at_once_lose_no_key(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = [text for _, text in pool.map(lambda number: add_key(path, str(number)), range(24))]
    keys = Keys(path)
    assert all(keys.check(text) for text in texts) and len(list_keys(path)) == 24
    assert sorted(each.name for each in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


def test_what_cannot_be_a_key_is_refused(path: Path) -> None:
    with pytest.raises(BadInput, match="scopes"):
        add_key(path, "a", [])
    with pytest.raises(BadInput, match="expires"):
        add_key(path, "a", expires=datetime(2030, 1, 1))
    with pytest.raises(BadInput, match="name"):
        add_key(path, "a" * 201)
    assert list_keys(path) == []
    add_key(path, "a")
    with pytest.raises(NotFound, match="reseen keys list"):
        revoke_key(path, "000000000000")
