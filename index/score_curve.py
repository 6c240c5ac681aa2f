"""A logistic curve from scores to probabilities, fitted to pairs whose truth is known (Platt 1999).

    probability = 1 / (1 + exp(-(slope x score + intercept)))

Platt's smoothed targets, (n + 1) / (n + 2) for n pairs of one sort instead of 1, keep the curve finite where
the scores tell all pairs apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import BaseModel, ConfigDict, Field

from ingest.errors import BadInput

LEAST_PAIRS = 10  # of either sort: fewer tell nothing
_ROUNDS = 100


@dataclass(frozen=True)
class Pairs:
    """Answers whose truth is known.

    scores: (p,) float64, after all steps.
    same: (p,) whether query and answer show the same thing.
    queries: that they are answers to.
    """

    scores: Float64[np.ndarray, " p"]
    same: Bool[np.ndarray, " p"]
    queries: int


class Curve(BaseModel):
    """Probabilities of scores; a higher score never has a lower one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float = Field(gt=0)
    intercept: float

    def probabilities(self, scores: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
        return _logistic(self.slope * np.asarray(scores, np.float64) + self.intercept)


def fit_curve(pairs: Pairs) -> Curve:
    """The curve of most likelihood, by Newton's method with step halving (Lin, Lin and Weng 2007).

    Raises:
        BadInput: fewer than 10 pairs of either sort, scores that are not finite, or scores that do not rise
            with the truth.
    """
    same, different = int(pairs.same.sum()), int((~pairs.same).sum())
    if min(same, different) < LEAST_PAIRS:
        raise BadInput(
            f"{same} pairs of the same thing and {different} of different ones tell too little to calibrate "
            f"scores by: label images until there are {LEAST_PAIRS} of either sort"
        )
    centre, spread = float(pairs.scores.mean()), float(pairs.scores.std())
    if not np.isfinite(spread):
        raise BadInput("cannot calibrate by scores that are not finite: build the index again")
    x = (pairs.scores - centre) / (spread or 1.0)
    targets = np.where(pairs.same, (same + 1) / (same + 2), 1 / (different + 2))
    a, b = _most_likely(x, targets)
    if not a > 0 or not spread:
        raise BadInput(
            f"pairs of the same thing do not score higher than others ({len(x)} pairs), so the scores cannot "
            "be calibrated: look at the labels, or choose another recipe"
        )
    return Curve(slope=a / spread, intercept=b - a * centre / spread)


def _most_likely(x: Float64[np.ndarray, " p"], targets: Float64[np.ndarray, " p"]) -> tuple[float, float]:
    """Slope and intercept over standardised scores."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    share = targets.mean()
    found = np.array([0.0, np.log(share / (1 - share))])
    loss = _loss(design @ found, targets)
    for _ in range(_ROUNDS):
        said = _logistic(design @ found)
        gradient = design.T @ (said - targets)
        if np.abs(gradient).max() < 1e-9 * len(x):
            break
        curvature = (design * (said * (1 - said))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(_ROUNDS):
            tried = _loss(design @ (found - step), targets)
            if tried <= loss:
                break
            step = step / 2
        found, loss = found - step, tried
    return float(found[0]), float(found[1])


def _loss(logits: Float64[np.ndarray, " p"], targets: Float64[np.ndarray, " p"]) -> float:
    """The negative logarithm of the likelihood."""
    return float(np.sum(np.logaddexp(0, logits) - targets * logits))


def _logistic(logits: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    probabilities: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return probabilities
