"""Query expansion and database-side augmentation: the formula, and what has no weight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import expansion
from index.expansion import ExpansionSettings, augment, expand_query
from index.projection import l2_normalised
from ingest.errors import BadInput


def units(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return l2_normalised(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


def naive(query: np.ndarray, neighbours: np.ndarray, scores: np.ndarray, alpha: float) -> np.ndarray:
    total = query.astype(np.float64).copy()
    for neighbour, score in zip(neighbours, scores, strict=True):
        if score > 0:
            total += min(float(score), 1.0) ** alpha * neighbour
    return total / np.linalg.norm(total)


def ranked(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = vectors @ vectors.T
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 12), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(0, 10**6))
def test_it_is_the_weighted_sum_of_the_first_neighbours(k: int, used: int, alpha: float, seed: int) -> None:
    query, *neighbours = units(k + 1, seed=seed)
    rows = np.array(neighbours, np.float32).reshape(-1, 8)
    scores = rows @ query
    chosen = ExpansionSettings(neighbours=used, alpha=alpha)
    expanded = expand_query(query, rows, scores, chosen)
    np.testing.assert_allclose(expanded, naive(query, rows[:used], scores[:used], alpha), atol=1e-6)
    assert expanded.dtype == np.float32
    assert np.linalg.norm(expanded) == pytest.approx(1, abs=1e-6)


def test_at_alpha_zero_it_is_the_mean() -> None:
    query, a, b = np.abs(units(3))
    expanded = expand_query(query, np.stack([a, b]), np.array([0.9, 0.1]), ExpansionSettings(alpha=0))
    mean = (query + a + b) / 3
    np.testing.assert_allclose(expanded, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_what_is_unlike_or_missing_has_no_weight(alpha: float) -> None:
    query, *rows = units(4)
    scores = np.array([0.0, -0.4, -1.0], np.float32)
    np.testing.assert_array_equal(
        expand_query(query, np.array(rows), scores, ExpansionSettings(alpha=alpha)),
        expand_query(query, np.empty((0, 8), np.float32), np.empty(0, np.float32), ExpansionSettings()),
    )


def test_a_reranked_score_above_one_counts_as_one() -> None:
    query, row = units(2)
    ones, above = (
        expand_query(query, row[None], np.array([score]), ExpansionSettings()) for score in (1.0, 1.7)
    )
    np.testing.assert_array_equal(ones, above)


def test_a_larger_alpha_stays_nearer_to_the_query() -> None:
    query, *rows = np.abs(units(6))
    scores = np.array(rows) @ query
    kept = [
        float(expand_query(query, np.array(rows), scores, ExpansionSettings(alpha=alpha)) @ query)
        for alpha in (0, 1, 3, 10, 100)
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_augmentation_expands_each_vector_by_the_others(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "_BLOCK_ROWS", 7)
    vectors, chosen = np.abs(units(40)), ExpansionSettings(neighbours=5, alpha=alpha)
    before = vectors.copy()
    augmented = augment(vectors, *ranked(vectors, 10), chosen)
    np.testing.assert_array_equal(vectors, before)
    for row, vector in enumerate(vectors):
        scores = np.delete(vectors @ vector, row)
        order = np.argsort(-scores)
        expected = expand_query(vector, np.delete(vectors, row, axis=0)[order], scores[order], chosen)
        np.testing.assert_allclose(augmented[row], expected, atol=1e-6)


def test_augmentation_does_not_depend_on_the_order_of_rows() -> None:
    vectors = np.abs(units(30))
    order = np.random.default_rng(1).permutation(30)
    shuffled = vectors[order]
    np.testing.assert_allclose(
        augment(shuffled, *ranked(shuffled, 6), ExpansionSettings()),
        augment(vectors, *ranked(vectors, 6), ExpansionSettings())[order],
        atol=1e-6,
    )


def test_missing_neighbours_and_the_row_itself_are_skipped_wherever_they_stand() -> None:
    vectors, chosen = np.abs(units(3)), ExpansionSettings(neighbours=1)
    ids = np.array([[-1, 0, 2], [1, -1, 0], [-1, -1, -1]])
    scores = np.array([[0.9, 1.0, 0.5], [1.0, 0.9, 0.6], [0.9, 0.9, 0.9]], np.float32)
    augmented = augment(vectors, ids, scores, chosen)
    expected = [
        expand_query(vectors[0], vectors[[2]], np.array([0.5]), chosen),
        expand_query(vectors[1], vectors[[0]], np.array([0.6]), chosen),
        vectors[2],
    ]
    np.testing.assert_allclose(augmented, expected, atol=1e-6)


def test_nothing_to_augment_and_nothing_to_augment_with() -> None:
    none = augment(np.empty((0, 8), np.float32), np.empty((0, 4), int), np.empty((0, 4)), ExpansionSettings())
    assert none.shape == (0, 8)
    vectors = units(3)
    alone = augment(vectors, np.empty((3, 0), int), np.empty((3, 0)), ExpansionSettings())
    np.testing.assert_allclose(alone, vectors, atol=1e-6)


def test_a_vector_of_zeros_stays_zeros() -> None:
    vectors = np.zeros((2, 8), np.float32)
    assert not augment(vectors, *ranked(vectors, 2), ExpansionSettings()).any()


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    vectors, chosen = units(4), ExpansionSettings()
    with pytest.raises(BadInput, match="cannot expand"):
        expand_query(vectors[0], vectors[1:], np.ones(2), chosen)
    with pytest.raises(BadInput, match="cannot expand"):
        expand_query(vectors[0, :5], vectors[1:], np.ones(3), chosen)
    with pytest.raises(BadInput, match="cannot augment"):
        augment(vectors, np.zeros((4, 2), int), np.zeros((4, 3)), chosen)
    with pytest.raises(BadInput, match="neighbour 4 of 4"):
        augment(vectors, np.full((4, 1), 4), np.ones((4, 1)), chosen)
