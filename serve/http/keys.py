"""API keys while a server runs: a caller's text is checked, and the file of keys followed."""

import base64
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ingest.errors import BadInput, NotFound
from serve.http.key_file import Key, read_keys

_LOG = logging.getLogger("reseen.keys")
_KEY = re.compile(r"reseen_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NO_KEY = hashlib.sha256(b"").hexdigest()  # what the secret of an unknown id is compared with
_LOOK_EVERY_S = 1.0


class _Seen(NamedTuple):
    """What tells one state of a file from another without reading it."""

    changed_ns: int  # of anything: who may read it, too
    size: int
    inode: int


class Keys:
    """The keys of a file, read again when the file changes. Thread-safe.

    A file that cannot be read any more, or is damaged, is reported once in the log, and the keys read before
    stay in force: a slip while editing it locks nobody out. (To revoke all keys, write a file without keys.)

    Args:
        look_every_s: how often the file is looked at, at most.
        clock, monotonic: seconds since 1970, for expiry, and of a steady clock.

    Raises:
        NotFound, BadInput: the file is not there, or not a file of keys.
    """

    def __init__(
        self,
        path: Path,
        look_every_s: float = _LOOK_EVERY_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._look_every_s, self._clock, self._monotonic = look_every_s, clock, monotonic
        self._lock = threading.Lock()
        self._seen = _look(path)
        self._by_id = _by_id(path)
        self._looked = monotonic()
        self._trouble = ""  # what was reported last

    def check(self, text: str) -> Key | None:
        """The key that a caller's text is, unless it is unknown, wrong or has expired.

        Every well-formed text costs the same, whether its id is known or not.
        """
        self._follow()
        matched = _KEY.fullmatch(text)
        if matched is None:
            return None
        key = self._by_id.get(matched[1])
        given = hashlib.sha256(base64.urlsafe_b64decode(matched[2] + "=")).hexdigest()
        same = hmac.compare_digest(given, _NO_KEY if key is None else key.sha256)
        return key if key is not None and same and key.valid(self._clock()) else None

    def _follow(self) -> None:
        if self._monotonic() - self._looked < self._look_every_s:
            return
        with self._lock:
            self._looked = self._monotonic()
            seen = _look(self.path)
            if seen == self._seen:
                return
            self._seen = seen  # before reading: what is written meanwhile is seen at the next look
            try:
                self._by_id = _by_id(self.path)
            except (BadInput, NotFound) as error:
                self._seen = None  # tried again: a disk that fails for a moment changes nothing of the file
                if str(error) != self._trouble:
                    _LOG.error("the keys read before stay in force: %s", error)
                self._trouble = str(error)
            else:
                self._trouble = ""
                _LOG.info("read %d keys", len(self._by_id))


def _look(path: Path) -> _Seen | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Seen(status.st_ctime_ns, status.st_size, status.st_ino)


def _by_id(path: Path) -> dict[str, Key]:
    return {key.id: key for key in read_keys(path)}
