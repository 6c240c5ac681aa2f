"""The encoding stage: a part's local features become one vector an image.

`encodings/<digest>/<part>.parquet` has one row for each image of the part that is `ok`: its row in the
part, its id, and its L2-normalised vector. Vectors that were ready-made enter here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from index.fused import ImageEncoder, load_encoder, projected
from index.projection import Projection
from ingest.catalogue import PartRef, read_part
from ingest.errors import NotFound
from ingest.features import read_features
from ingest.gallery import Gallery, encodings_path
from ingest.image_features import ImageFeatures
from ingest.job import Job
from ingest.records import digest_of, sha256
from ingest.tables import ObjectRef, decode_table, read_table, write_table
from ingest.threads import one_blas_thread

FORMAT = 1


@dataclass(frozen=True)
class EncodingSet:
    """The vectors of a catalogue: their digest, and the object of each part (`rows` = vectors)."""

    digest: str
    parts: Mapping[str, ObjectRef]

    @property
    def counts(self) -> dict[str, int]:
        """Number of vectors of each part."""
        return {part: ref.rows for part, ref in self.parts.items()}


def encodings_digest(features: str, encoder: str, projection: str | None) -> str:
    """The name of the folder of these vectors."""
    inputs = {"features": features, "encoder": encoder, "projection": projection}
    return digest_of({"stage": "encodings", "format": FORMAT, **inputs})


def encode(
    job: Job, parts: Sequence[PartRef], features: str, encoder: str, projection: str | None
) -> EncodingSet:
    """The vector of every image of some parts; what is there already is adopted.

    Args:
        features, encoder, projection: digests of the features, and of the fitted models (no projection:
            the encoder's vector is stored as it is).
    """
    worker = EncodeWorker(job.gallery, features, encoder, projection)
    done: dict[str, ObjectRef] = {}
    with job.progress.stage("encode", sum(part.ref.rows for part in parts)) as stage:
        for part, ref, rows in job.engine.map(worker, parts):
            done[part] = ref
            stage.advance(rows)
    digest = encodings_digest(features, encoder, projection)
    return EncodingSet(digest, {part.part: done[part.part] for part in parts})


@dataclass(frozen=True)
class EncodeWorker:
    """Encodes parts; runs in any engine."""

    gallery: Gallery
    features: str
    encoder: str
    projection: str | None

    def start(self) -> "_PartEncoder":
        return _PartEncoder(self)


class _PartEncoder:
    def __init__(self, job: EncodeWorker) -> None:
        self.job = job
        self.digest = encodings_digest(job.features, job.encoder, job.projection)
        self.encoder, self.projection = load_vectoriser(job.gallery, job.encoder, job.projection)

    def __call__(self, part: PartRef) -> tuple[str, ObjectRef, int]:
        try:
            ref = existing_encodings(self.job.gallery, self.digest, part.part)
        except NotFound:
            ids = read_part(self.job.gallery, part, ["image_id"])["image_id"].to_numpy()
            labels = self.encoder.labels
            found = list(read_features(self.job.gallery, self.job.features, part.part, labels=labels))
            rows = np.array([row for row, _ in found], np.int32)
            vectors = vectorise(self.encoder, self.projection, [features for _, features in found])
            ref = write_encodings(self.job.gallery, self.digest, part.part, rows, ids[rows], vectors)
        return part.part, ref, part.ref.rows


def load_vectoriser(
    gallery: Gallery, encoder: str, projection: str | None
) -> tuple[ImageEncoder, Projection | None]:
    """The fitted encoder and projection that make a gallery's vectors, for gallery and query alike."""
    from ingest.models import load_model

    fitted = None
    if projection is not None:
        fitted = Projection.from_arrays(load_model(gallery, projection, "projection")[1])
    return load_encoder(gallery, encoder), fitted


def vectorise(
    encoder: ImageEncoder, projection: Projection | None, images: Sequence[ImageFeatures]
) -> Float32[np.ndarray, "n d"]:
    """L2-normalised vectors of images from their features; zeros where nothing that is read was found."""
    vectors = np.empty((len(images), encoder.dim), np.float32)
    # The last bits of a product may depend on the number of threads, and workers have one or many.
    with one_blas_thread():
        for place, features in enumerate(images):
            vectors[place] = encoder.encode(features.by_label)
        return vectors if projection is None else projected(projection, vectors)


def write_encodings(
    gallery: Gallery,
    digest: str,
    part: str,
    rows: Int32[np.ndarray, " n"],
    ids: Int64[np.ndarray, " n"],
    vectors: Float32[np.ndarray, "n d"],
) -> ObjectRef:
    """Writes the vectors of a part, unless they are there."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    # `element` is what Parquet calls it: a table that was read and is written again gives the same bytes.
    kind = pa.list_(pa.field("element", pa.float32()), max(1, vectors.shape[1]))
    column = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    table = pa.table(
        {"row": pa.array(rows, pa.int32()), "image_id": pa.array(ids, pa.int64()), "vector": column}
    )
    return write_table(gallery.store, encodings_path(digest, part), table)


def existing_encodings(gallery: Gallery, digest: str, part: str) -> ObjectRef:
    """The reference of a part's vectors; `NotFound` if there are none, `Corrupt` if they are damaged."""
    path = encodings_path(digest, part)
    data = gallery.store.read(path)
    table = decode_table(data, gallery.store.where(path), ["row"], path)
    return ObjectRef(path, len(data), sha256(data), table.num_rows)


def read_encodings(
    gallery: Gallery, digest: str, part: str
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, "n d"]]:
    """The vectors of a part: rows of the part, image ids, vectors."""
    table = read_table(gallery.store, encodings_path(digest, part)).combine_chunks()
    column = table["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return table["row"].to_numpy(), table["image_id"].to_numpy(), vectors
