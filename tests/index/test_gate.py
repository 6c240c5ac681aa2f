"""The gate: what is not good enough is not published, its figure is true, and its queries are held out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import index.fit
import index.gate
import index.publish
from index.build import build
from index.fit import SEED
from index.generation import Generation
from index.ivfadc import IvfadcSettings
from index.opened import open_generation
from index.recipe import GateSettings, Recipe
from index.removal import delete
from index.sampling import highest
from ingest.errors import Corrupt, OverBudget
from ingest.job import Job
from tests.tiny import TinyVectors, answers, build_tiny, ingest, job_on, memory_store, vectors

DIM, ROWS, QUERIES = 16, 1200, 60
# One byte a vector and one list of eight: the exact nearest neighbour is often not in the first hundred.
POOR = IvfadcSettings(lists=8, nprobe=1, code_bytes=1, opq=False, sample_vectors=400)


def recipe(recall: float, queries: int = QUERIES) -> Recipe:
    return Recipe(name="poor", quantizer=POOR, gate=GateSettings(recall=recall, queries=queries))


def sources() -> list[TinyVectors]:
    """Random unit vectors from three places, and so in three parts."""
    drawn = np.random.default_rng(5).standard_normal((ROWS, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    named = {str(number): tuple(map(float, row)) for number, row in enumerate(drawn)}
    keys = list(named)
    thirds = zip("abc", np.array_split(np.array(keys), 3), strict=True)
    return [TinyVectors(name, {str(k): named[str(k)] for k in of}, dim=DIM) for name, of in thirds]


@pytest.fixture
def job() -> Job:
    job = job_on(memory_store())
    for source in sources():
        ingest(job, source)
    return job


def by_id() -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and vectors of all images."""
    ids = np.concatenate([np.array(source.ids()) for source in sources()])
    rows = np.concatenate([source.read(0, source.rows) for source in sources()])
    order = np.argsort(ids)
    return ids[order], rows[order]


def naive_recall(job: Job, generation: Generation, without: int | None = None) -> float:
    """The share of queries whose nearest other vector is among the first hundred others of the index."""
    ids, rows = by_id()
    kept = ids != without
    ids, rows = ids[kept], rows[kept]
    opened, found = open_generation(job.gallery, generation.number), 0
    chosen = highest(ids, QUERIES, SEED)
    for q in chosen:
        scores = rows @ rows[q]
        scores[q] = -2
        hits = opened.search(rows[q : q + 1], 101).image_ids[0]
        found += ids[scores.argmax()] in hits[hits != ids[q]][:100]
    return found / len(chosen)


def test_below_the_threshold_nothing_is_published_and_the_reason_is_told(job: Job) -> None:
    before = build(job, recipe(recall=0.1), {})
    told = (
        r"^nothing is published: of 60 held-out queries the index finds the exact nearest neighbour in its "
        r"top 100 for [0-9.]+%, and recipe 'poor' demands 99\.0%"
    )
    with pytest.raises(OverBudget, match=told):
        build(job, recipe(recall=0.99, queries=QUERIES), {})
    assert job.gallery.generations.newest() == before.number == 1


def test_a_first_build_below_the_threshold_leaves_a_gallery_without_an_index(job: Job) -> None:
    with pytest.raises(OverBudget):
        build(job, recipe(recall=0.99), {})
    assert job.gallery.generations.newest() == 0
    assert answers(job.gallery) == {}


def test_the_figure_is_what_numpy_finds(job: Job) -> None:
    generation = build(job, recipe(recall=0.0), {})
    expected = naive_recall(job, generation)
    assert 0.2 < expected < 0.98, "an index so poor that the figure says something"
    assert generation.gate["recall"] == pytest.approx(expected, abs=1e-6)
    assert (generation.gate["queries"], generation.gate["depth"]) == (QUERIES, 100)


def test_images_that_were_taken_down_are_neither_queries_nor_neighbours(job: Job) -> None:
    ids, _ = by_id()
    victim = int(ids[highest(ids, QUERIES, SEED)[0]])
    delete(job, [victim])
    generation = build(job, recipe(recall=0.0), {})
    assert generation.gate["recall"] == pytest.approx(naive_recall(job, generation, victim), abs=1e-6)


def test_no_query_was_fitted_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[np.ndarray] = []
    original = index.fit.fit_quantizer

    def noted(rows: np.ndarray, settings: Any) -> Any:
        fitted.append(rows)
        return original(rows, settings)

    monkeypatch.setattr(index.fit, "fit_quantizer", noted)
    generation = build(job, recipe(recall=0.0), {})
    assert generation.gate["held_out"] is True
    ids, rows = by_id()
    queries = rows[highest(ids, QUERIES, SEED)]
    assert len(fitted[0]) == recipe(0.0).sample_vectors < ROWS
    assert (queries @ fitted[0].T).max() < 1 - 1e-5


def test_too_few_images_to_hold_any_out_are_told(job: Job) -> None:
    assert build(job, recipe(recall=0.0, queries=600), {}).gate["held_out"] is False


@contextmanager
def refused(job: Job, told: str) -> Iterator[None]:
    before = job.gallery.generations.newest()
    with pytest.raises(Corrupt, match=told):
        yield
    assert job.gallery.generations.newest() == before


def test_a_vector_that_is_not_finite_is_not_published(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    original = index.gate.read_encodings

    def spoilt(*arguments: Any) -> Any:
        rows, ids, stored = original(*arguments)
        stored = stored.copy()
        stored[len(stored) // 2, 3] = np.nan
        return rows, ids, stored

    monkeypatch.setattr(index.gate, "read_encodings", spoilt)
    with refused(job, r"the vector of image \d+ in .* is not finite: nothing is published"):
        build(job, recipe(recall=0.0), {})


def test_counts_that_disagree_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_on(memory_store())
    ingest(job, vectors("a", 5))
    original = index.publish.compute_masks

    def too_much(shards: Any, tables: Any, live: Any, places: Any) -> Any:
        masks = dict(original(shards, tables, live, places))
        masks[shards[0].shard] = np.arange(shards[0].count) == 0
        return masks

    monkeypatch.setattr(index.publish, "compute_masks", too_much)
    with refused(job, "4 rows in force, the stored vectors are 5: nothing is published"):
        build_tiny(job)
