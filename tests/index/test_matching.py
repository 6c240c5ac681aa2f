"""Matching: the definition, one-to-one, and the same bits whatever the order, the blocks and the threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from index import matching
from index.matching import match
from ingest.errors import BadInput
from ingest.sift import rootsift

ROUNDING = 1e-3  # of similarities, by the integers that stand for unit vectors


def sift(n: int, seed: int) -> np.ndarray:
    """Descriptors like SIFT's: mostly small numbers, some large ones."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.exponential(30, (n, 128)), 255).astype(np.uint8)


def two_views(n: int, seed: int, noise: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of two images: n in common, disturbed and in another order, and 40 of each alone."""
    rng = np.random.default_rng(seed)
    common = sift(n, seed)
    seen = np.clip(common + rng.normal(0, noise, common.shape), 0, 255).astype(np.uint8)
    first = np.concatenate([common, sift(40, seed + 1)])
    return first, rng.permutation(np.concatenate([seen, sift(40, seed + 2)]))


def floats(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def by_definition(a: np.ndarray, b: np.ndarray, ratio: float, slack: float) -> set[tuple[int, int]]:
    """Pairs that are alike, each other's nearest and pass both ratio tests, `slack` of similarity allowed."""
    a, b = (rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    similarities = a @ b.T
    pairs = set()
    for i, j in np.ndindex(similarities.shape):
        others = [np.delete(similarities[i], j), np.delete(similarities[:, j], i)]
        rivals = [max(line.max(initial=-1.0), -1.0) for line in others]
        distance = np.sqrt(max(2 - 2 * (similarities[i, j] + slack), 0))
        alike = similarities[i, j] + slack > 0
        if alike and all(distance < ratio * np.sqrt(max(2 - 2 * (rival - slack), 0)) for rival in rivals):
            pairs.add((i, j))
    return pairs


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in pairs}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(2, 12), st.floats(0.3, 1.0), st.integers(0, 10**6))
def test_it_finds_what_the_definition_says(n: int, m: int, d: int, ratio: float, seed: int) -> None:
    a, b = floats(n, d, seed), floats(m, d, seed + 1)
    found = as_set(match(a, b, ratio)[0])
    assert by_definition(a, b, ratio, -ROUNDING) <= found <= by_definition(a, b, ratio, ROUNDING)


@pytest.mark.parametrize("ratio", [0.7, 0.8, 0.9, 1.0])
def test_sift_is_compared_as_rootsift(ratio: float) -> None:
    a, b = two_views(60, seed=3, noise=25)
    pairs, similarities = match(a, b, ratio)
    left, right = rootsift(a), rootsift(b)
    np.testing.assert_allclose(
        similarities, (left[pairs[:, 0]] * right[pairs[:, 1]]).sum(axis=1), atol=ROUNDING
    )
    found = as_set(pairs)
    assert (
        by_definition(left, right, ratio, -ROUNDING) <= found <= by_definition(left, right, ratio, ROUNDING)
    )
    assert len(found) > 20


def test_common_descriptors_are_found_and_strangers_are_not() -> None:
    a, b = two_views(200, seed=5)
    pairs, similarities = match(a, b, 0.8)
    assert sorted(pairs[:, 0]) == list(range(200))
    assert pairs.dtype == np.int32
    assert similarities.dtype == np.float32
    assert (similarities > 0.9).all()
    assert (similarities <= 1).all()


@pytest.mark.parametrize("ratio", [0.8, 0.95, 1.0])
@pytest.mark.parametrize("kind", ["sift", "float"])
def test_each_descriptor_is_matched_once_at_most(kind: str, ratio: float) -> None:
    a, b = two_views(50, seed=2, noise=25) if kind == "sift" else (floats(120, 6, 0), floats(90, 6, 1))
    pairs, _ = match(a, b, ratio)
    assert len(pairs) > 5
    assert (np.diff(pairs[:, 0]) > 0).all()
    assert len(set(pairs[:, 1])) == len(pairs)


@pytest.mark.parametrize("kind", ["sift", "float"])
def test_swapping_the_images_swaps_the_columns(kind: str) -> None:
    a, b = two_views(150, seed=7, noise=40) if kind == "sift" else (floats(200, 9, 0), floats(150, 9, 1))
    pairs, similarities = match(a, b, 0.95)
    assert len(pairs) > 5
    swapped, swapped_similarities = match(b, a, 0.95)
    back = np.argsort(swapped[:, 1])
    np.testing.assert_array_equal(swapped[back][:, ::-1], pairs)
    np.testing.assert_array_equal(swapped_similarities[back], similarities)


