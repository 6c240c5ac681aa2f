"""Exact search: the stored vectors of a generation, streamed part by part against a batch of queries.

What an index approximates. Ties are broken by image id, so that the answer does not depend on which part
came first or which worker saw it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from index.encodings import read_encodings
from index.generation import Generation
from index.merge import MISSING_ID, MISSING_SCORE
from index.opened import Hits
from ingest.catalogue import Catalogue, LiveRows, PartRef, live_rows, read_catalogue
from ingest.errors import BadInput
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.threads import one_blas_thread

_ABSENT = np.iinfo(np.int64).min
_PLACE_BITS = 32
_LAST_PLACE = 2**_PLACE_BITS - 1


@dataclass(frozen=True)
class Collection:
    """The images of a generation: the catalogue that it covers and the rows in force, sorted by image id.

    Rows whose image was rejected are among them; they have no vector.
    """

    catalogue: Catalogue
    live: LiveRows

    def by_part(self) -> Iterator[tuple[PartRef, Int64[np.ndarray, " n"]]]:
        """Each part with the places, in `live`, of its rows in force, by row; empty parts are left out."""
        order = np.lexsort((self.live.row, self.live.part))
        bounds = np.searchsorted(self.live.part[order], np.arange(len(self.catalogue.parts) + 1))
        for place, part in enumerate(self.catalogue.parts):
            if bounds[place] < bounds[place + 1]:
                yield part, order[bounds[place] : bounds[place + 1]]


def read_collection(gallery: Gallery, generation: Generation) -> Collection:
    """The images of a generation. Memory: 40 bytes an image."""
    catalogue = read_catalogue(gallery, generation.catalogue)
    deleted = read_catalogue(gallery, generation.deletions).deleted
    catalogue = replace(catalogue, deleted=deleted)
    return Collection(catalogue, live_rows(gallery, catalogue))


def exact_topk(
    job: Job,
    generation: Generation,
    queries: Float32[np.ndarray, "q d"],
    k: int,
    collection: Collection | None = None,
) -> Hits:
    """The k stored vectors with the largest inner product with each query; every vector is looked at.

    Memory: one part's vectors and (q, rows of the part) scores a worker; (q, 2 k + rows of a part) 8-byte
    keys here. Give queries in batches where q x k is large: each call reads all vectors once.

    Args:
        queries: (q, d) float32, L2-normalised.
        collection: of the generation, if the caller has read it.

    Returns:
        Scores clipped to [-1, 1], descending; of equals the lower image id first.

    Raises:
        BadInput: k < 1, or the queries' dimension is not the stored vectors'.
    """
    if k < 1:
        raise BadInput(f"asked for the {k} nearest: ask for at least 1")
    known = collection or read_collection(job.gallery, generation)
    ids = known.live.image_id
    if len(ids) > _LAST_PLACE:
        raise BadInput(f"exact search takes at most {_LAST_PLACE} images, and there are {len(ids)}")
    tasks = (ExactPart(part, known.live.row[places], places) for part, places in known.by_part())
    best = _Best(len(queries), k)
    with job.progress.stage("exact search", len(ids), "vectors") as stage:
        for keys, rows in job.engine.map(
            ExactWorker(job.gallery, generation.models.encodings, queries, k), tasks
        ):
            best.add(keys)
            stage.advance(rows)
    return best.hits(ids)


@dataclass(frozen=True)
class ExactPart:
    """One part of an exact search: its rows in force, and their places among all images sorted by id."""

    part: PartRef
    rows: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]

    def __str__(self) -> str:
        return f"exact search in {self.part}"


@dataclass(frozen=True)
class ExactWorker:
    """The k best of one part for every query; runs in any engine."""

    gallery: Gallery
    encodings: str
    queries: Float32[np.ndarray, "q d"]
    k: int

    def start(self) -> "ExactWorker":
        return self

    def __call__(self, task: ExactPart) -> tuple[Int64[np.ndarray, "q m"], int]:
        rows, _, vectors = read_encodings(self.gallery, self.encodings, task.part.part)
        at = np.minimum(np.searchsorted(task.rows, rows), len(task.rows) - 1)
        alive = task.rows[at] == rows
        if not alive.any():
            return np.empty((len(self.queries), 0), np.int64), len(task.rows)
        if vectors.shape[1] != self.queries.shape[1]:
            raise BadInput(
                f"the queries have {self.queries.shape[1]} dimensions, and the gallery {vectors.shape[1]}"
            )
        with one_blas_thread():  # the last bits of a product may depend on the number of threads
            scores = self.queries @ vectors[alive].T
        return _largest(_keys(scores, task.places[at[alive]]), self.k), len(task.rows)


class _Best:
    """The k largest keys of each query so far. Sorted out only when twice as many have come."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.queries = queries
        self.waiting: list[np.ndarray] = []
        self.width = 0

    def add(self, keys: Int64[np.ndarray, "q m"]) -> None:
        self.waiting.append(keys)
        self.width += keys.shape[1]
        if self.width > 2 * self.k:
            self._sort_out()

    def _sort_out(self) -> None:
        self.waiting = [_largest(np.concatenate(self.waiting, axis=1), self.k)]
        self.width = self.waiting[0].shape[1]

    def hits(self, ids: Int64[np.ndarray, " n"]) -> Hits:
        kept = np.full((self.queries, self.k), _ABSENT, np.int64)
        if self.width:
            self._sort_out()
            kept[:, : self.width] = -np.sort(-self.waiting[0], axis=1)
        missing = kept == _ABSENT
        scores, places = _from_keys(np.where(missing, 0, kept))
        found = ids[np.where(missing, 0, places)] if len(ids) else kept
        return Hits(
            np.where(missing, np.float32(MISSING_SCORE), scores),
            np.where(missing, np.int64(MISSING_ID), found),
        )


def _largest(keys: Int64[np.ndarray, "q m"], k: int) -> Int64[np.ndarray, "q _"]:
    if keys.shape[1] <= k:
        return keys
    return np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]


def _keys(scores: Float32[np.ndarray, "q n"], places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "q n"]:
    """One integer a pair, larger for a better score, then for a lower place: order and identity in 8 bytes.

    The bits of a float32, read as an integer, are in the order of the numbers where they are positive, and
    in the opposite order where they are negative.
    """
    bits = (np.clip(scores, -1, 1) + np.float32(0)).view(np.int32)  # -0.0 + 0.0 = 0.0
    ordered = np.where(bits >= 0, bits, bits ^ np.int32(0x7FFFFFFF)).astype(np.int64)
    keys: np.ndarray = (ordered << _PLACE_BITS) | (_LAST_PLACE - places)
    return keys


def _from_keys(
    keys: Int64[np.ndarray, "q n"],
) -> tuple[Float32[np.ndarray, "q n"], Int64[np.ndarray, "q n"]]:
    ordered = (keys >> _PLACE_BITS).astype(np.int32)
    scores = np.where(ordered >= 0, ordered, ordered ^ np.int32(0x7FFFFFFF)).astype(np.int32).view(np.float32)
    return scores, _LAST_PLACE - (keys & _LAST_PLACE)
