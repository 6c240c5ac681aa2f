"""Galleries so small that a whole life of one takes milliseconds: ready-made vectors, exact search."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from index.build import BuildOptions, build
from index.generation import Generation
from index.opened import open_generation
from index.purge import PurgeReport, purge
from index.quantizer import FlatSettings
from index.ready_made import ingest_vectors
from index.recipe import GateSettings, Recipe
from ingest.engine import InlineEngine
from ingest.errors import NotFound
from ingest.gallery import Gallery, create_gallery
from ingest.job import Job
from ingest.progress import SilentProgress
from ingest.records import image_identity
from ingest.store import Store

DIM = 4
RECIPE = Recipe(name="tiny", quantizer=FlatSettings(), shard_rows=8, gate=GateSettings(recall=1.0, queries=4))


@dataclass(frozen=True)
class TinyVectors:
    """A source of named vectors, in memory."""

    name: str
    vectors: Mapping[str, tuple[float, ...]]
    version: str = "1"
    url: str = field(default="")
    dim: int = DIM

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url or f"vectors:{self.name}")

    @property
    def rows(self) -> int:
        return len(self.vectors)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.array(list(self.vectors.values())[start:stop], np.float32)

    def keys(self, start: int, stop: int) -> list[str]:
        return list(self.vectors)[start:stop]

    def metadata(self, start: int, stop: int) -> list[dict[str, str]]:
        return [{} for _ in range(start, stop)]

    def ids(self) -> list[int]:
        return [image_identity(self.name, key)[0] for key in self.vectors]


def vectors(name: str, count: int, seed: int = 0, version: str = "1") -> TinyVectors:
    """`count` random unit vectors under the keys 0, 1, ..."""
    drawn = np.random.default_rng([seed, *name.encode(), *version.encode()]).standard_normal((count, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    named = {str(number): tuple(map(float, row)) for number, row in enumerate(drawn)}
    return TinyVectors(name, named, version)


def memory_store() -> Store:
    """A store of its own in this process's memory."""
    return Store(f"memory://{uuid.uuid4().hex}")


def job_on(store: Store) -> Job:
    """A job on the gallery of a store, made if there is none, in this process."""
    return Job(create_gallery(store), InlineEngine(), SilentProgress())


def ingest(job: Job, source: TinyVectors) -> None:
    ingest_vectors(job, source)


def build_tiny(job: Job, options: BuildOptions | None = None, recipe: Recipe = RECIPE) -> Generation:
    return build(job, recipe, {}, options)


def purge_tiny(job: Job) -> PurgeReport:
    return purge(job, lambda newest: build(job, newest.recipe, {}, BuildOptions(action="purge")))


def answers(gallery: Gallery, number: int | None = None) -> dict[int, float]:
    """What a reader gets: every image that can be found, with its score against one fixed query.

    Empty before the first generation.
    """
    if gallery.generations.newest() == 0:
        return {}
    opened = open_generation(gallery, number)
    count = max(1, opened.generation.counts["rows"])
    hits = opened.search(np.full((1, DIM), 0.5, np.float32), count)
    found = hits.image_ids[0] >= 0
    ids, scores = hits.image_ids[0][found].tolist(), hits.scores[0][found].tolist()
    assert len(set(ids)) == len(ids), "an image was found twice"
    assert len(ids) == opened.generation.counts["live"], "not every image in force was found"
    return dict(zip(ids, (round(score, 5) for score in scores), strict=True))


def expected(source: TinyVectors) -> dict[int, float]:
    """The answers for the images of a source."""
    scores = source.read(0, source.rows) @ np.full(DIM, 0.5, np.float32)
    return dict(zip(source.ids(), (round(float(score), 5) for score in scores), strict=True))


def exists(gallery: Gallery, number: int) -> bool:
    """Whether a generation can still be opened."""
    try:
        open_generation(gallery, number)
    except NotFound:
        return False
    return True
