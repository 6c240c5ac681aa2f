"""Geometric verification: do two images show the same plane, seen from two places?

Matched key points are fitted with one homography or affinity, robustly (RANSAC, Fischler and Bolles 1981, as
in spatial verification by Philbin et al. 2007), and what agrees with it is counted. A fit that no camera
could have seen, or that the points do not determine, is refused.

Cost of a pair at 1,500 key points, one thread: the matching's 6 ms, and 0.5 ms, or 0.8 where nothing fits.
Measured on DVD covers (300 queries, 30 candidates each) and on 20 pairs of planar scenes, the members of
OpenCV's USAC family (default, accurate, MAGSAC, fast; also scores, local optimisations, polishers by name)
agree within .002 of mAP, 0.5 pixels of corner error and a factor of two in time; the older RANSAC does as
well in 12 ms. What is used is USAC_DEFAULT's choice, spelled out so that the seed is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from pydantic import BaseModel, ConfigDict, Field

from index.matching import match

# Bounds, in pixels of the images as described. True pairs of the planar scenes (to 60 degrees of tilt, 2.8 of
# zoom) and of the DVD covers stay within scales of 0.3 to 2.7, changes of 2.4 and stretches of 4.4; fits to
# chance have medians of 5 (or 0.13), 40 and 30.
_MAX_SCALE = 8.0  # of lengths: of an image of 640 pixels SIFT finds next to nothing in one of 80
_MAX_CHANGE = 4.0  # largest scale among the inliers over the least: how strong the perspective is
_MAX_STRETCH = 6.0  # scale along one direction over that across: 80 degrees of tilt; SIFT gives up before

Model = Literal["homography", "affine"]


class GeometrySettings(BaseModel):
    """How candidates are verified, and what agreement is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["geometry"] = "geometry"
    reads: str = Field(
        default="local",
        min_length=1,
        description="the stored features that hold keypoints and descriptors; one read an image looked at",
    )
    depth: int = Field(
        default=30,
        ge=1,
        description="candidates looked at, the best first; about 6 ms each for 1,500 key points, and a read "
        "of 220 KB",
    )
    ratio: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="ratio test: a match's distance over that to the second nearest, in either direction, "
        "must be below; higher finds more, wrong ones too, which the fit sorts out",
    )
    model: Model = Field(
        default="homography",
        description="homography: a plane seen in perspective, 4 matches fix it. affine: seen from afar, 3 do",
    )
    threshold: float = Field(
        default=3.0,
        gt=0,
        description="pixels of the image as described (after reduction to features.decode.longest_side) by "
        "which a match may miss its place in either image",
    )
    confidence: float = Field(
        default=0.999,
        gt=0,
        lt=1,
        description="probability, by the share of inliers seen so far, at which the search for a better fit "
        "stops early",
    )
    iterations: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="most fits tried; 2,000 find a homography that a fifth of the matches obey with a "
        "probability of .96; 50,000 take 2 ms more where nothing fits",
    )
    min_inliers: int = Field(
        default=8,
        ge=4,
        description="matches that must agree, or the candidate gains nothing; of 3,000 pairs of photographs "
        "of different things none had more than 6",
    )
    weight: float = Field(default=0.01, ge=0, description="what each inlier adds to the similarity")
    cap: int = Field(
        default=75,
        ge=1,
        description="inliers that count at most: beyond it, a shared background would outrank the object",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="draws the matches that fits are tried on")


@dataclass(frozen=True)
class Verification:
    """What the look at one candidate found.

    inliers: (m, 2) int32, rows of the query's and of the candidate's keypoints that the model maps onto each
        other, by row of the query; empty where there is no model.
    matches: one-to-one matches that the model was fitted to.
    model: (3, 3) float64, from query to candidate in pixels of the originals, on columns (x, y, 1); scaled
        so that the third coordinate is 1 at the mean of the query's inliers. None where nothing, or nothing
        possible, was found.
    added: what the candidate's similarity gains: weight x min(inliers, cap), or 0.
    """

    inliers: Int32[np.ndarray, "m 2"]
    matches: int
    model: Float64[np.ndarray, "3 3"] | None
    added: float


