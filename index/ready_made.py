"""Ready-made vectors: they enter a gallery after encoding, listed and stored part by part."""

from dataclasses import dataclass

import numpy as np

from index.encodings import FORMAT, EncodingSet, existing_encodings, write_encodings
from ingest.catalogue import (
    METADATA_PREFIX,
    Catalogue,
    PartRef,
    all_rows,
    commit_catalogue,
    read_catalogue,
)
from ingest.errors import BadInput
from ingest.gallery import Gallery, part_path
from ingest.job import Job
from ingest.parts import ListingReport, part_table
from ingest.records import DIGEST_LENGTH, digest_of, encode_key, image_identity, sha256
from ingest.sources import VectorSource
from ingest.tables import ObjectRef, encode_table, write_object

ROWS_OF_A_PART = 16_384


def ready_made_digest(dim: int) -> str:
    """The name of the folder of ready-made vectors of one dimension."""
    return digest_of({"stage": "encodings", "format": FORMAT, "ready_made": dim})


def ingest_vectors(job: Job, source: VectorSource, moved: bool = False) -> ListingReport:
    """Lists and stores a file of vectors, L2-normalised; commits a catalogue with its parts.

    A part is named by keys, metadata and the file's version: a changed file makes new parts.

    Raises:
        BadInput: the gallery holds vectors of another dimension or images, or the file is unusable.
    """
    gallery = job.gallery
    catalogue = read_catalogue(gallery)
    _check(gallery, catalogue, source, moved)
    report = ListingReport()
    starts = range(0, source.rows, ROWS_OF_A_PART)
    parts = []
    with job.progress.stage(f"read {source.name}", source.rows, "vectors") as stage:
        for part, rows in job.engine.map(VectorWorker(gallery, source), starts):
            parts.append((part, rows))
            stage.advance(part.ref.rows)
    ordered = [part for part, _ in sorted(parts, key=lambda pair: pair[1])]
    in_force = _in_force(gallery, catalogue)
    fresh = [part for part in ordered if part.part not in in_force]
    report.new = sum(part.ref.rows for part in fresh)
    report.unchanged = source.rows - report.new
    report.parts = len(fresh)
    commit_catalogue(gallery, lambda newest: newest.with_parts(fresh, source.name, source.url))
    return report


def _in_force(gallery: Gallery, catalogue: Catalogue) -> set[str]:
    """The parts whose every row is its vector's newest."""
    rows = all_rows(gallery, catalogue)
    newest = np.bincount(rows.part, minlength=len(catalogue.parts))
    return {part.part for part, count in zip(catalogue.parts, newest, strict=True) if count == part.ref.rows}


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

    def start(self) -> "VectorWorker":
        return self

    def __call__(self, start: int) -> tuple[PartRef, int]:
        stop = min(start + ROWS_OF_A_PART, self.source.rows)
        vectors = self.source.read(start, stop)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
        rows = [self._row(key, vectors.shape[1] * 4) for key in self.source.keys(start, stop)]
        for row, metadata in zip(rows, self.source.metadata(start, stop), strict=True):
            row.update({METADATA_PREFIX + name: value for name, value in metadata.items()})
        data = encode_table(part_table(rows))
        # The name covers the vectors as well: they are not found again through the keys, as images are.
        name = sha256(sha256(data).encode() + sha256(vectors.tobytes()).encode())[:DIGEST_LENGTH]
        ids = np.array([row["image_id"] for row in rows], np.int64)
        numbers = np.arange(len(rows), dtype=np.int32)
        encodings = ready_made_digest(vectors.shape[1])
        write_encodings(self.gallery, encodings, name, numbers, ids, vectors)
        ref = write_object(self.gallery.store, part_path(name), data, len(rows))
        return PartRef(name, self.source.name, ref, vectors.nbytes, encodings), start

    def _row(self, key: str, size: int) -> dict[str, int | bytes | str]:
        image_id, check = image_identity(self.source.name, key)
        return {
            "image_id": image_id,
            "id_check": check,
            "key": encode_key(key),
            "size": size,
            "version": self.source.version,
            "version_digest": int(sha256(self.source.version.encode())[:16], 16) >> 1,
        }


def ready_made_encodings(gallery: Gallery, catalogue: Catalogue) -> EncodingSet:
    """The stored vectors of a gallery of ready-made vectors; `BadInput` if it holds images."""
    refs: dict[str, ObjectRef] = {}
    for part in catalogue.parts:
        if not part.ready_made:
            raise BadInput(
                f"{gallery.store.url} holds images, and the recipe takes ready-made vectors: choose a recipe "
                "with features and an encoder (reseen recipe list)"
            )
        refs[part.part] = existing_encodings(gallery, part.ready_made, part.part)
    return EncodingSet(catalogue.parts[0].ready_made if catalogue.parts else "", refs)
