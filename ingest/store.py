"""Object storage: create-only writes, whole and ranged reads, listings, on any fsspec URL.

A `Store` is one prefix. What differs between stores lies behind a small `Backend`; what callers can rely
on is here:

- `create` is put-if-absent and atomic: readers see the whole object or none. Losing the race is an answer
  (`False`), not an error. A reply that got lost is settled by reading the object back.
- Transient failures are retried with growing pauses, then raised as `Unavailable`.
- Paths are relative to the store's root, with forward slashes.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ingest.backends import UNFINISHED, Backend, FsspecBackend, LocalBackend, ObjectInfo, open_backend
from ingest.errors import BadInput, NotFound, ReseenError, Unavailable
from ingest.storage_errors import advice, is_missing_bucket, may_have_written, may_pass

__all__ = [
    "Backend",
    "FsspecBackend",
    "LocalBackend",
    "ObjectInfo",
    "Store",
    "probe_create_only",
]

T = TypeVar("T")

PAUSES_S = (0.1, 0.4, 1.5, 4.0)
"""Seconds between attempts: five attempts, and six seconds of waiting before a store counts as gone."""

_BUGS = (TypeError, AttributeError, NameError, MemoryError)  # not the store's: passed on as they are


@dataclass(frozen=True)
class Store:
    """One prefix of a store. Cheap to make and to pickle: connections open on first use.

    Args:
        url: a folder, or a URL that fsspec knows (`s3://bucket/prefix`). A relative folder is made
            absolute, so that a worker with another working folder opens the same one.
        options: what the fsspec file system takes (endpoint, keys); better given by the environment
            (`FSSPEC_S3_ENDPOINT_URL` and so on), since they travel with every pickle.
        backend: in place of the one the URL names, for tests.
        pauses: seconds to wait between attempts; one attempt more than there are pauses.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)  # may hold secrets
    backend: Backend = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    pauses: tuple[float, ...] = field(default=PAUSES_S, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = self.backend is not None
        object.__setattr__(self, "_given", given)
        if not given:
            object.__setattr__(self, "backend", open_backend(os.fspath(self.url), self.options))
        if isinstance(self.backend, LocalBackend) and "://" not in os.fspath(self.url):
            object.__setattr__(self, "url", str(self.backend.root))

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.__dict__["_given"]
        return Store, (self.url, self.options, self.backend if given else None, self.pauses)

    def create(self, path: str, data: bytes) -> bool:
        """Puts an object unless one is there, atomically.

        Where the reply to an attempt was lost, or may have been, what is there decides: the same bytes
        count as written by this call. So a caller that must know whether it was *the* writer (a commit)
        puts something of its own into the bytes; two writers of equal bytes may both be told True.

        Returns:
            True if this call wrote it, False if somebody else's object is there.
        """
        uncertain = False

        def attempt() -> bool:
            nonlocal uncertain
            try:
                return self.backend.put_new(path, data)
            except Exception as error:
                uncertain = uncertain or may_have_written(error)
                raise

        created = self._retry("write", _checked(path), attempt)
        if created or not uncertain:
            return created
        try:
            return self.read(path) == data
        except NotFound:  # deleted in between
            return False

    def replace(self, path: str, data: bytes) -> None:
        """Writes over an object, atomically. Only pins are ever rewritten."""
        self._retry("write", _checked(path), lambda: self.backend.put_over(path, data))

    def read(self, path: str) -> bytes:
        """A whole object; `NotFound` if there is none."""
        return self._retry("read", _checked(path), lambda: self.backend.get(path))

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only where the object ends, none from its end on.

        Asking for no bytes asks the store nothing, so it does not tell whether the object exists.
        """
        _checked(path)
        if offset < 0 or length < 0:
            raise BadInput(f"no bytes {offset} to {offset + length} in {self.where(path)}: count from 0")
        if length == 0:
            return b""
        return self._retry("read", path, lambda: self.backend.get(path, offset, offset + length))

    def info(self, path: str) -> ObjectInfo:
        """Size and age of an object; `NotFound` if there is none."""
        return self._retry("look up", _checked(path), lambda: self.backend.info(path))

    def exists(self, path: str) -> bool:
        try:
            self.info(path)
        except NotFound:
            return False
        return True

    def listing(self, prefix: str) -> list[ObjectInfo]:
        """Every object below a folder, sorted by path; empty if the folder does not exist."""
        folder = prefix.removesuffix("/")
        if folder:
            _checked(folder)
        found = self._retry("list", folder, lambda: list(self.backend.walk(folder)))
        return sorted(found, key=lambda info: info.path)

    def unfinished(self) -> list[ObjectInfo]:
        """What interrupted writers left behind, for garbage collection: `delete` takes their paths."""
        return self._retry("list", "", lambda: list(self.backend.unfinished()))

    def delete(self, path: str) -> None:
        """Removes an object; no error if it is gone already."""
        self._retry("delete", _checked(path, may_be_unfinished=True), lambda: self.backend.remove(path))

    def where(self, path: str) -> str:
        """An object's full URL, for messages."""
        return f"{self.url.rstrip('/')}/{path}"

    def _retry(self, verb: str, path: str, operation: Callable[[], T]) -> T:
        for pause in (*self.pauses, None):
            try:
                return operation()
            except (ReseenError, *_BUGS):
                raise
            except FileNotFoundError as error:
                raise self._not_found(verb, path, error) from error
            except Exception as error:
                if pause is None or not may_pass(error):
                    raise Unavailable(
                        f"could not {verb} {self.where(path)}: {_reason(error)}; {advice(error)}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _not_found(self, verb: str, path: str, error: FileNotFoundError) -> NotFound:
        if is_missing_bucket(error) or verb in ("write", "list"):
            return NotFound(
                f"could not {verb} {self.where(path)}: the bucket or container does not exist; make it, "
                "or correct its name"
            )
        return NotFound(f"there is no {self.where(path)}")


def _checked(path: str, may_be_unfinished: bool = False) -> str:
    """A path that stays inside the store and means the same on every kind of store, or `BadInput`."""
    parts = path.split("/")
    if "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise BadInput(
            f"{path!r} is no object's path: it must be relative, without '.', '..', empty parts and NUL"
        )
    if parts[-1].startswith(UNFINISHED) and not may_be_unfinished:
        raise BadInput(f"{path!r} is no object's path: {UNFINISHED}* are the files of interrupted writers")
    return path


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def probe_create_only(store: Store) -> None:
    """Refuses a store that would overwrite what a create-only write must leave alone.

    Raises:
        BadInput: the second of two create-only writes was not turned away.
    """
    path = f"pins/probe-{uuid.uuid4().hex}"
    first = store.create(path, b"first")
    try:
        second = store.create(path, b"second")
        kept = store.read(path)
    finally:
        store.delete(path)
    if not first or second or kept != b"first":
        raise BadInput(
            f"{store.url} does not honour create-only writes (If-None-Match), so two writers could "
            "overwrite each other's commits; use a store that does (S3, GCS, Azure, SeaweedFS, a local disk)"
        )