def verify(
    query: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    settings: GeometrySettings,
    query_scale: float = 1.0,
    candidate_scale: float = 1.0,
) -> Verification:
    """Matches two images' local features and fits a model to them.

    The result is the same at any number of threads. Permuting an image's features changes nothing but the
    row numbers (floating-point descriptors: as far as rounding allows). Swapping query and candidate leaves
    matches as they are, and the model inverse but for the last inliers near the threshold.

    Args:
        query, candidate: `keypoints` (n, 2) float32, (x, y) in pixels of the original, the centre of the
            top-left pixel (0, 0); `descriptors` (n, d) as `index.matching.match` takes them.
        query_scale, candidate_scale: pixels of the original a pixel of the image as described, 1 or more
            (`width of the original / width of Decoded.pixels`).
    """
    pairs, similarities = match(query["descriptors"], candidate["descriptors"], settings.ratio)
    return verify_matches(
        query["keypoints"],
        candidate["keypoints"],
        pairs,
        similarities,
        settings,
        query_scale,
        candidate_scale,
    )


def verify_matches(
    query: Float32[np.ndarray, "n 2"],
    candidate: Float32[np.ndarray, "m 2"],
    pairs: Int32[np.ndarray, "p 2"],
    similarities: Float32[np.ndarray, "p"],
    settings: GeometrySettings,
    query_scale: float = 1.0,
    candidate_scale: float = 1.0,
) -> Verification:
    """As `verify`, with key points and the matches between them given.

    A place counts once: of the matches of key points at one place (SIFT gives some several orientations)
    the most similar is kept. An inlier misses its place by less than `threshold` in both images.
    """
    pairs = _in_fixed_order(query, candidate, pairs, similarities)
    a = _as_described(query[pairs[:, 0]], query_scale)
    b = _as_described(candidate[pairs[:, 1]], candidate_scale)
    if len(pairs) < settings.min_inliers:
        return _nothing(len(pairs))
    model = _fitted(a, b, settings)
    if model is None:
        return _nothing(len(pairs))
    inliers = _inliers(model, a, b, settings.threshold)
    if inliers.sum() < settings.min_inliers or not _possible(model, a[inliers], b[inliers], settings):
        return _nothing(len(pairs))
    found = pairs[inliers]
    return Verification(
        inliers=found[np.argsort(found[:, 0])],
        matches=len(pairs),
        model=_in_originals(model, a[inliers], query_scale, candidate_scale),
        added=settings.weight * min(len(found), settings.cap),
    )


def _nothing(matches: int) -> Verification:
    return Verification(np.empty((0, 2), np.int32), matches, None, 0.0)


def _in_fixed_order(
    query: Float32[np.ndarray, "n 2"],
    candidate: Float32[np.ndarray, "m 2"],
    pairs: Int32[np.ndarray, "p 2"],
    similarities: Float32[np.ndarray, "p"],
) -> Int32[np.ndarray, "q 2"]:
    """The matches, one a place, by place: so that the draw of samples depends on no numbering of rows."""
    a, b = query[pairs[:, 0]], candidate[pairs[:, 1]]
    pairs = pairs[np.lexsort((b[:, 1], b[:, 0], a[:, 1], a[:, 0], -similarities))]
    kept = np.intersect1d(_first_of_each(query[pairs[:, 0]]), _first_of_each(candidate[pairs[:, 1]]))
    pairs = pairs[kept]
    a = query[pairs[:, 0]]
    return pairs[np.lexsort((a[:, 1], a[:, 0]))]


def _first_of_each(points: Float32[np.ndarray, "p 2"]) -> Int64[np.ndarray, "q"]:
    """The rows at which each distinct point stands first."""
    places = np.ascontiguousarray(points, np.float32).view(np.int64).ravel()
    return np.unique(places, return_index=True)[1]


def _as_described(points: Float32[np.ndarray, "n 2"], scale: float) -> Float64[np.ndarray, "n 2"]:
    """Points of the original in pixels of the image as described (`Decoded.to_original`, undone)."""
    return (points.astype(np.float64) + 0.5) / scale - 0.5


def _fitted(
    a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "n 2"], settings: GeometrySettings
) -> Float64[np.ndarray, "3 3"] | None:
    """The model that most matches agree with, from a to b; None if OpenCV finds none."""
    import cv2

    parameters = _parameters(settings)
    if settings.model == "homography":
        model, _ = cv2.findHomography(a, b, parameters)
    else:
        model, _ = cv2.estimateAffine2D(a, b, parameters)
        model = None if model is None else np.vstack([model, (0.0, 0.0, 1.0)])
    if model is None or not abs(np.linalg.det(model)) > np.finfo(float).tiny:  # which NaN is not either
        return None
    return np.asarray(model, np.float64)


