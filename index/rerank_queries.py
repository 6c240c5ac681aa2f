"""Steps over many queries that are images of the gallery, in parallel: what an evaluation asks for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float32

from index.generation import read_generation
from index.rerank import Hit, look_again
from index.steps import PairSettings, PairStep, Query, open_pair_step
from ingest.catalogue import read_catalogue
from ingest.compute import Compute
from ingest.feature_reader import FeatureReader, Place
from ingest.freed_memory import keep_freed_memory
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.outcomes import Rejected

_QUERIES_A_TASK = 4


@dataclass(frozen=True)
class StoredQuery:
    """An image of the gallery as a query: where it is, its stored vector, and what it found so far."""

    place: Place
    vector: Float32[np.ndarray, " d"]
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class PairTask:
    """Some queries; `first` is the number of the first of them."""

    first: int
    queries: tuple[StoredQuery, ...]

    def __str__(self) -> str:
        return f"queries {self.first} to {self.first + len(self.queries) - 1}"


@dataclass(frozen=True)
class PairWorker:
    """Applies pair steps; runs in any engine."""

    gallery: Gallery
    generation: int
    steps: tuple[PairSettings, ...]
    compute: Compute

    @property
    def wants_gpu(self) -> bool:
        return self.compute.device != "cpu" and any(step.kind == "cvnet" for step in self.steps)

    def start(self) -> "_PairScorer":
        return _PairScorer(self)


class _PairScorer:
    def __init__(self, job: PairWorker) -> None:
        keep_freed_memory()
        generation = read_generation(job.gallery, job.generation)
        catalogue = read_catalogue(job.gallery, generation.catalogue)
        self._steps: list[tuple[PairSettings, PairStep]] = [
            (each, open_pair_step(job.gallery, generation, each, job.compute)) for each in job.steps
        ]
        assert generation.recipe.features is not None, "checked when a step was opened"
        self._reader = FeatureReader(job.gallery, generation.recipe.features, catalogue, job.compute)

    def __call__(self, task: PairTask) -> tuple[int, list[list[Hit]]]:
        return task.first, [self._apply(query) for query in task.queries]

    def _apply(self, stored: StoredQuery) -> list[Hit]:
        labels = frozenset().union(*(step.labels for _, step in self._steps))
        (features,) = self._reader.read([stored.place], labels)
        hits = list(stored.hits)
        if isinstance(features, Rejected):
            return hits
        query = Query(stored.vector, features)
        for settings, step in self._steps:
            hits = look_again(step, settings.depth, query, hits, self._reader.read)
        # The evidence may be larger than the answer, and nobody looks at it here.
        return [Hit(hit.image_id, hit.place, hit.similarity, hit.score) for hit in hits]

    def close(self) -> None:
        self._reader.close()


def look_again_at_all(
    job: Job,
    generation: int,
    steps: Sequence[PairSettings],
    queries: Sequence[StoredQuery],
) -> list[list[Hit]]:
    """The hits of each query after all pair steps, without evidence."""
    found: dict[int, list[list[Hit]]] = {}
    worker = PairWorker(job.gallery, generation, tuple(steps), job.compute)
    with job.progress.stage("rerank", len(queries), "queries") as stage:
        for first, hits in job.engine.map(worker, _tasks(queries)):
            found[first] = hits
            stage.advance(len(hits))
    return [hits for first in sorted(found) for hits in found[first]]


def _tasks(queries: Sequence[StoredQuery]) -> Iterator[PairTask]:
    rest, first = iter(queries), 0
    while some := tuple(islice(rest, _QUERIES_A_TASK)):
        yield PairTask(first, some)
        first += len(some)
