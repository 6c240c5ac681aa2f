"""Garbage collection: removes what nothing needs and nobody may be about to need.

Kept are all commits, what the newest catalogue and the newest generations name, what pins name, and
everything younger than the grace period. See `index.pins` for why a build in progress loses nothing.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

from index.pins import COLLECT_LEASE_S, Pin, collection_lease, live_pins, read_pins
from index.reach import objects_of_catalogue, objects_of_generation, objects_of_parts, readable_generations
from ingest.catalogue import read_catalogue
from ingest.errors import Unavailable
from ingest.gallery import Gallery
from ingest.store import ObjectInfo

# Manifests first: a generation is then gone as a whole, whenever a collection is stopped.
COLLECTED_FOLDERS = ("manifests", "shards", "encodings", "features", "models", "parts")
DEFAULT_GRACE_S = 24 * 3600.0


@dataclass
class CollectReport:
    """What a collection removed (or would remove), by folder, and what it kept."""

    removed: Counter[str] = field(default_factory=Counter)
    removed_bytes: int = 0
    kept: int = 0
    kept_young: int = 0
    dry_run: bool = False


def collect(
    gallery: Gallery, keep: int = 10, grace_s: float = DEFAULT_GRACE_S, dry_run: bool = False
) -> CollectReport:
    """Collects garbage.

    Args:
        keep: newest generations to keep with all that they name; at least 1.
        grace_s: seconds below which an object is kept whatever names it.
        dry_run: counts only.

    Raises:
        Unavailable: the lease could not be renewed in time; run again.
    """
    report = CollectReport(dry_run=dry_run)
    with collection_lease(gallery) as lease:
        candidates = [info for folder in COLLECTED_FOLDERS for info in gallery.store.listing(folder)]
        candidates += gallery.store.unfinished()
        # What a probe left that was stopped while it tried the store out.
        candidates += [info for info in gallery.store.listing("pins") if not info.path.endswith(".json")]
        needed, prefixes = _needed(gallery, lease, max(1, keep))
        oldest = time.time() - grace_s
        for info in candidates:
            if info.path in needed or info.path.startswith(prefixes):
                report.kept += 1
            elif info.modified > oldest:
                report.kept_young += 1
            else:
                _remove(gallery, lease, info, report)
        for path in _expired_pins(gallery, grace_s):
            _remove(gallery, lease, ObjectInfo(path, 0, 0.0), report)
    return report


def _needed(gallery: Gallery, lease: Pin, keep: int) -> tuple[set[str], tuple[str, ...]]:
    """Objects by path, and folders by prefix, that must stay. Read after the candidates were listed."""
    pins = live_pins(gallery).values()
    numbers = gallery.generations.numbers()[-keep:]
    pinned = {number for pin in pins for number in pin["generations"]}
    newest = gallery.catalogue.newest()
    needed = objects_of_catalogue(gallery, newest)
    catalogue = read_catalogue(gallery, newest)
    for generation in readable_generations(gallery, sorted(pinned.union(numbers))):
        _renew(lease)
        needed |= objects_of_generation(gallery, generation)
        needed |= objects_of_parts(generation, catalogue)  # what an ingest extracted for the next build
    return needed, tuple(sorted({prefix for pin in pins for prefix in pin["prefixes"]}))


def _expired_pins(gallery: Gallery, grace_s: float) -> list[str]:
    now = time.time()
    return [path for path, pin in read_pins(gallery).items() if pin["expires"] + grace_s < now]


def _remove(gallery: Gallery, lease: Pin, info: ObjectInfo, report: CollectReport) -> None:
    if not report.dry_run:
        _renew(lease)
        gallery.store.delete(info.path)
    report.removed[info.path.partition("/")[0]] += 1
    report.removed_bytes += info.size


def _renew(lease: Pin) -> None:
    """Keeps the lease alive; stops the collection if others may already believe that it has ended.

    Half of the lease is a margin for clocks that differ and for a delete that hangs.
    """
    if time.time() > lease.expires - COLLECT_LEASE_S / 2:
        url = lease.gallery.store.url
        raise Unavailable(f"the lease of this collection on {url} ran out, so it stopped; run it again")
    lease.keep_alive()
