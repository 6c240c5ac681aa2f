"""Ready-made vectors: they enter a gallery after encoding, listed and stored part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from index.encodings import FORMAT, EncodingSet, existing_encodings, write_encodings
from index.projection import l2_normalised
from ingest.catalogue import (
    METADATA_PREFIX,
    Catalogue,
    PartRef,
    all_rows,
    read_catalogue,
)
from ingest.errors import BadInput, Conflict
from ingest.gallery import Gallery, follow, part_path
from ingest.job import Job
from ingest.parts import ListingReport, TakenDownMeanwhile, check_source, commit_parts, part_table
from ingest.records import DIGEST_LENGTH, digest_of, encode_key, image_identity, sha256
from ingest.sources import VectorSource
from ingest.tables import ObjectRef, encode_table, write_object

ROWS_OF_A_PART = 16_384
_REREADINGS = 20


def ready_made_digest(dim: int) -> str:
    """The name of the folder of ready-made vectors of one dimension."""
    return digest_of({"stage": "encodings", "format": FORMAT, "ready_made": dim})


def ready_made_name(rows: bytes, vectors: Float32[np.ndarray, "n d"]) -> str:
    """The name of a part of ready-made vectors: it covers them too, for no image leads back to them."""
    return sha256(sha256(rows).encode() + sha256(vectors.tobytes()).encode())[:DIGEST_LENGTH]


def ingest_vectors(job: Job, source: VectorSource, moved: bool = False) -> ListingReport:
    """Lists and stores a file of vectors, L2-normalised; commits a catalogue with its parts.

    A part is named by keys, metadata and the file's version: a changed file makes new parts.

    Raises:
        BadInput: the gallery holds vectors of another dimension or images, or the file is unusable.
    """
    for _ in range(_REREADINGS):
        try:
            return _read_once(job, source, moved)
        except TakenDownMeanwhile:
            continue
    raise Conflict(f"{job.gallery.store.url} changes faster than {source.name} can be read; run again later")


def _read_once(job: Job, source: VectorSource, moved: bool) -> ListingReport:
    gallery = job.gallery
    catalogue, in_force = follow(gallery, lambda: _in_force(gallery))
    check_source(catalogue, source.name, source.url, moved)
    starts = range(0, source.rows, ROWS_OF_A_PART)
    written: list[_Written] = []
    with job.progress.stage(f"read {source.name}", source.rows, "vectors") as stage:
        for part in job.engine.map(VectorWorker(gallery, source, catalogue.deleted), starts):
            written.append(part)
            stage.advance(len(part.ids))
    written.sort(key=lambda part: part.start)
    _check_ids(source, written)
    parts = [part.ref for part in written if part.ref is not None]
    fresh = [part for part in parts if part.part not in in_force]
    new, listed = sum(part.ref.rows for part in fresh), sum(part.ref.rows for part in parts)
    ids = np.concatenate([part.ids for part in written]) if written else np.empty(0, np.int64)
    kept = np.setdiff1d(ids, catalogue.deleted)
    commit_parts(gallery, fresh, kept, source.name, source.url, moved)
    return ListingReport(new=new, unchanged=listed - new, deleted=source.rows - listed, parts=len(fresh))


def _check_ids(source: VectorSource, written: Sequence["_Written"]) -> None:
    """`BadInput` if two rows have one id: the same key twice, or two keys that collide."""
    ids = np.concatenate([part.ids for part in written]) if written else np.empty(0, np.int64)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twice):
        one, other = (int(row) for row in order[twice[0] : twice[0] + 2])
        (first,), (second,) = source.keys(one, one + 1), source.keys(other, other + 1)
        raise BadInput(
            f"{source.url}: rows {one} and {other} have the same id (keys {first!r} and {second!r}); give "
            "every row a key of its own"
        )


def _in_force(gallery: Gallery) -> tuple[Catalogue, set[str]]:
    """The newest catalogue, and those of its parts whose every row is its vector's newest."""
    catalogue = read_catalogue(gallery)
    rows = all_rows(gallery, catalogue)
    newest = np.bincount(rows.part, minlength=len(catalogue.parts))
    pairs = zip(catalogue.parts, newest, strict=True)
    return catalogue, {part.part for part, count in pairs if count == part.ref.rows}


@dataclass(frozen=True)
class _Written:
    """What a run of rows became: its part, if any of its vectors is not deleted, and the ids of all."""

    start: int
    ref: PartRef | None
    ids: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class VectorWorker:
    """Stores runs of rows as parts; runs in any engine."""

    gallery: Gallery
    source: VectorSource
    deleted: Int64[np.ndarray, " n"]  # images on the deletion list: left out

    def start(self) -> "VectorWorker":
        return self

    def __call__(self, start: int) -> _Written:
        stop = min(start + ROWS_OF_A_PART, self.source.rows)
        rows = self._rows(self.source.keys(start, stop))
        for row, metadata in zip(rows, self.source.metadata(start, stop), strict=True):
            row.update({METADATA_PREFIX + name: value for name, value in metadata.items()})
        ids = np.array([row["image_id"] for row in rows], np.int64)
        kept = np.flatnonzero(~np.isin(ids, self.deleted))
        if not len(kept):
            return _Written(start, None, ids)
        vectors = l2_normalised(self.source.read(start, stop)[kept])
        data = encode_table(part_table([rows[row] for row in kept]))
        name, encodings = ready_made_name(data, vectors), ready_made_digest(self.source.dim)
        numbers = np.arange(len(kept), dtype=np.int32)
        write_encodings(self.gallery, encodings, name, numbers, ids[kept], vectors)
        ref = write_object(self.gallery.store, part_path(name), data, len(kept))
        return _Written(start, PartRef(name, self.source.name, ref, encodings), ids)

    def _rows(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        version = self.source.version
        same = {
            "size": self.source.dim * 4,
            "version": version,
            "version_digest": int(sha256(version.encode())[:16], 16) >> 1,
        }
        rows = []
        for key in keys:
            image_id, check = image_identity(self.source.name, key)
            rows.append({"image_id": image_id, "id_check": check, "key": encode_key(key), **same})
        return rows


def ready_made_encodings(gallery: Gallery, parts: Sequence[PartRef]) -> EncodingSet:
    """The stored vectors of some parts of a gallery of ready-made vectors; `BadInput` if it holds images."""
    refs: dict[str, ObjectRef] = {}
    for part in parts:
        if not part.ready_made:
            raise BadInput(
                f"{gallery.store.url} holds images, and the recipe takes ready-made vectors: choose a recipe "
                "with features and an encoder (reseen recipe list)"
            )
        refs[part.part] = existing_encodings(gallery, part.ready_made, part.part)
    return EncodingSet(parts[0].ready_made if parts else "", refs)
