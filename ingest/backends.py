"""The kinds of store: a local folder, and any fsspec file system that honours create-only writes.

A backend does one thing once: it neither retries nor names its errors anew; `ingest.store.Store` does.
"""

import errno
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ingest.errors import BadInput
from ingest.storage_errors import is_missing_bucket, is_past_the_end, lost_the_race

UNFINISHED = ".unfinished-"

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_ONE_PUT = 5 * 2**30  # bytes: the most that S3 takes in one request


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing. `modified` is in seconds since 1970 (UTC), by the store's clock."""

    path: str
    size: int
    modified: float


class Backend(Protocol):
    """What a kind of store must do. Errors are its own, but for a missing object: `FileNotFoundError`."""

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes atomically unless something is there; `False` if something is."""

    def put_over(self, path: str, data: bytes) -> None:
        """Writes atomically, over what is there."""

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from `start` up to, not including, `end`; fewer or none where the object ends."""

    def info(self, path: str) -> ObjectInfo:
        """Size and age of an object. A folder is not an object."""

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every finished object below a folder, in no particular order."""

    def unfinished(self) -> Iterator[ObjectInfo]:
        """What interrupted writers left behind; never seen by `walk`."""

    def remove(self, path: str) -> None:
        """Removes an object; no error if there is none."""


class LocalBackend:
    """A folder. A write goes to a temporary file beside its place, is flushed, and then gets its name.

    Creating links the name, which fails if it is taken; replacing renames. A writer that is killed leaves
    its temporary file, which no reader looks at and `unfinished` finds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_new(self, path: str, data: bytes) -> bool:
        target = self.root / path
        if target.exists():
            _flush_folder(target.parent)  # its writer may have died before it did
            return False
        temporary = self._write_temporary(target, data)
        try:
            created = _link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(target.parent)
        return created

    def put_over(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = self._write_temporary(target, data)
        try:
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        _make_folder(target.parent)
        temporary = target.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            with (self.root / path).open("rb") as file:
                file.seek(start or 0)
                return file.read(-1 if end is None else max(0, end - (start or 0)))
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error

    def info(self, path: str) -> ObjectInfo:
        try:
            status = (self.root / path).stat()
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return ObjectInfo(path, status.st_size, status.st_mtime)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._files(prefix, unfinished=False)

    def unfinished(self) -> Iterator[ObjectInfo]:
        return self._files("", unfinished=True)

    def _files(self, prefix: str, unfinished: bool) -> Iterator[ObjectInfo]:
        for folder, _, names in os.walk(self.root / prefix, onerror=_unless_gone):
            for name in names:
                if name.startswith(UNFINISHED) != unfinished:
                    continue
                file = Path(folder) / name
                try:
                    status = file.stat()
                except FileNotFoundError:  # removed since it was listed
                    continue
                yield ObjectInfo(file.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> bool:
    """Gives a finished file its name; False if the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # NFS may have done it and lost the reply; then both names are one file.
        return temporary.stat().st_nlink > 1
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise BadInput(
                f"the file system of {target.parent} has no hard links ({error.strerror}), and writing "
                "without overwriting needs them; put the gallery on another disk or on object storage"
            ) from error
        raise
    return True


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, flushed so that they outlive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder must be", str(folder)) from error
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def _unless_gone(error: OSError) -> None:
    """Passes over folders that are not there; any other trouble would make a listing incomplete."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


_memory_lock = threading.Lock()


class FsspecBackend:
    """Any other fsspec file system whose `pipe_file` honours `mode="create"` (s3, gs, az, memory)."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self.filesystem = filesystem
        self.root = root.strip("/")
        protocols = protocols_of(filesystem)
        self._in_memory = "memory" in protocols
        self._put_options: dict[str, Any] = {}
        self._get_options: dict[str, Any] = {}
        if "s3" in protocols:
            # One request a write: it leaves nothing behind when it is stopped, and a reply that is lost
            # cannot be taken for a missing upload. One request a read: s3fs would ask for the size first.
            self._put_options = {"chunksize": _ONE_PUT}
            self._get_options = {"max_concurrency": 1}
            filesystem.retries = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecBackend, (self.filesystem, self.root)

    def _full(self, path: str) -> str:
        return "/".join(part for part in (self.root, path) if part)

    def put_new(self, path: str, data: bytes) -> bool:
        try:
            if self._in_memory:  # looks and writes in two steps, so threads must take turns
                with _memory_lock:
                    self.filesystem.pipe_file(self._full(path), data, mode="create")
            else:
                self.filesystem.pipe_file(self._full(path), data, mode="create", **self._put_options)
        except Exception as error:
            if not lost_the_race(error):
                raise
            return self._is_ours(path, data)
        return True

    def _is_ours(self, path: str, data: bytes) -> bool:
        """Whether a lost race was lost to ourselves.

        HTTP clients send a write again by themselves when its reply was lost (aiohttp once, whatever s3fs
        is told; gcsfs and adlfs several times), and then find their own object.
        """
        try:
            return not self._in_memory and self.get(path) == data
        except FileNotFoundError:  # deleted in between
            return False

    def put_over(self, path: str, data: bytes) -> None:
        self.filesystem.pipe_file(self._full(path), data, mode="overwrite", **self._put_options)

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            data = self.filesystem.cat_file(self._full(path), start=start, end=end, **self._get_options)
        except Exception as error:
            if start is not None and is_past_the_end(error):
                return b""
            raise
        if end is not None and len(data) > end - (start or 0):
            raise OSError(errno.EIO, "the store answered a ranged read with more than was asked for")
        return bytes(data)

    def info(self, path: str) -> ObjectInfo:
        self.filesystem.invalidate_cache()
        found = self.filesystem.info(self._full(path))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return ObjectInfo(path, int(found["size"]), _modified(found))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.find(self._full(prefix), detail=True)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise
            return
        finally:
            self.filesystem.invalidate_cache()  # a listing of millions is not kept
        folder = f"{prefix}/" if prefix else ""
        for entry in found.values():
            path = str(entry["name"]).strip("/").removeprefix(self.root).lstrip("/")
            # A file of the folder's own name, and the empty objects that consoles make for folders.
            if entry["type"] == "file" and path.startswith(folder) and not str(entry["name"]).endswith("/"):
                yield ObjectInfo(path, int(entry["size"]), _modified(entry))

    def unfinished(self) -> Iterator[ObjectInfo]:
        return iter(())  # an upload that was stopped never becomes an object

    def remove(self, path: str) -> None:
        try:
            self.filesystem.rm_file(self._full(path))
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise


def _modified(entry: dict[str, Any]) -> float:
    for name in ("LastModified", "last_modified", "updated", "mtime", "modified", "created"):
        when = entry.get(name)
        if isinstance(when, int | float):
            return float(when)
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, str) and when:
            return datetime.fromisoformat(when).timestamp()
    return time.time()  # unknown: as young as can be, so that nothing is collected by mistake


def protocols_of(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def open_backend(url: str, options: dict[str, Any]) -> Backend:
    """The backend for a URL or a folder; `BadInput` if no installed file system knows it."""
    import fsspec

    if "\0" in url or not url:
        raise BadInput(f"{url!r} is no store: use a folder or an s3://, gs:// or az:// URL")
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **_one_attempt(url, options))
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"cannot open {url!r}: {error}; use a folder or an s3://, gs:// or az:// URL "
            "(extras: reseen[s3], reseen[gcs], reseen[azure])"
        ) from error
    if "file" in protocols_of(filesystem):
        return LocalBackend(Path(root))
    return FsspecBackend(filesystem, root)


def _one_attempt(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options that keep s3fs and botocore from retrying, which `Store` does: 5 x 5 x 5 attempts else."""
    if not url.startswith(("s3://", "s3a://")):
        return options
    import fsspec

    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    config = {"retries": {"total_max_attempts": 1}, **configured, **options.get("config_kwargs", {})}
    return {"use_listings_cache": False, **options, "config_kwargs": config}
