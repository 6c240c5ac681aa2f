"""Logistic curves over scores: what likelihood wants, monotone, and the truth found again."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from index.score_curve import Curve, Pairs, fit_curve
from ingest.errors import BadInput


def drawn(slope: float, intercept: float, n: int, seed: int) -> Pairs:
    """Pairs whose truth follows a curve."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 2, n)
    truth = 1 / (1 + np.exp(-(slope * scores + intercept)))
    return Pairs(scores, rng.uniform(size=n) < truth, queries=n // 10)


def pairs(scores: list[float], same: list[bool]) -> Pairs:
    return Pairs(np.array(scores, np.float64), np.array(same, bool), 1)


def loss(slope: float, intercept: float, given: Pairs) -> float:
    """Platt's, naively: a sum over pairs."""
    n, m = int(given.same.sum()), int((~given.same).sum())
    total = 0.0
    for score, same in zip(given.scores.tolist(), given.same.tolist(), strict=True):
        target = (n + 1) / (n + 2) if same else 1 / (m + 2)
        p = 1 / (1 + math.exp(-(slope * score + intercept)))
        total -= target * math.log(p) + (1 - target) * math.log(1 - p)
    return total


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, 0.0), (8.0, -4.0), (16.0, -6.5), (5.0, 3.0)])
def test_the_curve_that_pairs_were_drawn_from_is_found_again(slope: float, intercept: float) -> None:
    found = fit_curve(drawn(slope, intercept, 40_000, seed=1))
    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.intercept == pytest.approx(intercept, abs=0.05 * slope)


@settings(deadline=None, max_examples=30)
@given(st.floats(1, 10), st.floats(-3, 3), st.integers(0, 10**6))
def test_no_other_curve_nearby_is_likelier(slope: float, intercept: float, seed: int) -> None:
    given_pairs = drawn(slope, intercept, 200, seed)
    assume(20 < given_pairs.same.sum() < 180)
    found = fit_curve(given_pairs)
    least = loss(found.slope, found.intercept, given_pairs)
    for change in (0.99, 1.01):
        assert loss(found.slope * change, found.intercept, given_pairs) > least
        assert loss(found.slope, found.intercept + change - 1, given_pairs) > least


@settings(deadline=None, max_examples=100)
@given(
    st.floats(0.01, 100),
    st.floats(-50, 50),
    st.lists(st.floats(-5, 5), min_size=2, max_size=20),
)
def test_a_higher_score_never_has_a_lower_probability(
    slope: float, intercept: float, scores: list[float]
) -> None:
    said = Curve(slope=slope, intercept=intercept).probabilities(np.sort(np.array(scores)))
    assert (np.diff(said) >= 0).all()
    assert ((said >= 0) & (said <= 1)).all()


def test_scores_that_tell_all_pairs_apart_give_a_finite_curve() -> None:
    found = fit_curve(pairs([0.1] * 50 + [0.9] * 50, [False] * 50 + [True] * 50))
    said = found.probabilities(np.array([0.1, 0.9]))
    np.testing.assert_allclose(said, [1 / 52, 51 / 52], atol=1e-6)  # Platt's targets, exactly


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 100), st.floats(-100, 100), st.integers(0, 1000))
def test_the_unit_of_scores_does_not_matter(scale: float, shift: float, seed: int) -> None:
    given_pairs = drawn(4.0, -1.0, 400, seed)
    moved = Pairs(given_pairs.scores * scale + shift, given_pairs.same, given_pairs.queries)
    at = np.linspace(-1, 2, 7)
    np.testing.assert_allclose(
        fit_curve(given_pairs).probabilities(at),
        fit_curve(moved).probabilities(at * scale + shift),
        atol=1e-5,
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_the_order_of_pairs_does_not_matter(seed: int) -> None:
    given_pairs = drawn(4.0, -1.0, 300, seed)
    order = np.random.default_rng(seed).permutation(300)
    shuffled = Pairs(given_pairs.scores[order], given_pairs.same[order], given_pairs.queries)
    one, other = fit_curve(given_pairs), fit_curve(shuffled)
    assert one.slope == pytest.approx(other.slope, rel=1e-6)
    assert one.intercept == pytest.approx(other.intercept, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("given_pairs", "message"),
    [
        (pairs([], []), "0 pairs of the same thing and 0"),
        (pairs([0.5] * 9 + [0.1] * 50, [True] * 9 + [False] * 50), "9 pairs of the same thing and 50"),
        (pairs([0.5] * 50 + [0.1] * 9, [True] * 50 + [False] * 9), "50 pairs of the same thing and 9"),
        (pairs([0.1] * 20 + [0.9] * 20, [True] * 20 + [False] * 20), "do not score higher"),
        (pairs([0.5] * 40, [True, False] * 20), "do not score higher"),
        (pairs([float("nan")] * 20 + [0.9] * 20, [True] * 20 + [False] * 20), "not finite"),
    ],
)
def test_pairs_that_tell_nothing_are_refused(given_pairs: Pairs, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fit_curve(given_pairs)
