"""Metrics: worked examples, laws, and parity with the Revisited benchmark's own figures."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.metrics import (
    average_precision,
    mean_average_precision,
    neighbour_recall,
    precision_at,
    ranks_of_positives,
    recall_at,
    revisited,
)
from ingest.errors import BadInput

GOLDEN = Path(__file__).parents[1] / "golden"
GROUND_TRUTH = Path(__file__).parents[2].parent / "shared" / "data" / "roxford_lopq"

some_ranks = st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True).map(
    lambda ranks: np.array(sorted(ranks))
)


def test_the_worked_example() -> None:
    ranks = np.array([0, 2, 5])
    assert average_precision(ranks, 3) == pytest.approx(0.6778, abs=5e-5)
    assert average_precision(ranks, 3, "rectangle") == pytest.approx(0.7222, abs=5e-5)


@pytest.mark.parametrize("rule", ["trapezoid", "rectangle"])
@given(n=st.integers(1, 50))
def test_a_perfect_ranking_has_one(rule: str, n: int) -> None:
    assert average_precision(np.arange(n), n, rule) == pytest.approx(1)


@settings(deadline=None)
@given(some_ranks)
def test_both_rules_are_the_area_under_the_curve(ranks: np.ndarray) -> None:
    n = len(ranks)
    relevant = np.zeros(ranks[-1] + 1)
    relevant[ranks] = 1
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    before = np.concatenate([[1.0], precision[:-1]])
    assert average_precision(ranks, n, "rectangle") == pytest.approx((precision * relevant).sum() / n)
    assert average_precision(ranks, n) == pytest.approx(((precision + before) / 2 * relevant).sum() / n)


@settings(deadline=None)
@given(some_ranks, st.integers(0, 5))
def test_a_positive_that_was_not_returned_counts_as_zero(ranks: np.ndarray, unreturned: int) -> None:
    n = len(ranks)
    expected = average_precision(ranks, n) * n / (n + unreturned)
    assert average_precision(ranks, n + unreturned) == pytest.approx(expected)


@settings(deadline=None)
@given(some_ranks)
def test_pushing_the_last_positive_back_never_helps(ranks: np.ndarray) -> None:
    worse = ranks.copy()
    worse[-1] += 7
    assert average_precision(worse, len(ranks)) <= average_precision(ranks, len(ranks))


def test_no_positives_and_impossible_ranks_are_refused() -> None:
    for ranks, n in (([], 0), ([0, 1], 1), ([3, 1], 2), ([1, 1], 2), ([-1, 0], 2)):
        with pytest.raises(BadInput):
            average_precision(np.array(ranks, int), n)


def test_queries_without_positives_are_left_out_of_the_mean() -> None:
    ranks = [np.array([0]), np.array([], int), np.array([], int)]
    assert mean_average_precision(ranks, [1, 0, 1]) == pytest.approx(0.5)
    with pytest.raises(BadInput, match="no query has a positive"):
        mean_average_precision([np.array([], int)], [0])


def test_junk_and_missing_results_take_no_rank() -> None:
    ranked = np.array([7, 3, 9, 5, 1, -1, -1])
    assert ranks_of_positives(ranked, np.array([9, 1, 100]), np.array([7, 5])).tolist() == [1, 2]
    assert ranks_of_positives(ranked, np.array([-1])).tolist() == []


def test_precision_stops_at_the_last_positive() -> None:
    assert precision_at(np.array([0, 2]), 2, 10) == pytest.approx(2 / 3)
    assert precision_at(np.array([0, 2]), 2, 2) == pytest.approx(1 / 2)
    assert precision_at(np.array([0, 2]), 3, 10) == pytest.approx(2 / 10)
    assert precision_at(np.array([], int), 2, 5) == 0


def test_recall_counts_queries_with_a_positive_among_the_first_k() -> None:
    ranks = [np.array([0, 8]), np.array([4]), np.array([], int), np.array([5])]
    assert [recall_at(ranks, k) for k in (1, 5, 6)] == [0.25, 0.5, 0.75]


def test_either_of_two_equal_neighbours_is_right() -> None:
    exact = np.array([[0.9, 0.5, 0.5, 0.1]])
    assert neighbour_recall(exact, np.array([[0.9, 0.5]]), 2) == 1
    assert neighbour_recall(exact, np.array([[0.9, 0.1]]), 2) == 0.5
    assert neighbour_recall(exact, np.array([[-np.inf, -np.inf]]), 2) == 0
    assert neighbour_recall(exact, np.array([[0.5, 0.5, 0.9]]), 3) == 1
    assert neighbour_recall(exact, np.array([[0.9 - 5e-7]]), 1) == 1
    assert neighbour_recall(exact, np.array([[0.9 - 5e-6]]), 1) == 0
    with pytest.raises(BadInput):
        neighbour_recall(exact, np.array([[0.9]]), 5)


def toy_truth() -> list[dict[str, list[int]]]:
    return [
        {"easy": [0], "hard": [1], "junk": [2]},
        {"easy": [], "hard": [3], "junk": []},
    ]


def test_difficulties_differ_in_what_is_junk() -> None:
    ranked = np.array([[2, 1, 4, 0, 3], [0, 3, 1, 2, 4]])
    easy, medium, hard = (revisited(ranked, toy_truth(), name) for name in ("easy", "medium", "hard"))
    assert easy.average_precisions[0] == pytest.approx(average_precision(np.array([1]), 1))
    assert np.isnan(easy.average_precisions[1])
    assert easy.mean_average_precision == easy.average_precisions[0]
    assert medium.average_precisions[0] == pytest.approx(average_precision(np.array([0, 2]), 2))
    assert hard.average_precisions.tolist() == pytest.approx([1.0, average_precision(np.array([1]), 1)])


class _NoClasses(pickle.Unpickler):
    """Reads lists, dicts and numbers; any class in the file is refused."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


@pytest.mark.shared
@pytest.mark.skipif(not GROUND_TRUTH.is_dir(), reason="needs ../shared/data/roxford_lopq")
@pytest.mark.parametrize("dataset", ["roxford5k", "rparis6k"])
def test_parity_with_the_benchmarks_own_evaluation(dataset: str) -> None:
    with (GROUND_TRUTH / f"gnd_{dataset}.pkl").open("rb") as file:
        truth = _NoClasses(file).load()
    ranked = seeded_ranking(dataset, truth["gnd"], len(truth["imlist"]))
    with np.load(GOLDEN / "revisited_metrics.npz") as golden:
        for letter, difficulty in (("E", "easy"), ("M", "medium"), ("H", "hard")):
            found = revisited(ranked, truth["gnd"], difficulty)
            stem = f"{dataset}_{letter}"
            assert found.mean_average_precision == pytest.approx(float(golden[f"{stem}_map"]), abs=1e-9)
            np.testing.assert_allclose(found.average_precisions, golden[f"{stem}_aps"], atol=1e-9)
            assert list(found.mean_precisions.values()) == pytest.approx(list(golden[f"{stem}_mpr"]))


def seeded_ranking(dataset: str, truth: list[dict[str, list[int]]], n: int) -> np.ndarray:
    """The ranking that the golden figures were computed from (tests/golden/seeded.py)."""
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scores = module.seeded(f"{dataset}_scores").standard_normal((n, len(truth)))
    for query, labels in enumerate(truth):
        for name, bonus in (("easy", 2), ("hard", 1), ("junk", 1.5)):
            scores[np.asarray(labels[name], int), query] += bonus
    return np.argsort(-scores, axis=0, kind="stable").T
