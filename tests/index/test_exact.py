"""Exact search: what ten lines of numpy give, whatever comes first, whatever is masked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from index.exact import _from_keys, _keys, exact_topk, read_collection
from index.removal import delete
from ingest.errors import BadInput
from ingest.job import Job
from tests.tiny import DIM, TinyVectors, build_tiny, ingest, job_on, memory_store, vectors


class BackwardsEngine:
    """Does the tasks in the opposite order."""

    workers = 1

    def map(self, worker: Any, tasks: Iterable[Any]) -> Iterator[Any]:
        function: Callable[[Any], Any] = worker.start()
        return map(function, reversed(list(tasks)))


def _gallery(*sources: TinyVectors) -> Job:
    job = job_on(memory_store())
    for source in sources:
        ingest(job, source)
    return job


def _naive(
    sources: list[TinyVectors], queries: np.ndarray, k: int, without: Iterable[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.array(source.ids()) for source in sources])
    scores = queries @ np.concatenate([source.read(0, source.rows) for source in sources]).T
    kept = ~np.isin(ids, list(without))
    ids, scores = ids[kept], np.clip(scores[:, kept], -1, 1)
    order = np.array([np.lexsort((ids, -row)) for row in scores])[:, :k]
    return np.take_along_axis(scores, order, axis=1), ids[order]


@pytest.fixture
def queries() -> np.ndarray:
    drawn = np.random.default_rng(3).standard_normal((6, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 3, 17])
def test_finds_what_numpy_finds(queries: np.ndarray, k: int) -> None:
    sources = [vectors("a", 20), vectors("b", 3), vectors("c", 11)]
    job = _gallery(*sources)
    hits = exact_topk(job, build_tiny(job), queries, k)
    scores, ids = _naive(sources, queries, k)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-6)
    np.testing.assert_array_equal(hits.image_ids, ids)


def test_fewer_images_than_asked_for_are_filled_up(queries: np.ndarray) -> None:
    source = vectors("a", 5)
    job = _gallery(source)
    hits = exact_topk(job, build_tiny(job), queries, 9)
    assert set(hits.image_ids[:, :5].ravel().tolist()) == set(source.ids())
    assert (hits.image_ids[:, 5:] == -1).all() and (hits.scores[:, 5:] == -1).all()


def test_deleted_and_replaced_images_are_not_found(queries: np.ndarray) -> None:
    old, new = vectors("a", 12), vectors("a", 12, version="2")
    job = _gallery(old)
    build_tiny(job)
    ingest(job, new)
    build_tiny(job)
    gone = new.ids()[:3]
    generation = delete(job, gone)
    assert generation is not None
    hits = exact_topk(job, generation, queries, 9)
    scores, ids = _naive([new], queries, 9, gone)
    np.testing.assert_array_equal(hits.image_ids, ids)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-6)


def test_equal_scores_come_by_image_id_whichever_part_comes_first(queries: np.ndarray) -> None:
    same = tuple(map(float, queries[0]))
    sources = [TinyVectors(name, {str(n): same for n in range(5)}) for name in ("a", "b", "c")]
    job = _gallery(*sources)
    generation = build_tiny(job)
    lowest = sorted(image for source in sources for image in source.ids())[:4]
    for engine in (job.engine, BackwardsEngine()):
        hits = exact_topk(replace(job, engine=engine), generation, queries[:1], 4)
        assert hits.image_ids[0].tolist() == lowest


def test_keys_are_in_the_order_of_scores_then_of_places_and_give_both_back() -> None:
    scores = np.array([[1, 0.5, 0.5, 1e-30, 0.0, -0.0, -1e-30, -0.25, -1]], np.float32)
    places = np.array([7, 1, 2, 2**32 - 1, 3, 4, 0, 5, 6], np.int64)
    keys = _keys(scores, places)
    assert (np.diff(keys[0]) < 0).all()
    again, where = _from_keys(keys)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(where[0], places)


def test_another_dimension_and_no_neighbour_are_refused(queries: np.ndarray) -> None:
    job = _gallery(vectors("a", 3))
    generation = build_tiny(job)
    with pytest.raises(BadInput, match="dimensions"):
        exact_topk(job, generation, queries[:, :2], 1)
    with pytest.raises(BadInput, match="at least 1"):
        exact_topk(job, generation, queries, 0)


def test_a_collection_places_every_image_in_force_once() -> None:
    job = _gallery(vectors("a", 9), vectors("b", 4))
    collection = read_collection(job.gallery, build_tiny(job))
    placed = np.concatenate([places for _, places in collection.by_part()])
    assert sorted(placed.tolist()) == list(range(13))