@pytest.mark.parametrize("kind", ["sift", "float"])
def test_another_order_of_descriptors_changes_indices_alone(kind: str) -> None:
    a, b = two_views(300, seed=8, noise=40) if kind == "sift" else (floats(301, 64, 0), floats(257, 64, 1))
    rng = np.random.default_rng(0)
    new_a, new_b = rng.permutation(len(a)), rng.permutation(len(b))
    pairs, similarities = match(a, b, 0.95)
    assert len(pairs) > 5
    moved, moved_similarities = match(a[new_a], b[new_b], 0.95)
    as_before = np.column_stack([new_a[moved[:, 0]], new_b[moved[:, 1]]])
    order = np.argsort(as_before[:, 0])
    np.testing.assert_array_equal(as_before[order], pairs)
    np.testing.assert_array_equal(moved_similarities[order], similarities)


def test_the_number_of_threads_changes_no_bit() -> None:
    a, b = two_views(1400, seed=9, noise=40)
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            found.append(match(a, b, 1.0))
    assert len(found[0][0]) > 1000
    for pairs, similarities in found[1:]:
        np.testing.assert_array_equal(pairs, found[0][0])
        np.testing.assert_array_equal(similarities, found[0][1])


@pytest.mark.parametrize("d", [1, 2, 128, 2048])
def test_products_are_whole_numbers_that_float32_holds(d: int) -> None:
    extreme = np.concatenate([np.ones((1, d)), np.eye(1, d), -np.ones((1, d)), floats(5, d, 0)])
    whole = matching._integers(extreme.astype(np.float32)).astype(np.int64)
    assert (np.abs(whole) @ np.abs(whole).T).max() <= 2**24
    assert np.abs(whole).max() > 0


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two_views(300, seed=4, noise=40)
    pairs, similarities = match(a, b, 0.9)
    monkeypatch.setattr(matching, "_BLOCK_ROWS", 7)
    blocked, blocked_similarities = match(a, b, 0.9)
    np.testing.assert_array_equal(blocked, pairs)
    np.testing.assert_array_equal(blocked_similarities, similarities)


@pytest.mark.parametrize("ratio", [0.9, 1.0])
def test_a_tie_is_no_match_on_either_side(ratio: float) -> None:
    a, b = two_views(30, seed=6)
    partner = dict(as_set(match(a, b, ratio)[0]))[0]
    for first, second in ((np.concatenate([a, a[:1]]), b), (a, np.concatenate([b, b[[partner]]]))):
        assert 0 not in match(first, second, ratio)[0][:, 0]
    assert 0 in match(a, b, ratio)[0][:, 0]
    assert len(match(a, np.concatenate([a, a]), ratio)[0]) == 0


def test_what_is_not_alike_is_no_match_even_where_it_is_alone() -> None:
    one = np.array([[1, 0]], np.float32)
    assert len(match(one, one, 0.9)[0]) == 1
    for other in ([[0, 1]], [[-1, 0]], [[0, 0]]):
        assert len(match(one, np.array(other, np.float32), 0.9)[0]) == 0


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
def test_no_descriptors_no_matches(n: int, m: int, dtype: type) -> None:
    pairs, similarities = match(np.ones((n, 128), dtype), np.ones((m, 128), dtype), 0.9)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int32
    assert similarities.shape == (0,)
    assert similarities.dtype == np.float32


def test_floats_count_by_their_direction_in_any_precision() -> None:
    a, b = floats(80, 32, 0), floats(80, 32, 1)
    b[:40] = a[:40] + 0.1 * b[:40]
    pairs = as_set(match(a, b, 0.9)[0])
    assert pairs >= {(i, i) for i in range(40)}
    assert as_set(match(8 * a, b / 2, 0.9)[0]) == pairs
    assert as_set(match(a.astype(np.float16), b.astype(np.float16), 0.9)[0]) == pairs


def test_images_described_in_two_ways_cannot_be_matched() -> None:
    with pytest.raises(BadInput, match="described alike"):
        match(sift(3, 0), rootsift(sift(3, 0)), 0.9)
    with pytest.raises(BadInput, match="described alike"):
        match(floats(3, 4, 0), floats(3, 5, 0), 0.9)
    for ratio in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(BadInput, match="ratio"):
            match(sift(3, 0), sift(3, 1), ratio)
