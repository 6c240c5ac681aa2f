"""Purging: what was taken down is removed from the store for good.

1. Every part that lists a purged image is replaced by one without it; its features and vectors are copied
   without it. The catalogue commits to the new parts; the ids stay on the deletion list.
2. A generation is built without the old parts.
3. Every object of the old parts is deleted, in every older generation too: those cannot be rolled back to.

Stopped anywhere, a rerun finishes. What killed writers left unfinished goes with the next collection. Copies
in the local caches of other machines are theirs to delete.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from index.encodings import read_encodings, write_encodings
from index.generation import Generation
from index.pins import Renewing, hold
from index.publish import newest_generation, republish
from index.ready_made import ready_made_name
from ingest.catalogue import Catalogue, PartRef, commit_catalogue, read_catalogue, read_part, read_parts
from ingest.errors import NotFound
from ingest.features import SCHEMA, FeatureTable, blob_metadata, laid_out
from ingest.gallery import (
    Gallery,
    blob_path,
    features_path,
    follow,
    part_path,
    shard_index_path,
    shard_rows_path,
)
from ingest.job import Job
from ingest.records import digest_of_bytes, sha256
from ingest.tables import encode_table, read_table, write_object


@dataclass(frozen=True)
class PurgeReport:
    """What a purge did: images and parts replaced, objects deleted, the generation in force (if any)."""

    images: int
    parts: int
    objects: int
    generation: int | None


def purge(job: Job, rebuild: Callable[[Generation], Generation]) -> PurgeReport:
    """Removes everything on the deletion list from the store.

    Args:
        rebuild: builds a generation of the newest catalogue by the recipe of the one given.
    """
    gallery = job.gallery
    with hold(gallery, "manifests/", "parts/", "features/", "encodings/") as pin:
        images, replaced = _replace_all(gallery)
        job = replace(job, progress=Renewing(job.progress, pin))
        newest = _without_retired(job, rebuild)
        objects = follow(gallery, lambda: _delete_retired(job))
        if newest is None:  # there was none to fence with: somebody may have published the first meanwhile
            newest = _without_retired(job, rebuild)
    return PurgeReport(images, replaced, objects, newest.number if newest else None)


def _without_retired(job: Job, rebuild: Callable[[Generation], Generation]) -> Generation | None:
    """Publishes a generation that holds no part which the catalogue has not; None if there is none yet.

    It is published even if the newest holds none, as a fence: whoever composed a generation on the
    catalogue before loses the race for the number, and composes again on the new one.
    """
    newest = newest_generation(job.gallery)
    if newest is None:
        return None
    if newest.parts - _newest_parts(job.gallery):
        return rebuild(newest)
    return republish(job, "purge")


def _newest_parts(gallery: Gallery) -> set[str]:
    return set(read_catalogue(gallery).position)


class _Moved(Exception):
    """The catalogue is not the one that replacements were made for: look again."""


def _replace_all(gallery: Gallery) -> tuple[int, int]:
    """Replaces parts until none lists a deleted image; returns purged rows and replaced parts."""
    images = parts = 0
    while True:
        try:
            replaced = follow(gallery, lambda: _replace_parts(gallery, read_catalogue(gallery)))
        except _Moved:
            continue
        if not replaced[1]:
            return images, parts
        images, parts = images + replaced[0], parts + replaced[1]


def _replace_parts(gallery: Gallery, catalogue: Catalogue) -> tuple[int, int]:
    """Commits a catalogue whose parts list no deleted image; returns purged rows and replaced parts."""
    if not len(catalogue.deleted):
        return 0, 0
    doomed: dict[str, np.ndarray] = {}
    images = 0
    tables = read_parts(gallery, catalogue.parts, ["image_id"])
    for part, table in zip(catalogue.parts, tables, strict=True):
        kept = np.flatnonzero(~np.isin(table["image_id"].to_numpy(), catalogue.deleted))
        if len(kept) < table.num_rows:
            images += table.num_rows - len(kept)
            doomed[part.part] = kept
    if not doomed:
        return 0, 0
    folders = _folders(gallery, doomed.keys())
    replacements = {
        part.part: _without(gallery, part, doomed[part.part], folders)
        for part in catalogue.parts
        if part.part in doomed
    }

    def change(newest: Catalogue) -> Catalogue:
        restored = np.setdiff1d(catalogue.deleted, newest.deleted)
        if len(restored) or not replacements.keys() <= newest.position.keys():
            raise _Moved
        return _replaced(newest, replacements)

    commit_catalogue(gallery, change)
    return images, len(replacements)


def _replaced(catalogue: Catalogue, replacements: Mapping[str, PartRef | None]) -> Catalogue:
    """The catalogue with replacements in place; a part that is there twice then stays where it is last."""
    parts = [replacements.get(part.part, part) for part in catalogue.parts]
    last = {part.part: place for place, part in enumerate(parts) if part is not None}
    unique = (part for place, part in enumerate(parts) if part is not None and last[part.part] == place)
    return replace(catalogue, parts=tuple(unique))


def _without(
    gallery: Gallery, part: PartRef, kept: np.ndarray, folders: Mapping[str, list[tuple[str, str]]]
) -> PartRef | None:
    """The part with only the rows `kept`, with its features and vectors; None if none are left."""
    if not len(kept):
        return None
    rows = read_part(gallery, part).take(pa.array(kept))
    data = encode_table(rows)
    name = digest_of_bytes(data)
    if part.ready_made:
        old_rows, _, vectors = read_encodings(gallery, part.ready_made, part.part)
        name = ready_made_name(data, vectors[np.isin(old_rows, kept)])
    for kind, folder in folders[part.part]:
        copy = _copy_features if kind == "features" else _copy_encodings
        copy(gallery, folder, part, name, kept)
    ref = write_object(gallery.store, part_path(name), data, rows.num_rows)
    return replace(part, part=name, ref=ref)


def _folders(gallery: Gallery, parts: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """The kinds and digests of the features and encodings that exist for some parts, by part."""
    found: dict[str, list[tuple[str, str]]] = {part: [] for part in parts}
    for kind in ("features", "encodings"):
        for info in gallery.store.listing(kind):
            _, digest, name = info.path.split("/")
            if name.endswith(".parquet") and name.removesuffix(".parquet") in found:
                found[name.removesuffix(".parquet")].append((kind, digest))
    return found


def _copy_features(gallery: Gallery, features: str, old: PartRef, new: str, kept: np.ndarray) -> None:
    """The features of a part's kept rows under the new part's name: what extracting them would give."""
    found = FeatureTable(gallery, features, old.part)
    rows = [found.rows[row] for row in kept.tolist()]
    records = [
        (place, stored[place["label"]])
        for row, stored in found.records(kept.tolist())
        for place in found.rows[row]["records"]
    ]
    blob = laid_out(records)
    ref = write_object(gallery.store, blob_path(features, new, sha256(blob)), blob)
    fresh = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(blob_metadata(ref))
    path = features_path(features, new)
    gallery.store.create(path, encode_table(fresh, path))


def _copy_encodings(gallery: Gallery, encodings: str, old: PartRef, new: str, kept: np.ndarray) -> None:
    rows, ids, vectors = read_encodings(gallery, encodings, old.part)
    chosen = np.isin(rows, kept)
    numbers = np.searchsorted(kept, rows[chosen]).astype(np.int32)
    write_encodings(gallery, encodings, new, numbers, ids[chosen], vectors[chosen])


def _delete_retired(job: Job) -> int:
    """Deletes every object of parts that an older catalogue names and the newest does not."""
    gallery = job.gallery
    current = _newest_parts(gallery)
    retired = _older_parts(gallery) - current
    if not retired:
        return 0
    doomed = []
    for folder in ("shards", "encodings", "features", "parts"):
        for info in gallery.store.listing(folder):
            name = info.path.rpartition("/")[2].partition(".")[0]
            if name in retired or (name == "rows" and _holds(gallery, info.path, retired)):
                doomed.append(info.path)
                if name == "rows":
                    doomed.append(shard_index_path(info.path.split("/")[1]))
    doomed += _untold_indexes(gallery)
    with job.progress.stage("delete", len(doomed), "objects") as stage:
        # The index before the table that tells what is in it: a rerun must find both.
        for path in sorted(doomed):
            gallery.store.delete(path)
            stage.advance(1)
    return len(doomed)


def _untold_indexes(gallery: Gallery) -> list[str]:
    """Indexes without a row table, left by a build that was stopped: nothing tells whose vectors they hold.

    A build that is about to write the table finds its index gone before it publishes, and makes it again.
    """
    paths = {info.path for info in gallery.store.listing("shards")}
    indexes = (path for path in paths if path.endswith("/index.faiss"))
    return [path for path in indexes if shard_rows_path(path.split("/")[1]) not in paths]


def _older_parts(gallery: Gallery) -> set[str]:
    parts: set[str] = set()
    for number in gallery.catalogue.numbers():
        try:
            parts.update(read_catalogue(gallery, number).position)
        except NotFound:  # its manifest was collected, and so was everything that only it named
            continue
    return parts


def _holds(gallery: Gallery, rows: str, retired: set[str]) -> bool:
    return not retired.isdisjoint(read_table(gallery.store, rows, ["part"])["part"].unique().to_pylist())
