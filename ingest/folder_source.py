"""Image files below a folder, or matched by a glob, on a disk or on any fsspec store.

Memory is bounded by the largest single folder (about 0.5 kB an entry), never by the collection.

On a disk nothing outside the root is ever opened, and nothing that is not a plain file: each component of
a key is opened relative to the one above it without following links, and what was opened is looked at
before it is read, so that swapping a file after it was listed gains nothing.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import Any, TypeVar

from ingest.errors import BadInput, NotFound, ReseenError, Unavailable
from ingest.sidecar import NAMES as SIDECAR_NAMES
from ingest.sidecar import Sidecar, find_sidecar, load_sidecar
from ingest.sources import Listed, Skip, Skipped, Source, default_name

T = TypeVar("T")

IMAGE_EXTENSIONS = frozenset(["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp"])

_PAUSES_S = (0.05, 0.2, 0.8, 2.0)
_MAGIC = re.compile(r"[*?\[]")
_CHUNK = 1 << 20


def open_folder(name: str | None, url: str, metadata: str | None, options: dict[str, Any]) -> Source:
    """Opens a folder or a glob. `NotFound` if a local folder does not exist."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"cannot open {url!r}: {error}; use a folder or an s3://, gs:// or az:// URL "
            "(extras: reseen[s3], reseen[gcs], reseen[azure])"
        ) from error
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    local = "file" in protocols
    glob = bool(_MAGIC.search(url)) and not (local and Path(path).exists())
    root, pattern = _split_glob(path) if glob else (path, "")
    base = _split_glob(url)[0] if glob else url
    if local:
        return LocalFolder(
            name or default_name(os.path.realpath(root)), base, _folder(root), pattern, metadata
        )
    return RemoteFolder(name or default_name(base), base.rstrip("/"), options, pattern, metadata)


def _folder(path: str) -> str:
    """The real path of an existing folder."""
    real = Path(os.path.realpath(path))
    if not real.exists():
        raise NotFound(f"there is no folder {path}: check the spelling, or give a URL (s3://bucket/photos)")
    if not real.is_dir():
        raise BadInput(f"{path} is a file: give its folder, or a glob that matches it")
    return str(real)


def _split_glob(path: str) -> tuple[str, str]:
    """Root (the components before the first wildcard) and pattern of a glob."""
    parts = path.split("/")
    first = next(at for at, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), "/".join(parts[first:])


class Pattern:
    """Which files a source lists; matched folder by folder, so that what cannot match is never entered.

    An empty pattern lists image names in every folder. In a glob `**` is any number of folders, and
    a name that starts with a dot is matched only by a component that does so too.
    """

    def __init__(self, pattern: str) -> None:
        parts = pattern.split("/") if pattern else []
        if parts and parts[-1] == "**":
            parts.append("*")
        self.parts = parts
        self.regexes = [re.compile(translate(part)) for part in parts]
        self.start = self._spread({0})

    def _spread(self, states: set[int]) -> frozenset[int]:
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == "**":
                state += 1
                states.add(state)
        return frozenset(states)

    def _matches(self, state: int, name: str) -> bool:
        if name.startswith(".") and not self.parts[state].startswith("."):
            return False
        return self.regexes[state].match(name) is not None

    def enter(self, states: frozenset[int], name: str) -> frozenset[int] | Skip | None:
        """The states inside a folder; why it is skipped; or None if nothing in it can match."""
        if not self.parts:
            return Skip.HIDDEN if name.startswith(".") else states
        inside = {s for s in states if self.parts[s] == "**" and not name.startswith(".")}
        inside |= {s + 1 for s in states if s + 1 < len(self.parts) and self._matches(s, name)}
        return self._spread(inside) if inside else None

    def file(self, states: frozenset[int], name: str) -> Skip | bool:
        """Whether a file is listed; or why it is skipped. False: a glob that does not match it."""
        if self.parts:
            last = len(self.parts) - 1
            return last in states and self._matches(last, name)
        if name.startswith("."):
            return Skip.HIDDEN
        extension = name.rpartition(".")[2].lower() if "." in name else ""
        return True if extension in IMAGE_EXTENSIONS else Skip.NOT_AN_IMAGE_NAME


