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
    commit_catalogue,
    read_catalogue,
)
from ingest.errors import BadInput
from ingest.gallery import Gallery, follow, part_path
from ingest.job import Job
from ingest.parts import ListingReport, part_table
from ingest.records import DIGEST_LENGTH, digest_of, encode_key, image_identity, sha256
from ingest.sources import VectorSource
from ingest.tables import ObjectRef, encode_table, write_object

ROWS_OF_A_PART = 16_384


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
    gallery = job.gallery
    catalogue, in_force = follow(gallery, lambda: _in_force(gallery))
    _check(gallery, catalogue, source, moved)
    report = ListingReport()
    starts = range(0, source.rows, ROWS_OF_A_PART)
    parts = []
    with job.progress.stage(f"read {source.name}", source.rows, "vectors") as stage:
        for written in job.engine.map(VectorWorker(gallery, source, catalogue.deleted), starts):
            if written is not None:
                parts.append(written)
                stage.advance(written[0].ref.rows)
    ordered = [part for part, _ in sorted(parts, key=lambda pair: pair[1])]
    fresh = [part for part in ordered if part.part not in in_force]
    report.new = sum(part.ref.rows for part in fresh)
    report.unchanged = sum(part.ref.rows for part in ordered) - report.new
    report.deleted = source.rows - report.new - report.unchanged
    report.parts = len(fresh)
    commit_catalogue(gallery, lambda newest: newest.with_parts(fresh, source.name, source.url))
    return report


def _in_force(gallery: Gallery) -> tuple[Catalogue, set[str]]:
    """The newest catalogue, and those of its parts whose every row is its vector's newest."""
    catalogue = read_catalogue(gallery)
    rows = all_rows(gallery, catalogue)
    newest = np.bincount(rows.part, minlength=len(catalogue.parts))
    pairs = zip(catalogue.parts, newest, strict=True)
    return catalogue, {part.part for part, count in pairs if count == part.ref.rows}


def _check(gallery: Gallery, catalogue: Catalogue, source: VectorSource, moved: bool) -> None:
    url = catalogue.sources.get(source.name, source.url)
    if url != source.url and not moved:
        raise BadInput(
            f"the gallery has a source {source.name!r} at {url}, and this one is at {source.url}: give it "
            "another name (OTHER=vectors:PATH), or say --moved if it is the same file in a new place"
        )
    if {part.ready_made for part in catalogue.parts} - {ready_made_digest(source.dim)}:
        raise BadInput(
            f"the gallery at {gallery.store.url} holds images, or vectors of another dimension than "
            f"{source.dim}: put these vectors into a gallery of their own"
        )


@dataclass(frozen=True)
class VectorWorker:
    """Stores runs of rows as parts; runs in any engine."""

    gallery: Gallery
    source: VectorSource
    deleted: Int64[np.ndarray, " n"]  # images on the deletion list: left out

    def start(self) -> "VectorWorker":
        return self

    def __call__(self, start: int) -> tuple[PartRef, int] | None:
        stop = min(start + ROWS_OF_A_PART, self.source.rows)
        rows = [self._row(key, self.source.dim * 4) for key in self.source.keys(start, stop)]
        for row, metadata in zip(rows, self.source.metadata(start, stop), strict=True):
            row.update({METADATA_PREFIX + name: value for name, value in metadata.items()})
        ids = np.array([row["image_id"] for row in rows], np.int64)
        kept = np.flatnonzero(~np.isin(ids, self.deleted))
        if not len(kept):
            return None
        vectors = l2_normalised(self.source.read(start, stop)[kept])
        data = encode_table(part_table([rows[row] for row in kept]))
        name, encodings = ready_made_name(data, vectors), ready_made_digest(self.source.dim)
        numbers = np.arange(len(kept), dtype=np.int32)
        write_encodings(self.gallery, encodings, name, numbers, ids[kept], vectors)
        ref = write_object(self.gallery.store, part_path(name), data, len(kept))
        return PartRef(name, self.source.name, ref, vectors.nbytes, encodings), start

    def _row(self, key: str, size: int) -> dict[str, Any]:
        image_id, check = image_identity(self.source.name, key)
        return {
            "image_id": image_id,
            "id_check": check,
            "key": encode_key(key),
            "size": size,
            "version": self.source.version,
            "version_digest": int(sha256(self.source.version.encode())[:16], 16) >> 1,
        }


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