def _parameters(settings: GeometrySettings) -> Any:
    import cv2

    parameters = cv2.UsacParams()
    parameters.threshold = settings.threshold
    parameters.confidence = settings.confidence
    parameters.maxIterations = settings.iterations
    parameters.randomGeneratorState = settings.seed
    parameters.isParallel = False  # which would make results depend on threads
    parameters.sampler = cv2.SAMPLING_UNIFORM
    parameters.score = cv2.SCORE_METHOD_MSAC
    parameters.loMethod = cv2.LOCAL_OPTIM_INNER_AND_ITER_LO
    parameters.final_polisher = cv2.LSQ_POLISHER
    parameters.final_polisher_iterations = 3
    return parameters


def _mapped(
    model: Float64[np.ndarray, "3 3"], points: Float64[np.ndarray, "n 2"]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n"]]:
    """Where the model takes points, and their third coordinates before the division."""
    mapped = points @ model[:, :2].T + model[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return mapped[:, :2] / mapped[:, 2:], mapped[:, 2]


def _inliers(
    model: Float64[np.ndarray, "3 3"],
    a: Float64[np.ndarray, "n 2"],
    b: Float64[np.ndarray, "n 2"],
    threshold: float,
) -> Bool[np.ndarray, "n"]:
    """Which matches have both transfer errors, there and back, below the threshold.

    OpenCV looks at the first alone, by which a model that shrinks everything to a point has no outliers.
    """
    there = np.hypot(*(_mapped(model, a)[0] - b).T)
    back = np.hypot(*(_mapped(np.linalg.inv(model), b)[0] - a).T)
    close: np.ndarray = (there < threshold) & (back < threshold)
    return close


def _possible(
    model: Float64[np.ndarray, "3 3"],
    a: Float64[np.ndarray, "n 2"],
    b: Float64[np.ndarray, "n 2"],
    settings: GeometrySettings,
) -> bool:
    """Whether the inliers determine the model, and a camera could have seen what it does to them.

    The model's derivative at each inlier must keep orientation (a reflection has a negative determinant, as
    have points on the two sides of the horizon, one of them), and stay within the bounds above.
    """
    if min(_thickness(a), _thickness(b)) < settings.threshold:
        return False
    mapped, w = _mapped(model, a)
    derivative = (model[:2, :2] - mapped[:, :, None] * model[2, :2]) / w[:, None, None]
    area = derivative[:, 0, 0] * derivative[:, 1, 1] - derivative[:, 0, 1] * derivative[:, 1, 0]
    if (area <= 0).any():
        return False
    scale = np.sqrt(area)
    # With singular values s >= t: s^2 + t^2 is the sum of squares, and s t the area.
    half = (derivative**2).sum(axis=(1, 2)) / (2 * area)
    stretch = half + np.sqrt(np.maximum(half**2 - 1, 0))
    return bool(
        scale.min() >= 1 / _MAX_SCALE
        and scale.max() <= _MAX_SCALE
        and scale.max() <= _MAX_CHANGE * scale.min()
        and stretch.max() <= _MAX_STRETCH
    )


def _thickness(points: Float64[np.ndarray, "n 2"]) -> float:
    """How far points are from lying on a line, or at one place: the standard deviation, in pixels, across
    the line that fits them best; the least of those with any one point left out.

    With all points but one on a line, neither model is determined (or by that one point alone): then the
    thickness is that of the line.
    """
    n = len(points)
    x, y = (points - points.mean(axis=0)).T
    mean_x, mean_y = -x / (n - 1), -y / (n - 1)  # of the others
    var_x = (x @ x - x**2) / (n - 1) - mean_x**2
    var_y = (y @ y - y**2) / (n - 1) - mean_y**2
    covariance = (x @ y - x * y) / (n - 1) - mean_x * mean_y
    across = (var_x + var_y) / 2 - np.hypot((var_x - var_y) / 2, covariance)
    return float(np.sqrt(max(across.min(), 0.0)))


def _in_originals(
    model: Float64[np.ndarray, "3 3"],
    a: Float64[np.ndarray, "n 2"],
    query_scale: float,
    candidate_scale: float,
) -> Float64[np.ndarray, "3 3"]:
    """The model between originals, its third coordinate 1 at the mean of points a."""
    moved = np.linalg.inv(_to_described(candidate_scale)) @ model @ _to_described(query_scale)
    w: float = model[2, :2] @ a.mean(axis=0) + model[2, 2]
    return np.asarray(moved / w, np.float64)


def _to_described(scale: float) -> Float64[np.ndarray, "3 3"]:
    shift = 0.5 / scale - 0.5
    return np.array([[1 / scale, 0, shift], [0, 1 / scale, shift], [0, 0, 1]])
