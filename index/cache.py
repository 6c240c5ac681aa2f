"""A local, content-addressed copy of objects that were read: what a second opening need not fetch.

A file is named by the sha256 that its manifest states, and is checked against it on every read. It is
put in place by a rename, so that readers see whole files only. Any file may be deleted at any time.
"""

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import Corrupt
from ingest.store import Store
from ingest.tables import ObjectRef, check_object


@dataclass(frozen=True)
class Cache:
    """A folder of objects by sha256, of at most `limit_bytes`; the least recently read go first."""

    folder: Path
    limit_bytes: int = 20 * 2**30

    def read(self, store: Store, ref: ObjectRef) -> bytes:
        """A whole object, from here if it is here and intact, else from the store; always checked."""
        file = self.folder / ref.sha256[:2] / ref.sha256
        try:
            data = file.read_bytes()
            check_object(data, ref, store)
        except (OSError, Corrupt):  # not here, not ours to read, or not what it was
            pass
        else:
            with suppress(OSError):  # somebody else's file in a shared cache
                os.utime(file)
            return data
        data = store.read(ref.name)
        check_object(data, ref, store)
        self._put(file, data)
        return data

    def _put(self, file: Path, data: bytes) -> None:
        """Keeps a copy if there is room for one; a full or read-only disk costs time, never the answer."""
        temporary = file.with_name(f".{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(file)
            self._shrink()
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _shrink(self) -> None:
        files = [(path.stat(), path) for path in self.folder.glob("??/*") if path.is_file()]
        excess = sum(status.st_size for status, _ in files) - self.limit_bytes
        for status, path in sorted(files, key=lambda pair: pair[0].st_atime):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= status.st_size
