"""Garbage collection: removes what nothing needs and nobody may be about to need.

Kept are all commits, what the newest catalogue and the newest generations name, what pins name, features that
no generation was built from yet, and everything younger than the grace period. See `index.pins` for why a
build in progress loses nothing.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice

from index.generation import read_generation
from index.pins import COLLECT_LEASE_S, Pin, collection_lease, live_pins, read_pins
from index.reach import objects_of_catalogue, objects_of_generation, objects_of_parts
from ingest.catalogue import Catalogue, read_catalogue
from ingest.errors import NotFound, Unavailable
from ingest.gallery import Gallery, features_path
from ingest.store import ObjectInfo

DELETERS = 16  # objects deleted at once
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
    # Listed before the lease: what is written or named from now on is no candidate, or is seen as needed.
    candidates = [info for folder in COLLECTED_FOLDERS for info in gallery.store.listing(folder)]
    candidates += gallery.store.unfinished()
    # What a probe left that was stopped while it tried the store out.
    candidates += [info for info in gallery.store.listing("pins") if not info.path.endswith(".json")]
    oldest = time.time() - grace_s
    with collection_lease(gallery) as lease:
        needed = _needed(gallery, lease, max(1, keep), oldest)
        doomed = []
        for info in candidates:
            if needed.has(info.path):
                report.kept += 1
            elif info.modified > oldest:
                report.kept_young += 1
            else:
                doomed.append(info)
        doomed += [ObjectInfo(path, 0, 0.0) for path in _expired_pins(gallery, grace_s)]
        _remove(gallery, lease, doomed, report)
    return report


@dataclass
class _Needed:
    """What must stay: objects by path, folders by prefix, features and vectors that await a first build."""

    paths: set[str] = field(default_factory=set)
    prefixes: tuple[str, ...] = ()
    parts: set[str] = field(default_factory=set)  # of the newest catalogue
    built: set[str] = field(default_factory=set)  # digests of features and encodings that were built from

    def has(self, path: str) -> bool:
        if path in self.paths or path.startswith(self.prefixes):
            return True
        folder, _, rest = path.partition("/")
        if folder not in ("features", "encodings"):
            return False
        digest, _, name = rest.partition("/")
        part = name.partition(".")[0]
        # A blob stays with its table; what no generation was built from yet is work, not garbage.
        awaits = digest not in self.built and part in self.parts
        return awaits or (features_path(digest, part) in self.paths and folder == "features")


def _needed(gallery: Gallery, lease: Pin, keep: int, oldest: float) -> _Needed:
    """Read after the candidates were listed and the lease was taken."""
    pins = live_pins(gallery).values()
    catalogue = read_catalogue(gallery)
    prefixes = {prefix for pin in pins for prefix in pin["prefixes"]}
    if any(pin["kind"] == "build" for pin in pins):
        prefixes.add("models/")  # a build can name a model only once it is fitted, and so written
    needed = _Needed(
        paths=objects_of_catalogue(gallery, catalogue),
        prefixes=tuple(sorted(prefixes)),
        parts=set(catalogue.position),
    )
    numbers = gallery.generations.numbers()
    young = {
        int(info.path[-13:-5]) for info in gallery.store.listing("generations") if info.modified > oldest
    }
    pinned = {number for pin in pins for number in pin["generations"]}
    for number in numbers:
        _renew(lease)
        models = gallery.generations.read(number)["models"]
        needed.built |= {models["features"], models["encodings"]}
        if number in pinned | young or number in numbers[-keep:]:
            needed.paths |= _objects(gallery, number, catalogue)
    return needed


def _objects(gallery: Gallery, number: int, newest: Catalogue) -> set[str]:
    """What a generation names, and what its models made for the next build; nothing if it was collected."""
    try:
        generation = read_generation(gallery, number)
        return objects_of_generation(gallery, generation) | objects_of_parts(generation, newest)
    except NotFound:
        return set()


def _remove(gallery: Gallery, lease: Pin, doomed: Sequence[ObjectInfo], report: CollectReport) -> None:
    """Deletes in the given order; some at once, but of one folder only."""
    with ThreadPoolExecutor(DELETERS) as pool:
        for folder, group in groupby(doomed, key=lambda info: info.path.partition("/")[0]):
            for batch in _batches(group):
                if not report.dry_run:
                    _renew(lease)
                    list(pool.map(lambda info: gallery.store.delete(info.path), batch))
                report.removed[folder] += len(batch)
                report.removed_bytes += sum(info.size for info in batch)


def _batches(infos: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    """Lists of at most `DELETERS`."""
    remaining = iter(infos)
    while batch := list(islice(remaining, DELETERS)):
        yield batch


def _expired_pins(gallery: Gallery, grace_s: float) -> list[str]:
    now = time.time()
    return [path for path, pin in read_pins(gallery).items() if pin["expires"] + grace_s < now]


def _renew(lease: Pin) -> None:
    """Keeps the lease alive; stops the collection if others may already believe that it has ended.

    Half of the lease is a margin for clocks that differ and for a delete that hangs.
    """
    if time.time() > lease.expires - COLLECT_LEASE_S / 2:
        url = lease.gallery.store.url
        raise Unavailable(f"the lease of this collection on {url} ran out, so it stopped; run it again")
    lease.keep_alive()
