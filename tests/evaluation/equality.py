"""One gallery made in many ways must answer alike: shards, workers, engines, stores.

The rule (docs, "Search"): scores within 1e-6, and image ids free only inside ties at the cut.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.jobs import build_index
from deploy.recipes import load_recipe
from index.build import BuildOptions
from index.encodings import read_encodings
from index.opened import Hits, open_generation
from ingest.catalogue import read_catalogue
from ingest.job import Job
from tests.evaluation.page import table
from tests.evaluation.smvs import FOLDERS, TOP, Target, dvd_gallery

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Answers:
    """What one way of building answers: every image of the gallery asked for its best hundred."""

    way: str
    shards: int
    image_ids: np.ndarray  # (q,), ascending
    vectors: np.ndarray  # (q, d)
    hits: Hits

    def difference(self, other: "Answers") -> float:
        """The largest difference of scores by rank; infinite if an id differs outside a tie at the cut."""
        if not np.array_equal(self.image_ids, other.image_ids):
            return float("inf")
        for mine, theirs, scores in zip(
            self.hits.image_ids, other.hits.image_ids, self.hits.scores, strict=True
        ):
            above = scores > scores[-1] + TOLERANCE
            if not set(mine[above]) <= set(theirs):
                return float("inf")
        return float(np.abs(self.hits.scores - other.hits.scores).max())


def answers(job: Job, way: str, shards: int) -> Answers:
    """Builds the recipe `sift-vlad` in so many shards, and asks."""
    recipe = load_recipe("sift-vlad")
    images = read_catalogue(job.gallery).rows
    cut = recipe.model_copy(update={"shard_rows": -(-images // shards)})
    generation = build_index(job, cut, BuildOptions(rebuild=True))
    if len(generation.shards) != shards:
        raise RuntimeError(f"{way}: {len(generation.shards)} shards were built, {shards} were asked for")
    read = [
        read_encodings(job.gallery, generation.models.encodings, part.part)[1:]
        for part in read_catalogue(job.gallery).parts
    ]
    ids = np.concatenate([ids for ids, _ in read])
    order = np.argsort(ids)
    vectors = np.concatenate([vectors for _, vectors in read])[order]
    opened = open_generation(job.gallery, generation.number)
    return Answers(way, shards, ids[order], vectors, opened.search(vectors, TOP))


@contextmanager
def s3_server() -> Iterator[Any]:
    """The S3 server of the tests, outside pytest."""
    from tests.conftest import s3

    yield from s3.__wrapped__()  # type: ignore[attr-defined]


def ways(shared: Path, folder: Path, bucket: str) -> Iterator[Answers]:
    """All ways, the first of them the one that the others are compared with."""
    for name, url, engine, workers in (
        ("file, inline, 1 worker", str(folder / "inline"), "inline", 1),
        ("file, Ray, 1 worker", str(folder / "ray1"), "ray", 1),
        ("file, Ray, 2 workers", str(folder / "ray2"), "ray", 2),
        ("S3, Ray, 2 workers", f"s3://{bucket}/gallery", "ray", 2),
    ):
        with dvd_gallery(shared, url, engine, workers, FOLDERS[:1]) as job:
            yield answers(job, name, 1)
            yield answers(job, name, 4)


def equality(found: list[Answers]) -> tuple[str, Target]:
    """The section of the page, and what has to hold."""
    first = found[0]
    rows = [
        [
            f"{other.way}, {other.shards} shard{'s' * (other.shards > 1)}",
            f"{np.abs(other.vectors - first.vectors).max():.1e}",
            f"{first.difference(other):.1e}",
        ]
        for other in found[1:]
    ]
    worst = max(first.difference(other) for other in found[1:])
    head = [f"against {first.way}, {first.shards} shard", "vectors", f"scores of the best {TOP}"]
    text = (
        f"Recipe `sift-vlad` on the photographs of `{FOLDERS[0]}`. Each way has a gallery of its own, with "
        "everything computed anew, models too; 4 shards are a rebuild of the same gallery. All "
        f"{len(first.image_ids)} images are queries. The largest differences; an id "
        "that differs outside a tie at the cut would count as infinite.\n\n" + table(head, rows)
    )
    return text, Target("answers equal within 1e-6", worst <= TOLERANCE, f"{worst:.1e}")
