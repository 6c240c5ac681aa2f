"""Uploaded images, kept for a while under the sha256 of their bytes, so that a search can name them again.

They lie in a store of their own: a folder by default; any fsspec URL where several servers share them. What
was not used for longest goes first when space runs out. A use is made known to the other servers by writing
the object again, rarely: the store's times are the only thing that they share.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ingest.errors import BadInput, NotFound, OverBudget
from ingest.records import sha256
from ingest.store import Store
from serve.metrics import Metrics, NoMetrics

_FOLDER = "uploads"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RENEW_SHARE = 4  # a use is written down when the last one that was is older than max_age / 4
_LIST_EVERY_S = 10.0


class UploadsOff(NotFound):
    """This server keeps no uploads."""

    def __init__(self) -> None:
        super().__init__("this server keeps no uploads: post the image with the search, to /v1/search/upload")


@dataclass
class _Kept:
    size: int
    used: float  # seconds since 1970, as far as this server knows
    written: float  # the same, by the store's clock


class Uploads:
    """Keeps uploads up to a total size and an age. Thread-safe; calls block on the store.

    Args:
        store: they lie in its folder `uploads`. None, or `max_bytes` 0: nothing is kept.
        max_bytes: of all uploads together. Servers that share a store learn of each other's uploads with a
            delay of ten seconds, and may exceed this by what came in meanwhile.
        max_age_s: how long an upload stays after its last use.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store | None,
        max_bytes: int = 2**30,
        max_age_s: float = 3_600.0,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_age_s, self._max_bytes = max_age_s, max_bytes
        self._store = store if max_bytes else None
        self._metrics, self._clock = metrics or NoMetrics(), clock
        self._kept: dict[str, _Kept] = {}
        self._listed = float("-inf")
        self._lock = threading.Lock()

    @property
    def on(self) -> bool:
        return self._store is not None

    def put(self, data: bytes) -> str:
        """Keeps some bytes; returns their digest.

        Raises:
            UploadsOff: nothing is kept here.
            OverBudget: they are more than all uploads together may be.
            Unavailable: the store did not answer.
        """
        store = self._opened()
        if len(data) > self._max_bytes:
            raise OverBudget(f"{len(data)} bytes are more than this server keeps ({self._max_bytes})")
        digest = sha256(data)
        self._list(store)
        if not (self._known(digest) and store.exists(_path(digest))):  # another server may have let it go
            self._make_room(store, digest, len(data))
            try:
                store.create(_path(digest), data)
            except BaseException:
                self._forget(digest)
                raise
        self._renew(store, digest, data)
        self._tell()
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes under a digest, checked against it; this counts as a use.

        Raises:
            BadInput: it is no digest.
            NotFound: they were never here, or are gone again; or they are damaged, and are taken away.
            Unavailable: the store did not answer.
        """
        store = self._opened()
        if _DIGEST.fullmatch(digest) is None:
            raise BadInput("an upload's digest is 64 hexadecimal digits")
        missing = NotFound(f"there is no upload {digest} (any more): upload the image again")
        now = self._clock()
        with self._lock:
            kept = self._kept.get(digest)
        if kept is not None and now - kept.used > self.max_age_s:
            self._list(store, at_once=True)  # another server may have used it
            with self._lock:
                kept = self._kept.get(digest)
            if kept is None or now - kept.used > self.max_age_s:
                raise missing
        try:
            if kept is None:
                info = store.info(_path(digest))
                if now - info.modified > self.max_age_s:
                    raise missing
                kept = _Kept(info.size, now, info.modified)
            data = store.read(_path(digest))
        except NotFound:
            self._forget(digest)
            raise missing from None
        if sha256(data) != digest:
            store.delete(_path(digest))
            self._forget(digest)
            raise missing
        with self._lock:
            self._kept.setdefault(digest, kept).used = now
        self._renew(store, digest, data)
        return data

    def trim(self) -> None:
        """Removes what is too old, and what is too much. `put` does it too; this is for quiet times."""
        store = self._opened()
        self._list(store, at_once=True)
        self._make_room(store)
        for info in store.unfinished():
            if info.path.startswith(f"{_FOLDER}/") and self._clock() - info.modified > self.max_age_s:
                store.delete(info.path)
        self._tell()

    def _opened(self) -> Store:
        if self._store is None:
            raise UploadsOff
        return self._store

    def _list(self, store: Store, at_once: bool = False) -> None:
        """Takes over what the store has: the uploads of other servers, and uses that they wrote down."""
        now = self._clock()
        with self._lock:
            if not at_once and now - self._listed < _LIST_EVERY_S:
                return
            self._listed = now
        found = {info.path: info for info in store.listing(_FOLDER)}
        with self._lock:
            before, self._kept = self._kept, {}
            for path, info in found.items():
                digest = path.rpartition("/")[2]
                if _DIGEST.fullmatch(digest) and path == _path(digest):
                    known = before.get(digest)
                    used = info.modified if known is None else max(known.used, info.modified)
                    self._kept[digest] = _Kept(info.size, used, info.modified)
            for digest, kept in before.items():
                # Put while the listing was made; at worst it counts a little longer than it is there.
                if kept.written >= now - _LIST_EVERY_S and digest not in self._kept:
                    self._kept[digest] = kept

    def _known(self, digest: str) -> bool:
        """Whether it is kept already, which counts as a use: so it is the last that would be taken away."""
        with self._lock:
            kept = self._kept.get(digest)
            if kept is not None:
                kept.used = self._clock()
            return kept is not None

    def _make_room(self, store: Store, digest: str = "", size: int = 0) -> None:
        """Takes away what must go, and enters a new upload."""
        doomed = []
        with self._lock:
            now, total = self._clock(), sum(kept.size for kept in self._kept.values())
            for old, kept in sorted(self._kept.items(), key=lambda each: each[1].used):
                if total + size <= self._max_bytes and now - kept.used <= self.max_age_s:
                    break
                doomed.append(old)
                total -= kept.size
                del self._kept[old]
            if digest:
                self._kept[digest] = _Kept(size, now, now)
        for old in doomed:
            with self._lock:
                again = old in self._kept  # somebody has just uploaded it once more
            if not again:
                store.delete(_path(old))

    def _renew(self, store: Store, digest: str, data: bytes) -> None:
        now = self._clock()
        with self._lock:
            kept = self._kept.get(digest)
            if kept is None or now - kept.written < self.max_age_s / _RENEW_SHARE:
                return
            kept.written = now
        store.replace(_path(digest), data)

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._kept.pop(digest, None)

    def _tell(self) -> None:
        with self._lock:
            total = sum(kept.size for kept in self._kept.values())
        self._metrics.gauge("upload_bytes", total)


def _path(digest: str) -> str:
    return f"{_FOLDER}/{digest[:2]}/{digest}"
