"""Pins: who needs what until when, so that garbage collection takes nothing that is in use.

A build writes its pin before it writes or adopts anything, and names in it the folders that it works in.
Garbage collection writes its own pin, then reads everybody's. Each side writes before it looks: at least
one of the two sees the other. A build that sees a collection waits for its end (or the end of its lease).
Pins are the only objects that are ever rewritten.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ingest.errors import Corrupt, NotFound
from ingest.gallery import Gallery
from ingest.progress import Progress, Stage
from ingest.records import seal, unseal

BUILD_LEASE_S = 24 * 3600.0  # a build that was killed keeps its work this long
COLLECT_LEASE_S = 120.0  # a collection renews its lease while it works, and stops if it could not


@dataclass
class Pin:
    """One pin, held by this process.

    Attributes:
        kind: `build` or `collect`.
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
            "pin": self.id,
            "kind": self.kind,
            "expires": int(self.expires),
            "prefixes": sorted(self.prefixes),
            "generations": sorted(self.generations),
            "fits": self.fits,
        }
        self.gallery.store.replace(self.path, seal(record))

    def keep(self, *prefixes: str, generations: Iterable[int] = ()) -> None:
        """Adds folders, objects or generations that must stay, and waits for the end of a collection.

        What a collection that did not see the names removes is removed before this returns: what is there
        afterwards stays.
        """
        if not (self.prefixes.issuperset(prefixes) and self.generations.issuperset(generations)):
            self.prefixes.update(prefixes)
            self.generations.update(generations)
            self.save()
            self.wait()

    def wait(self) -> None:
        """Returns when no collection is running that may have looked before this pin was saved."""
        while collecting(self.gallery):
            time.sleep(0.2)
            self.keep_alive()

    def keep_alive(self) -> None:
        """Renews the lease once a quarter of it has passed; cheap to call often."""
        if time.time() > self.expires - 0.75 * self.lease_s:
            self.save()

    def release(self) -> None:
        self.gallery.store.delete(self.path)


@contextmanager
def hold(gallery: Gallery, *prefixes: str, resumes: bool = False) -> Iterator[Pin]:
    """A pin for a `with` statement; waits while a collection is running.

    Args:
        resumes: what fails leaves its pin, and with it its work and its fits, to the next run, until the
            lease ends. A process that is stopped always does.
    """
    pin = Pin(gallery, "build", BUILD_LEASE_S, prefixes=set(prefixes))
    pin.save()
    pin.wait()
    try:
        yield pin
    except Exception:
        if not resumes:
            pin.release()
        raise
    pin.release()


class Renewing:
    """Progress that keeps a pin alive: a stage may take days, and a pin's lease ends."""

    def __init__(self, progress: Progress, pin: Pin) -> None:
        self.progress = progress
        self.pin = pin

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "images") -> Iterator[Stage]:
        self.pin.keep_alive()
        with self.progress.stage(name, total, unit) as stage:
            yield _RenewingStage(stage, self.pin)


@dataclass(frozen=True)
class _RenewingStage:
    inner: Stage
    pin: Pin

    def advance(self, n: int = 1, rejects: int = 0) -> None:
        self.inner.advance(n, rejects)
        self.pin.keep_alive()


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
            pins[info.path] = _read_pin(gallery, info.path)
        except NotFound:
            continue
        except Corrupt as error:
            raise Corrupt(f"{error} (or delete it, if no build, server or tag needs it)") from None
    return pins


def _read_pin(gallery: Gallery, path: str) -> Mapping[str, Any]:
    where = gallery.store.where(path)
    pin = unseal(gallery.store.read(path), where)
    if path != f"pins/{pin.get('pin')}.json":
        raise Corrupt(
            f"{where} holds pin {pin.get('pin')}: it was copied over this one; restore it from a copy"
        )
    return pin


def live_pins(gallery: Gallery) -> dict[str, Mapping[str, Any]]:
    """The pins whose lease has not ended, by path."""
    now = time.time()
    return {path: pin for path, pin in read_pins(gallery).items() if pin["expires"] > now}


def earlier_fits(gallery: Gallery) -> dict[str, str]:
    """Models that earlier, unfinished builds fitted, by the digest of the work."""
    return {work: model for pin in read_pins(gallery).values() for work, model in pin["fits"].items()}
