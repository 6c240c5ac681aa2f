"""Laws of sources: what is listed, what never is, and what a read can reach."""

import os
import pickle
import socket
from pathlib import Path

import fsspec
import pytest

from ingest.errors import BadInput, NotFound, Unavailable
from ingest.sources import KINDS, Listed, Skip, Skipped, Source, default_name, open_source


def source_of(text: str, metadata: str | None = None) -> Source:
    source = open_source(text, metadata)
    assert isinstance(source, Source)
    return source


def put(root: Path, *keys: str) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(key.encode())


def keys(source: Source) -> list[str]:
    return [entry.key for entry in source.listing() if isinstance(entry, Listed)]


def skipped(source: Source) -> dict[str, Skip]:
    return {entry.key: entry.why for entry in source.listing() if isinstance(entry, Skipped)}


def test_a_folder_lists_image_names_sorted_and_says_why_not_the_others(tmp_path: Path) -> None:
    put(tmp_path, "b.JPG", "a.png", "z/2.webp", "z/1.jfif", "notes.txt", "jpg", ".hidden.jpg", ".git/x.jpg")
    source = source_of(str(tmp_path))
    assert keys(source) == ["a.png", "b.JPG", "z/1.jfif", "z/2.webp"]
    assert skipped(source) == {
        "notes.txt": Skip.NOT_AN_IMAGE_NAME,
        "jpg": Skip.NOT_AN_IMAGE_NAME,
        ".hidden.jpg": Skip.HIDDEN,
        ".git": Skip.HIDDEN,
    }
    assert source.read("z/1.jfif") == b"z/1.jfif"
    assert source.uri("z/1.jfif") == f"{tmp_path}/z/1.jfif"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "d/b.jpg", "d/e/c.jpg"]),
        ("d/**", ["d/b.jpg", "d/n.txt", "d/e/c.jpg"]),
        ("d/*/c.*", ["d/e/c.jpg"]),
        ("**/e/*", ["d/e/c.jpg"]),
        ("?.[jx]pg", ["a.jpg"]),
    ],
)
def test_a_glob_lists_what_it_matches_on_a_disk_and_on_a_store_alike(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    everything = ["a.jpg", "d/b.jpg", "d/n.txt", "d/e/c.jpg", "d/.h/x.jpg", "f/g.png"]
    put(tmp_path, *everything)
    memory = fsspec.filesystem("memory")
    for key in everything:
        memory.pipe_file(f"{tmp_path}/{key}", key.encode())
    for url in (str(tmp_path), f"memory:/{tmp_path}"):
        source = source_of(f"n={url}/{pattern}")
        prefix = "d/" if pattern.startswith("d/") else ""
        assert [prefix + key for key in keys(source)] == expected
        assert not skipped(source)
        assert [source.read(key) for key in keys(source)] == [key.encode() for key in expected]


def test_a_store_lists_as_a_disk_does_and_versions_follow_the_content(tmp_path: Path) -> None:
    everything = ["a.png", "b.txt", ".c.png", "d/e.gif"]
    put(tmp_path, *everything)
    memory = fsspec.filesystem("memory")
    for key in everything:
        memory.pipe_file(f"/as-disk/{key}", key.encode())
    remote, local = source_of("memory://as-disk"), source_of(str(tmp_path))
    assert keys(remote) == keys(local) == ["a.png", "d/e.gif"]
    assert skipped(remote) == skipped(local)
    for source, change in (
        (remote, memory.pipe_file),
        (local, lambda path, data: Path(path).write_bytes(data)),
    ):
        before = {entry.key: entry for entry in source.listing() if isinstance(entry, Listed)}
        assert before["a.png"].size == 5
        change("/as-disk/a.png" if source is remote else str(tmp_path / "a.png"), b"other bytes")
        after = {entry.key: entry for entry in source.listing() if isinstance(entry, Listed)}
        assert after["a.png"].version != before["a.png"].version
        assert after["d/e.gif"] == before["d/e.gif"]


def test_nothing_outside_the_root_and_no_special_file_is_listed_or_read(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    put(root, "in.jpg", "sub/in.jpg")
    put(outside, "secret.jpg")
    (root / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "outdir").symlink_to(outside)
    (root / "same.jpg").symlink_to("in.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "sub/up").symlink_to(root)
    (root / "prefix.jpg").symlink_to(tmp_path / "root-two.jpg")
    put(tmp_path, "root-two.jpg")
    os.mkfifo(root / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "s.jpg"))
        source = source_of(str(root))
        assert keys(source) == ["in.jpg", "same.jpg", "sub/in.jpg"]
        assert skipped(source) == {
            "fifo.jpg": Skip.SPECIAL_FILE,
            "s.jpg": Skip.SPECIAL_FILE,
            "out.jpg": Skip.LINK_OUT_OF_ROOT,
            "prefix.jpg": Skip.LINK_OUT_OF_ROOT,
            "outdir": Skip.LINK_OUT_OF_ROOT,
            "self.jpg": Skip.BROKEN_LINK,
            "sub/up": Skip.LINK_TO_FOLDER,
        }
        assert source.read("same.jpg") == b"in.jpg"
        unreachable = [
            "fifo.jpg",
            "s.jpg",
            "out.jpg",
            "prefix.jpg",
            "self.jpg",
            "outdir/secret.jpg",
            "sub",
            "no.jpg",
        ]
        for key in [
            *unreachable,
            "../outside/secret.jpg",
            "sub/../in.jpg",
            "/etc/passwd",
            "",
            "in.jpg/x",
            "a\0b",
        ]:
            with pytest.raises(NotFound):
                source.read(key)


def test_a_file_swapped_for_a_link_between_looking_and_opening_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    put(root, "d/in.jpg")
    put(tmp_path, "outside/in.jpg")
    source, real = source_of(str(root)), os.path.realpath

    def swap_after_looking(path: str, **more: bool) -> str:
        found = real(path, **more)
        (root / "d").rename(tmp_path / "moved")
        (root / "d").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(os.path, "realpath", swap_after_looking)
    with pytest.raises(NotFound):
        source.read("d/in.jpg")


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write(b"bytes")
    source = source_of(f"n={tmp_path}")
    assert keys(source) == [os.fsdecode(b"caf\xe9.jpg")]
    assert source.read(keys(source)[0]) == b"bytes"


@pytest.mark.parametrize("store", ["file", "memory"])
def test_a_read_stops_one_byte_past_its_limit(tmp_path: Path, store: str) -> None:
    root = f"{store}://{tmp_path}/limited"
    filesystem = fsspec.filesystem(store)
    filesystem.makedirs(f"{tmp_path}/limited", exist_ok=True)
    filesystem.pipe_file(f"{tmp_path}/limited/a.png", b"0123456789")
    filesystem.pipe_file(f"{tmp_path}/limited/empty.png", b"")
    source = source_of(root)
    assert [source.read("a.png", cap) for cap in (0, 4, 9, 10, 99)] == [
        b"0",
        b"01234",
        b"0123456789",
        b"0123456789",
        b"0123456789",
    ]
    assert source.read("empty.png", 4) == b""
    for key in ("gone.png", "../limited/a.png"):
        with pytest.raises(NotFound):
            source.read(key, 4)


def test_a_store_that_fails_for_a_moment_is_asked_again_and_then_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ingest.folder_source

    monkeypatch.setattr(ingest.folder_source, "_PAUSES_S", (0.0, 0.0))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shaky/a.png", b"bytes")
    source, real, left = source_of("memory://shaky"), memory.cat_file, [2]

    def shaky(*args: object, **more: object) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("reset")
        return bytes(real(*args, **more))

    monkeypatch.setattr(type(memory), "cat_file", lambda self, *args, **more: shaky(*args, **more))
    assert source.read("a.png") == b"bytes"
    left[0] = 99
    with pytest.raises(Unavailable, match=r"a\.png"):
        source.read("a.png")


def test_sources_are_pickled_and_named(tmp_path: Path) -> None:
    put(tmp_path / "My photos", "a.jpg")
    for text, name in [
        (f"{tmp_path}/My photos/", "My-photos"),
        (f"x={tmp_path}/My photos", "x"),
        (f"{tmp_path}/My photos/**/*.jpg", "My-photos"),
        ("synthetic:scenes=2", "synthetic"),
        ("town=synthetic:scenes=2", "town"),
        ("memory://bucket/photos/", "photos"),
    ]:
        source = source_of(text)
        assert source.name == name
        assert pickle.loads(pickle.dumps(source)) == source
    assert default_name("s3://bucket") == "bucket"


@pytest.mark.parametrize("text", ["", "  ", "n=", "..=photos", "a\0b", "nosuch://x", "n=vectors:x.csv"])
def test_what_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        open_source(text)


def test_a_missing_folder_and_a_file_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="check the spelling"):
        open_source(f"{tmp_path}/none")
    put(tmp_path, "a.jpg")
    with pytest.raises(BadInput, match="give its folder"):
        open_source(f"{tmp_path}/a.jpg")
    with pytest.raises(NotFound):
        list(source_of("memory://no/such/prefix").listing())
    for kind in KINDS.values():
        with pytest.raises(BadInput) as refused:
            open_source("")
        assert kind.form in str(refused.value)


def test_a_sidecar_is_joined_and_its_leftover_rows_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "d/b.png", "c.png")
    (tmp_path / "metadata.csv").write_text("key,year\nd/b.png,1999\na.png,2001\ngone.png,3\n")
    memory = fsspec.filesystem("memory")
    for file in ("a.png", "c.png", "d/b.png", "metadata.csv"):
        memory.pipe_file(f"/joined/{file}", (tmp_path / file).read_bytes())
    for source in (source_of(str(tmp_path)), source_of("memory://joined")):
        found = {entry.key: dict(entry.metadata) for entry in source.listing() if isinstance(entry, Listed)}
        assert found == {"a.png": {"year": 2001}, "c.png": {}, "d/b.png": {"year": 1999}}
        assert skipped(source) == {"metadata.csv": Skip.SIDECAR, "gone.png": Skip.METADATA_WITHOUT_IMAGE}
    (tmp_path / "other.csv").write_text("file_name,tag\nc.png,x\n")
    source = source_of(f"{tmp_path}/*.png", str(tmp_path / "other.csv"))
    assert {e.key: dict(e.metadata) for e in source.listing()} == {"a.png": {}, "c.png": {"tag": "x"}}  # type: ignore[union-attr]
