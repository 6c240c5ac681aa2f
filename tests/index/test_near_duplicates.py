"""Near-duplicates: single linkage, by brute force, and what a threshold does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.near_duplicates import groups
from index.projection import l2_normalised
from ingest.errors import BadInput


def clustered(n: int, seed: int, d: int = 3) -> np.ndarray:
    """Unit vectors in few dimensions: any threshold links some of them, often by chains."""
    return l2_normalised(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


def brute_force(vectors: np.ndarray, threshold: float) -> list[int]:
    """Groups are united, pair by pair, until no linked pair is apart."""
    of = list(range(len(vectors)))
    changed = True
    while changed:
        changed = False
        for i in range(len(vectors)):
            for j in range(len(vectors)):
                if of[i] != of[j] and vectors[i].astype(np.float64) @ vectors[j] >= threshold - 1e-6:
                    least = min(of[i], of[j])
                    of[i] = of[j] = least
                    changed = True
    return of


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 25), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_groups_are_those_of_single_linkage(n: int, threshold: float, seed: int) -> None:
    vectors = clustered(n, seed)
    similarities = vectors.astype(np.float64) @ vectors.T
    if (np.abs(similarities - threshold + 1e-6) < 1e-6).any():
        return  # which side of the threshold it is on is up to rounding
    assert groups(vectors, threshold).tolist() == brute_force(vectors, threshold)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(20)), st.floats(0.5, 0.99), st.integers(0, 10**6))
def test_another_order_gives_the_same_groups(order: list[int], threshold: float, seed: int) -> None:
    vectors = clustered(20, seed)
    before, after = groups(vectors, threshold), groups(vectors[order], threshold)
    together = before[:, None] == before
    assert np.array_equal(together[np.ix_(order, order)], after[:, None] == after)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 1), st.floats(0.05, 1), st.integers(0, 10**6))
def test_a_higher_threshold_only_splits_groups(one: float, other: float, seed: int) -> None:
    vectors = clustered(20, seed)
    coarse, fine = groups(vectors, min(one, other)), groups(vectors, max(one, other))
    together = fine[:, None] == fine
    assert (coarse[:, None] == coarse)[together].all()


def test_each_group_is_named_by_its_first_row() -> None:
    a, b, c = np.eye(3, dtype=np.float32)
    found = groups(np.stack([a, b, a, c, b, a]), 0.9)
    assert found.tolist() == [0, 1, 0, 3, 1, 0]
    assert found.dtype == np.int64


def test_a_chain_of_small_changes_is_one_group() -> None:
    angles = np.linspace(0, np.pi / 2, 40)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert vectors[0] @ vectors[-1] == pytest.approx(0, abs=1e-6)
    assert set(groups(vectors, 0.99)) == {0}


def test_equal_vectors_are_duplicates_at_the_highest_threshold() -> None:
    vectors = np.repeat(clustered(200, 0, 128), 2, axis=0)
    assert groups(vectors, 1.0).tolist() == [2 * (row // 2) for row in range(400)]


def test_images_without_features_repeat_nothing() -> None:
    assert groups(np.zeros((4, 8), np.float32), 0.001).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_cannot_be_is_refused(threshold: float) -> None:
    with pytest.raises(BadInput, match="above 0, up to 1"):
        groups(clustered(3, 0), threshold)