def _with_metadata(found: Iterator[Listed | Skipped], sidecar: Sidecar | None) -> Iterator[Listed | Skipped]:
    """The listing with each image's row of the sidecar; at the end, the rows that no image took."""
    if sidecar is None:
        yield from found
        return
    for entry in found:
        if isinstance(entry, Listed):
            entry = Listed(entry.key, entry.size, entry.version, sidecar.take(entry.key))
        yield entry
    for key in sidecar.left():
        yield Skipped(key, Skip.METADATA_WITHOUT_IMAGE)


def _parts(key: str) -> list[str] | None:
    """A key's components; None if it could lead out of the root."""
    parts = key.split("/")
    return None if "\0" in key or any(part in ("", ".", "..") for part in parts) else parts


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk. `root` is its real path."""

    name: str
    url: str
    root: str
    pattern: str = ""
    metadata_url: str | None = None

    def listing(self) -> Iterator[Listed | Skipped]:
        sidecar = self.metadata_url or find_sidecar(self.root, {})
        pattern = Pattern(self.pattern)
        found = self._walk("", pattern, pattern.start)
        yield from _with_metadata(found, load_sidecar(sidecar, {}) if sidecar else None)

    def _walk(self, folder: str, pattern: Pattern, states: frozenset[int]) -> Iterator[Listed | Skipped]:
        waiting = [(folder, states)]  # a stack, not recursion: depth is the disk's business
        while waiting:
            folder, states = waiting.pop()
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118
                    here = sorted(entries, key=lambda entry: entry.name)
            except FileNotFoundError:
                if not folder:
                    raise NotFound(f"there is no folder {self.root} any more") from None
                continue
            except OSError:
                yield Skipped(folder, Skip.UNREADABLE)
                continue
            below = []
            for entry in here:
                key = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    inside = pattern.enter(states, entry.name)
                    if isinstance(inside, Skip):
                        yield Skipped(key, inside)
                    elif inside is not None:
                        below.append((key, inside))
                    continue
                found = self._look(entry, key, pattern.file(states, entry.name))
                if found is not None:
                    yield found
            waiting.extend(reversed(below))

    def _look(self, entry: os.DirEntry[str], key: str, verdict: Skip | bool) -> Listed | Skipped | None:
        if key in SIDECAR_NAMES and not self.pattern:
            return Skipped(key, Skip.SIDECAR)
        if verdict is False:
            return None
        try:
            if entry.is_symlink():
                refused = self._link(entry.path)
                if refused:
                    return Skipped(key, refused)
            status = entry.stat()
        except OSError:
            return Skipped(key, Skip.UNREADABLE)
        if not stat.S_ISREG(status.st_mode):
            return Skipped(key, Skip.SPECIAL_FILE)
        if isinstance(verdict, Skip):
            return Skipped(key, verdict)
        return Listed(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def _link(self, path: str) -> Skip | None:
        try:
            target = os.path.realpath(path, strict=True)
        except OSError:  # points to nothing, or round in circles
            return Skip.BROKEN_LINK
        if target != self.root and self._inside(target) is None:
            return Skip.LINK_OUT_OF_ROOT
        return Skip.LINK_TO_FOLDER if Path(target).is_dir() else None

    def _inside(self, real: str) -> str | None:
        """A real path relative to the root; None if it lies outside."""
        root = self.root.rstrip("/") + "/"
        return real[len(root) :] if real.startswith(root) else None

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        parts = _parts(key)
        # Links inside the root are allowed: resolve first, then open what that gave without links.
        inside = self._inside(os.path.realpath(self.uri(key))) if parts else None
        if inside is None:
            raise NotFound(f"{key!r} is not a key inside {self.root}")

        def attempt() -> bytes:
            return _read_plain_file(self.root, inside.split("/"), max_bytes)

        try:
            return _patiently("read", self.uri(key), attempt)
        except NotFound:
            if Path(self.root).is_dir():
                raise
            # Not an image that is gone, which would be a reject for good, but a disk that may come back.
            raise Unavailable(
                f"there is no folder {self.root} any more: mount it or put it back, and run again"
            ) from None

    def uri(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}"


def _read_plain_file(root: str, parts: list[str], max_bytes: int | None) -> bytes:
    """A file's bytes, no component of its path being a link, and itself neither FIFO, device nor socket."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for at, part in enumerate(parts):
            flags = os.O_DIRECTORY if at < len(parts) - 1 else os.O_NONBLOCK  # a FIFO must not hold us
            above, handle = (
                handle,
                os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=handle),
            )
            os.close(above)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileNotFoundError(errno.ENOENT, "no longer a plain file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read() if max_bytes is None else file.read(max_bytes + 1)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG):
            raise FileNotFoundError(errno.ENOENT, "no longer a plain file") from error
        raise
    finally:
        os.close(handle)


@dataclass(frozen=True)
class RemoteFolder:
    """A prefix of an fsspec store. `url` is the root, without a slash at its end."""

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)
    pattern: str = ""
    metadata_url: str | None = None

    def _store(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.url, **self.options)  # fsspec keeps the connection
        return filesystem, root.rstrip("/")

    def listing(self) -> Iterator[Listed | Skipped]:
        sidecar = self.metadata_url or find_sidecar(self.url, self.options)
        pattern = Pattern(self.pattern)
        found = self._walk(pattern)
        yield from _with_metadata(found, load_sidecar(sidecar, self.options) if sidecar else None)

    def _walk(self, pattern: Pattern) -> Iterator[Listed | Skipped]:
        waiting = [("", pattern.start)]
        while waiting:
            folder, states = waiting.pop()
            below = []
            for name, entry in self._ls(folder):
                key = f"{folder}/{name}" if folder else name
                if _parts(key) is None:
                    yield Skipped(key, Skip.UNUSABLE_NAME)
                elif entry["type"] == "directory":
                    inside = pattern.enter(states, name)
                    if isinstance(inside, Skip):
                        yield Skipped(key, inside)
                    elif inside is not None:
                        below.append((key, inside))
                else:
                    verdict = pattern.file(states, name)
                    if key in SIDECAR_NAMES and not self.pattern:
                        yield Skipped(key, Skip.SIDECAR)
                    elif isinstance(verdict, Skip):
                        yield Skipped(key, verdict)
                    elif verdict:
                        yield Listed(key, int(entry["size"] or 0), _version(entry))
            waiting.extend(reversed(below))

    def _ls(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Names and details of one prefix, sorted by name. Empty if a prefix below the root is gone."""
        filesystem, root = self._store()
        path = f"{root}/{folder}" if folder else root

        def attempt() -> list[dict[str, Any]]:
            filesystem.invalidate_cache()
            return list(filesystem.ls(path, detail=True))

        try:
            found = _patiently("list", self.uri(folder), attempt)
        except NotFound:
            if not folder:
                raise
            return []
        here = path.strip("/")
        named = [(str(entry["name"]).strip("/"), entry) for entry in found]
        if not folder and [name for name, _ in named] == [here] and found[0]["type"] == "file":
            raise BadInput(f"{self.url} is an object: give its prefix, or a glob that matches it")
        return sorted(
            ((name[len(here) + 1 :], entry) for name, entry in named if name != here),  # not the marker
            key=lambda pair: pair[0],
        )

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        if _parts(key) is None:
            raise NotFound(f"{key!r} is not a key inside {self.url}")
        filesystem, root = self._store()

        def attempt() -> bytes:
            path = f"{root}/{key}"
            if max_bytes is None:
                return bytes(filesystem.cat_file(path))
            try:
                return bytes(filesystem.cat_file(path, start=0, end=max_bytes + 1))
            except FileNotFoundError:
                raise
            except Exception:
                if filesystem.info(path, refresh=True)["size"] == 0:  # S3: no range of nothing is valid
                    return b""
                raise

        return _patiently("read", self.uri(key), attempt)

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"


def _version(entry: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "generation"):
        if entry.get(name):
            return str(entry[name]).strip('"')
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        if entry.get(name):
            return f"{entry.get('size')}-{entry[name]}".replace(" ", "T")
    return f"{entry.get('size')}"


def _patiently(verb: str, where: str, operation: Callable[[], T]) -> T:
    """Retries what may pass; `NotFound` and `Unavailable` for what does not."""
    for pause in (*_PAUSES_S, None):
        try:
            return operation()
        except ReseenError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"there is no image {where} any more ({error.strerror or 'gone'})") from error
        except Exception as error:
            if pause is None or isinstance(error, PermissionError):
                raise Unavailable(
                    f"could not {verb} {where}: {type(error).__name__}: {error}; run the same command again "
                    "once the cause is mended"
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")
