"""Merging answers: the first k of the sorted union, in any order and any nesting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.merge import merge_topk
from ingest.errors import BadInput


def draw(count: int, seed: int, queries: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids, few distinct scores (so that there are ties), some results missing."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(10 * count)[:count] for _ in range(queries)]).astype(np.int64)
    scores = (rng.integers(-4, 5, (queries, count)) / 4).astype(np.float32)
    missing = rng.random((queries, count)) < 0.2
    return np.where(missing, np.float32(-1), scores), np.where(missing, -1, ids)


def cut(array: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(array, sorted(places), axis=1)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6))
def test_it_is_the_first_k_of_the_sorted_union(count: int, k: int, seed: int) -> None:
    scores, ids = draw(count, seed)
    best_scores, best_ids = merge_topk(cut(scores, [count // 3]), cut(ids, [count // 3]), k)
    for query in range(len(ids)):
        union = sorted((-s, i) for s, i in zip(scores[query], ids[query], strict=True) if i >= 0)[:k]
        found = [(-s, i) for s, i in zip(best_scores[query], best_ids[query], strict=True) if i >= 0]
        assert found == union
        rest = slice(len(union), k)
        assert (best_ids[query, rest] == -1).all()
        assert (best_scores[query, rest] == -1).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 24), max_size=5), st.integers(1, 30), st.randoms(), st.integers(0, 10**6))
def test_any_split_order_and_nesting_give_the_same(places: list[int], k: int, order, seed: int) -> None:
    scores, ids = draw(24, seed)
    expected = merge_topk([scores], [ids], k)
    answers = list(zip(cut(scores, places), cut(ids, places), strict=True))
    order.shuffle(answers)
    while len(answers) > 1:
        (s1, i1), (s2, i2) = answers.pop(), answers.pop()
        answers.insert(order.randrange(len(answers) + 1), merge_topk([s1, s2], [i1, i2], k))
    merged = merge_topk([answers[0][0]], [answers[0][1]], k)
    np.testing.assert_array_equal(merged[0], expected[0])
    np.testing.assert_array_equal(merged[1], expected[1])


def test_equal_scores_are_ordered_by_id() -> None:
    one, other = np.full((1, 2), 0.5, np.float32), np.full((1, 2), 0.5, np.float32)
    _, ids = merge_topk([one, other], [np.array([[9, 3]]), np.array([[2**62, 4]])], 3)
    assert ids.tolist() == [[3, 4, 9]]


def test_results_keep_their_types_and_an_empty_answer_is_one() -> None:
    nothing = np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int64)
    scores, ids = merge_topk([nothing[0]], [nothing[1]], 4)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    assert ids.tolist() == [[-1] * 4] * 2


def test_what_does_not_belong_together_is_refused() -> None:
    scores, ids = draw(5, 0)
    for arguments in (([], [], 3), ([scores], [ids[:, 1:]], 3), ([scores], [ids], 0)):
        with pytest.raises(BadInput):
            merge_topk(*arguments)
    with pytest.raises(BadInput, match="same number of queries"):
        merge_topk([scores, scores[:1]], [ids, ids[:1]], 3)
