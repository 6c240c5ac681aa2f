"""Verifying: every object that a generation names is read and checked; all problems are reported."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from index.encodings import read_encodings
from index.generation import Generation, Models, read_generation
from index.quantizer import deserialise
from index.shards import Shard
from ingest.catalogue import PartRef, read_catalogue, read_part
from ingest.errors import Corrupt, NotFound
from ingest.features import FeatureTable, existing_features
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.models import load_model
from ingest.tables import read_object, read_table
from ingest.weights import KIND as WEIGHTS


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and every problem found, by name."""

    generation: int
    checked: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class VerifyTask:
    """One thing to check: a part, a shard or a model."""

    models: Models
    what: PartRef | Shard | tuple[str, str]


def verify(job: Job, number: int | None = None) -> VerifyReport:
    """Checks a generation, the newest by default: manifests, models, shards, parts, features, vectors.

    Raises:
        NotFound, Corrupt: the record or a manifest itself; then nothing else can be checked.
    """
    generation, tasks = verify_tasks(job.gallery, number)
    problems: list[str] = []
    with job.progress.stage("verify", len(tasks), "objects") as stage:
        for found in job.engine.map(VerifyWorker(job.gallery), tasks):
            problems += found
            stage.advance(1, rejects=len(found))
    return VerifyReport(generation.number, len(tasks), tuple(sorted(problems)))


def verify_tasks(gallery: Gallery, number: int | None = None) -> tuple[Generation, list[VerifyTask]]:
    """A generation and everything of it that is to be checked, one by one."""
    generation = read_generation(gallery, number)
    parts = read_catalogue(gallery, generation.catalogue).parts
    read_catalogue(gallery, generation.deletions)
    whats: list[PartRef | Shard | tuple[str, str]] = [
        *generation.models.fitted.items(),
        *((WEIGHTS, digest) for digest in sorted(generation.recipe.weights)),
        *generation.shards,
        *parts,
    ]
    return generation, [VerifyTask(generation.models, what) for what in whats]


@dataclass(frozen=True)
class VerifyWorker:
    """Checks one thing after the other; runs in any engine."""

    gallery: Gallery

    def start(self) -> "VerifyWorker":
        return self

    def __call__(self, task: VerifyTask) -> list[str]:
        problems = []
        for check in _checks(self.gallery, task):
            try:
                check()
            except (Corrupt, NotFound) as error:
                problems.append(str(error))
        return problems


def _checks(gallery: Gallery, task: VerifyTask) -> Iterator[Callable[[], object]]:
    what, models = task.what, task.models
    if isinstance(what, PartRef):
        yield lambda: read_part(gallery, what)
        yield lambda: read_encodings(gallery, models.encodings, what.part)
        if (features := models.features) is not None:
            yield lambda: existing_features(gallery, features, what)
            yield lambda: deque(FeatureTable(gallery, features, what.part).records(), maxlen=0)
    elif isinstance(what, Shard):
        yield lambda: deserialise(read_object(gallery.store, what.index))
        yield lambda: read_table(gallery.store, what.rows)
    else:
        kind, digest = what
        yield lambda: load_model(gallery, digest, kind)
