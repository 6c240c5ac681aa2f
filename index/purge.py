"""Purging: what was taken down is removed from the store for good.

1. Every part that lists a purged image is replaced by one without it; its features and vectors are copied
   without it. The catalogue commits to the new parts; the ids stay on the deletion list.
2. A generation is built without the old parts.
3. Every object of the old parts is deleted, in every older generation too: those cannot be rolled back to.

Stopped anywhere, a rerun finishes. Copies in the local caches of other machines are theirs to delete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from index.encodings import read_encodings
from index.generation import Generation
from index.pins import hold
from index.ready_made import ready_made_name
from ingest.catalogue import Catalogue, PartRef, commit_catalogue, read_catalogue, read_part
from ingest.errors import NotFound
from ingest.gallery import Gallery, blob_path, encodings_path, features_path, follow, part_path
from ingest.job import Job
from ingest.records import digest_of_bytes
from ingest.tables import encode_table, read_table, write_object, write_table


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
    from index.publish import newest_generation

    gallery = job.gallery
    with hold(gallery, "manifests/", "parts/", "features/", "encodings/") as pin:
        images, replaced = follow(gallery, lambda: _replace_parts(gallery, read_catalogue(gallery)))
        newest = newest_generation(gallery)
        if newest is not None and (newest.parts - _newest_parts(gallery)):
            newest = rebuild(newest)
        pin.keep_alive()
        objects = follow(gallery, lambda: _delete_retired(job))
    return PurgeReport(images, replaced, objects, newest.number if newest else None)


def _newest_parts(gallery: Gallery) -> set[str]:
    return set(read_catalogue(gallery).position)


def _replace_parts(gallery: Gallery, catalogue: Catalogue) -> tuple[int, int]:
    """Commits a catalogue whose parts list no deleted image; returns purged rows and replaced parts."""
    replacements: dict[str, PartRef | None] = {}
    images = 0
    if len(catalogue.deleted):
        for part in catalogue.parts:
            ids = read_part(gallery, part, ["image_id"])["image_id"].to_numpy()
            kept = np.flatnonzero(~np.isin(ids, catalogue.deleted))
            if len(kept) < len(ids):
                images += len(ids) - len(kept)
                replacements[part.part] = _without(gallery, part, kept)
    if replacements:
        commit_catalogue(gallery, lambda newest: _replaced(newest, replacements))
    return images, len(replacements)


def _replaced(catalogue: Catalogue, replacements: Mapping[str, PartRef | None]) -> Catalogue:
    parts = (replacements.get(part.part, part) for part in catalogue.parts)
    return replace(catalogue, parts=tuple(part for part in parts if part is not None))


def _without(gallery: Gallery, part: PartRef, kept: np.ndarray) -> PartRef | None:
    """The part with only the rows `kept`, with its features and vectors; None if none are left."""
    if not len(kept):
        return None
    rows = read_part(gallery, part).take(pa.array(kept))
    data = encode_table(rows)
    name = digest_of_bytes(data)
    if part.ready_made:
        old_rows, _, vectors = read_encodings(gallery, part.ready_made, part.part)
        name = ready_made_name(data, vectors[np.isin(old_rows, kept)])
    for folder in _folders(gallery, "features", part.part):
        _copy_features(gallery, folder, part.part, name, kept)
    for folder in _folders(gallery, "encodings", part.part):
        _copy_encodings(gallery, folder, part.part, name, kept)
    ref = write_object(gallery.store, part_path(name), data, rows.num_rows)
    size = int(np.sum(rows["size"].to_numpy()))
    return replace(part, part=name, ref=ref, bytes=size)


def _folders(gallery: Gallery, kind: str, part: str) -> list[str]:
    """Digests of the features, or encodings, that exist for a part."""
    name = f"{part}.parquet"
    return [
        info.path.split("/")[1]
        for info in gallery.store.listing(kind)
        if info.path.rpartition("/")[2] == name
    ]


def _copy_features(gallery: Gallery, features: str, old: str, new: str, kept: np.ndarray) -> None:
    """The features of a part's kept rows under the new part's name: what extracting them would give."""
    table = read_table(gallery.store, features_path(features, old)).take(pa.array(kept))
    blob = gallery.store.read(blob_path(features, old))
    rows, records, offset = table.to_pylist(), [], 0
    for row in rows:
        if row["length"] is None:
            continue
        records.append(blob[row["offset"] : row["offset"] + row["length"]])
        row["offset"] = offset
        offset += row["length"]
    ref = write_object(gallery.store, blob_path(features, new), b"".join(records))
    metadata = {"blob_sha256": ref.sha256, "blob_size": str(ref.size)}
    fresh = pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata(metadata)
    write_table(gallery.store, features_path(features, new), fresh)


def _copy_encodings(gallery: Gallery, encodings: str, old: str, new: str, kept: np.ndarray) -> None:
    table = read_table(gallery.store, encodings_path(encodings, old))
    rows = table["row"].to_numpy()
    chosen = np.flatnonzero(np.isin(rows, kept))
    renumbered = pa.array(np.searchsorted(kept, rows[chosen]), pa.int32())
    fresh = table.take(pa.array(chosen)).set_column(0, "row", renumbered)
    write_table(gallery.store, encodings_path(encodings, new), fresh)


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
                    doomed.append(info.path.replace("rows.parquet", "index.faiss"))
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
    return [path for path in indexes if path.replace("index.faiss", "rows.parquet") not in paths]


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
