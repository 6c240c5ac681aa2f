"""Galleries of ready-made vectors with metadata, of many shards: uneven lists, masked rows, and ties."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from index.build import build
from index.flat import FlatSettings
from index.generation import Generation, read_generation
from index.group import (
    Scanned,
    ShardGroup,
    open_group,
)
from index.ivfadc import IvfadcSettings
from index.projection import l2_normalised
from index.recipe import GateSettings, Recipe
from index.removal import delete
from ingest.job import Job
from ingest.records import image_identity
from tests.tiny import TinyVectors, ingest, job_on, memory_store

DIM, SOURCES, EACH = 16, 8, 90
QUANTIZERS = {
    "flat": FlatSettings(),
    "ivfadc": IvfadcSettings(lists=12, code_bytes=4, opq=False, nprobe=1),
    "opq": IvfadcSettings(lists=12, code_bytes=8, opq_iterations=1, nprobe=1),
}
FILTERS = (
    None,
    "year >= 1995",
    'city = "Rome" and not private = true',
    'source in ("s0", "s5") or key prefix "1"',
    "year exists and year < 1900",
    "year = 1991 or year = 1992.5",
    'nowhere = "x"',
)


@dataclass(frozen=True)
class Described(TinyVectors):
    """Vectors with metadata."""

    dim: int = DIM
    described: Sequence[dict[str, Any]] = field(default=())

    def metadata(self, start: int, stop: int) -> list[dict[str, Any]]:  # type: ignore[override]
        return list(self.described[start:stop])


def drawn(count: int, seed: int) -> np.ndarray:
    """Clustered unit vectors, so that lists are uneven."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(7).standard_normal((9, DIM))
    return l2_normalised(
        (middles[rng.integers(0, 9, count)] + 0.6 * rng.standard_normal((count, DIM))).astype(np.float32)
    )


def described(number: int, row: int) -> dict[str, Any]:
    """Each source has its own columns; years are whole in some and not in others."""
    found: dict[str, Any] = {"city": ["Rome", "Bari", "naïve"][row % 3]} if number % 2 else {}
    if number != 3 and row % 4:
        found["year"] = 1990.0 + row % 10 / 2 if number == 6 else 1990 + row % 10
    return found | ({"private": row % 5 == 0} if number in (1, 4) else {})


def source(number: int, version: str = "1", seed: int | None = None) -> Described:
    vectors = drawn(EACH, number if seed is None else seed)
    vectors[::9] = drawn(EACH, 1000)[::9]  # the same in every source: ties that every cut goes through
    named = {str(row): tuple(map(float, vector)) for row, vector in enumerate(vectors)}
    metadata = [described(number, row) for row in range(EACH)]
    return Described(f"s{number}", named, version, described=metadata)


@cache
def gallery(kind: str) -> tuple[Job, Generation]:
    """Eight shards, with masked rows in some: images that were taken down, and a source that changed."""
    job = job_on(memory_store())
    for number in range(SOURCES):
        ingest(job, source(number))
    build(job, recipe(kind), {})
    ingest(job, source(2, "2", seed=77))
    build(job, recipe(kind), {})
    taken = [image_identity(f"s{number}", str(row))[0] for number in (0, 5) for row in (3, 9, 18, 44)]
    delete(job, taken)
    generation = read_generation(job.gallery)
    assert len(generation.shards) == SOURCES + 1 and 0 < len(generation.masks) < SOURCES
    return job, generation


def recipe(kind: str) -> Recipe:
    gate = GateSettings(recall=0.0, queries=4)
    return Recipe(name=kind, quantizer=QUANTIZERS[kind], shard_rows=EACH, gate=gate)


@cache
def one_group(kind: str) -> ShardGroup:
    job, generation = gallery(kind)
    return open_group(job.gallery, generation, generation.shards, None)


def assert_same(one: Scanned, other: Scanned) -> None:
    assert one.scores.tobytes() == other.scores.tobytes()
    assert one.scores.dtype == other.scores.dtype == np.float32
    assert one.image_ids.tolist() == other.image_ids.tolist()
    assert (one.places, one.allowed, one.rows) == (other.places, other.allowed, other.rows)
