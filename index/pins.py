"""Pins: who needs what until when, so that garbage collection takes nothing that is in use.

A build writes its pin before it writes or adopts anything, and names in it the folders that it works in.
Garbage collection writes its own pin, then reads everybody's. Each side writes before it looks: at least
one of the two sees the other. A build that sees a collection waits for its end (or the end of its lease).
Pins are the only objects that are ever rewritten.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ingest.errors import Corrupt, NotFound
from ingest.gallery import Gallery
from ingest.records import seal, unseal

BUILD_LEASE_S = 24 * 3600.0  # a build that was killed keeps its work this long
COLLECT_LEASE_S = 120.0  # a collection renews its lease while it works, and stops if it could not


@dataclass
class Pin:
    """One pin, held by this process.

    Attributes:
        kind: `build`, `read`, `tag` or `collect`.
        prefixes: folders and objects that must stay.
        generations: published generations that must stay, with all that they name.
        fits: digests of models by the digest of the work that fitted them, for the next run to resume.
    """

    gallery: Gallery
    kind: str
    lease_s: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    prefixes: set[str] = field(default_factory=set)
    generations: set[int] = field(default_factory=set)
    fits: dict[str, str] = field(default_factory=dict)
    expires: float = 0.0

    @property
    def path(self) -> str:
        return f"pins/{self.id}.json"

    def save(self) -> None:
        """Writes the pin and renews its lease."""
        self.expires = time.time() + self.lease_s
        record = {
            "kind": self.kind,
            "expires": int(self.expires),
            "prefixes": sorted(self.prefixes),
            "generations": sorted(self.generations),
            "fits": self.fits,
        }
        self.gallery.store.replace(self.path, seal(record))

    def keep(self, *prefixes: str) -> None:
        """Adds folders or objects that must stay; on the store before this returns."""
        if not self.prefixes.issuperset(prefixes):
            self.prefixes.update(prefixes)
            self.save()

    def keep_alive(self) -> None:
        """Renews the lease once a quarter of it has passed; cheap to call often."""
        if time.time() > self.expires - 0.75 * self.lease_s:
            self.save()

    def release(self) -> None:
        self.gallery.store.delete(self.path)


@contextmanager
def hold(gallery: Gallery, *prefixes: str, sleep: Callable[[float], None] = time.sleep) -> Iterator[Pin]:
    """A build's pin for a `with` statement; waits while a collection is running.

    It is released when the work ends well. A build that fails or is stopped leaves its pin, and with it
    its work, to the next run, until the lease ends.
    """
    pin = Pin(gallery, "build", BUILD_LEASE_S, prefixes=set(prefixes))
    pin.save()
    while collecting(gallery):
        sleep(0.2)
    yield pin
    pin.release()


def collecting(gallery: Gallery) -> bool:
    """Whether a garbage collection holds its lease now."""
    return any(pin["kind"] == "collect" for pin in live_pins(gallery).values())


@contextmanager
def collection_lease(gallery: Gallery) -> Iterator[Pin]:
    """The pin of a garbage collection. Several at once do no harm: what one removes, the other misses."""
    pin = Pin(gallery, "collect", COLLECT_LEASE_S)
    pin.save()
    try:
        yield pin
    finally:
        pin.release()


def read_pins(gallery: Gallery) -> dict[str, Mapping[str, Any]]:
    """All pins by path, expired ones too. One that vanishes while it is read is not there."""
    pins: dict[str, Mapping[str, Any]] = {}
    for info in gallery.store.listing("pins"):
        if not info.path.endswith(".json"):
            continue
        try:
            pins[info.path] = unseal(gallery.store.read(info.path), gallery.store.where(info.path))
        except NotFound:
            continue
        except Corrupt as error:
            raise Corrupt(f"{error} (or delete it, if no build, server or tag needs it)") from None
    return pins


def live_pins(gallery: Gallery) -> dict[str, Mapping[str, Any]]:
    """The pins whose lease has not ended, by path."""
    now = time.time()
    return {path: pin for path, pin in read_pins(gallery).items() if pin["expires"] > now}


def earlier_fits(gallery: Gallery) -> dict[str, str]:
    """Models that earlier, unfinished builds fitted, by the digest of the work."""
    return {work: model for pin in read_pins(gallery).values() for work, model in pin["fits"].items()}
