"""Numbered commits: a folder of small sealed records, each written once, the highest number in force.

Creating number n + 1 is the commit. Two writers that read the same n race for one name; the store lets
one of them win and the other looks again. Records are never deleted, so that a number is never used twice
and a writer that slept for a week cannot slip into a gap.
"""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from ingest.errors import Corrupt, NotFound
from ingest.records import seal, unseal
from ingest.store import Store


@dataclass(frozen=True)
class CommitLog:
    """One folder of numbered commits, such as `catalogue` or `generations`."""

    store: Store
    folder: str

    def path(self, number: int) -> str:
        return f"{self.folder}/{number:08d}.json"

    def numbers(self) -> list[int]:
        """The numbers of all commits, ascending."""
        names = (info.path.rpartition("/")[2] for info in self.store.listing(self.folder))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def newest(self) -> int:
        """The number in force; 0 before the first commit."""
        return max(self.numbers(), default=0)

    def read(self, number: int) -> dict[str, Any]:
        """One record; `NotFound`, or `Corrupt` by name unless its bytes and its number are as written."""
        path = self.path(number)
        try:
            record = unseal(self.store.read(path), self.store.where(path))
        except NotFound:
            have = self.numbers()
            raise NotFound(
                f"{self.store.url} has no {path}; "
                + (f"it has {have[0]} to {have[-1]}" if have else f"nothing in {self.folder}/ yet")
            ) from None
        held = f"{record.get('log')}/{record.get('number')}"
        if held != f"{self.folder}/{number}":
            raise Corrupt(
                f"{self.store.where(path)} holds {held}: another commit was copied over it; "
                "restore it from a copy"
            )
        return record

    def append(self, number: int, record: dict[str, Any]) -> bool:
        """Commits a record as `number`; False if another writer was first."""
        own = {"log": self.folder, "number": number, "writer": writer()}
        return self.store.create(self.path(number), seal(own | record))


def writer() -> dict[str, Any]:
    """Who writes and when: kept apart in every record, so that equal work compares equal without it."""
    return {"id": uuid.uuid4().hex, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
