"""Several query vectors as one: Rocchio's formula, and what cancels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.combine import combine
from index.projection import l2_normalised
from ingest.errors import BadInput


def units(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return l2_normalised(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(0, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_it_is_the_mean_of_positives_less_weighted_negatives(
    n: int, m: int, weight: float, seed: int
) -> None:
    rows = units(n + m, seed=seed)
    positives, negatives = rows[:n], rows[n:]
    expected = np.zeros(8)
    for row in positives:
        expected += row.astype(np.float64) / n
    for row in negatives:
        expected -= weight * row.astype(np.float64) / m
    found = combine(positives, negatives, weight)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_one_positive_alone_stays_as_it_is_to_the_bit() -> None:
    for seed in range(50):
        vector = units(1, 128, seed)
        assert combine(vector).tobytes() == vector[0].tobytes()
        assert combine(vector, np.empty((0, 128), np.float32)).tobytes() == vector[0].tobytes()


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(5)), st.permutations(range(3)), st.integers(0, 10**6))
def test_the_order_of_the_images_does_not_matter(one: list[int], other: list[int], seed: int) -> None:
    rows = units(8, seed=seed)
    positives, negatives = rows[:5], rows[5:]
    np.testing.assert_allclose(
        combine(positives, negatives), combine(positives[one], negatives[other]), atol=1e-6
    )


def test_a_negative_is_less_like_the_combined_query_than_without_it() -> None:
    positive, negative = np.abs(units(2, 8))
    combined = combine(positive[None], negative[None])
    assert combined @ negative < positive @ negative
    assert combined @ positive > 0.9


def test_negatives_that_cancel_the_positives_are_left_out() -> None:
    positives = units(1)
    np.testing.assert_allclose(combine(positives, positives, negative_weight=1.0), positives[0], atol=1e-6)


def test_positives_that_cancel_each_other_ask_for_the_first() -> None:
    (vector,) = units(1)
    opposed = np.stack([vector, -vector])
    assert np.array_equal(combine(opposed), vector)
    assert np.array_equal(combine(np.zeros((2, 8), np.float32)), np.zeros(8, np.float32))


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        (np.empty((0, 8), np.float32), np.ones((1, 8), np.float32)),
        (np.ones((1, 8), np.float32), np.ones((1, 4), np.float32)),
        (np.ones(8, np.float32), np.ones((1, 8), np.float32)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(positives: np.ndarray, negatives: np.ndarray) -> None:
    with pytest.raises(BadInput, match="at least one positive"):
        combine(positives, negatives)
