"""Geometric verification: known planes come back, impossible ones do not, and numbering does not matter."""

from pathlib import Path

import numpy as np
import pytest

from index.geometry import GeometrySettings, Verification, verify, verify_matches
from index.matching import match
from ingest.decode import Decoded, DecodeSettings, decode
from ingest.sift import SiftSettings, describe

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, of NaN and division by zero

OXFORD = Path(__file__).parents[3] / "shared" / "data" / "oxford_affine"

SIDE = 600.0
CORNERS = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]])
TILTED = np.array([[0.9, 0.2, 30.0], [-0.15, 1.1, 20.0], [3e-4, -1e-4, 1.0]])
SLANTED = np.array([[0.8, 0.3, -40.0], [-0.2, 1.2, 15.0], [0, 0, 1]])
TRUTH = {"homography": TILTED, "affine": SLANTED}
MODELS = ["homography", "affine"]


def mapped(model: np.ndarray, points: np.ndarray) -> np.ndarray:
    columns = model @ np.column_stack([points, np.ones(len(points))]).T
    places: np.ndarray = (columns[:2] / columns[2]).T
    return places


def scene(
    model: np.ndarray, inliers: int = 80, outliers: int = 80, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Key points of two images, row i of one matched with row i of the other; the outliers come last."""
    rng = np.random.default_rng(seed)
    query = rng.uniform(0, SIDE, (inliers + outliers, 2))
    candidate = mapped(model, query) + rng.normal(0, noise, query.shape)
    candidate[inliers:] = rng.uniform(0, SIDE, (outliers, 2))
    return query.astype(np.float32), candidate.astype(np.float32)


def looked_at(
    query: np.ndarray, candidate: np.ndarray, scales: tuple[float, float] = (1.0, 1.0), **chosen: object
) -> Verification:
    """Row i of one image verified against row i of the other."""
    pairs = np.column_stack([np.arange(len(query))] * 2).astype(np.int32)
    similarities = np.linspace(1, 0.5, len(query), dtype=np.float32)
    points = np.asarray(query, np.float32), np.asarray(candidate, np.float32)
    settings = GeometrySettings.model_validate(chosen)
    return verify_matches(*points, pairs, similarities, settings, *scales)


def corner_error(found: np.ndarray | None, truth: np.ndarray) -> float:
    assert found is not None
    return float(np.linalg.norm(mapped(found, CORNERS) - mapped(truth, CORNERS), axis=1).mean())


def is_refused(verification: Verification) -> bool:
    assert (verification.model is None) == (len(verification.inliers) == 0)
    assert (verification.model is None) == (verification.added == 0)
    assert verification.inliers.shape[1:] == (2,)
    assert verification.inliers.dtype == np.int32
    return verification.model is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("outliers", [0, 80, 160])
def test_a_known_model_is_recovered_from_among_outliers(model: str, outliers: int) -> None:
    found = looked_at(*scene(TRUTH[model], 80, outliers), model=model)
    assert corner_error(found.model, TRUTH[model]) < 1.0
    assert found.matches == 80 + outliers
    rows = found.inliers[:, 0]
    assert (np.diff(rows) > 0).all()
    assert set(range(80)) <= set(rows)  # six standard deviations of noise
    assert (rows >= 80).sum() <= 0.02 * outliers  # chance puts a few in their place


@pytest.mark.parametrize("model", MODELS)
def test_inliers_are_what_the_model_maps_onto_each_other_in_both_images(model: str) -> None:
    scales = (2.0, 3.0)
    query, candidate = scene(TRUTH[model], noise=1.5)
    found = looked_at(2 * query, 3 * candidate, scales, model=model, threshold=2.5)
    assert found.model is not None
    there = np.linalg.norm(mapped(found.model, 2 * query) - 3 * candidate, axis=1) / 3
    back = np.linalg.norm(mapped(np.linalg.inv(found.model), 3 * candidate) - 2 * query, axis=1) / 2
    expected = np.flatnonzero((there < 2.5) & (back < 2.5))
    np.testing.assert_array_equal(found.inliers, np.column_stack([expected, expected]))
    assert 40 < len(expected) < 80


def test_a_homography_is_scaled_to_one_at_the_inliers_mean() -> None:
    query, candidate = scene(TILTED)
    for scale in (1.0, 3.0):
        found = looked_at(scale * query, candidate, (scale, 1.0))
        assert found.model is not None
        mean = (scale * query)[found.inliers[:, 0]].mean(axis=0, dtype=np.float64)
        assert found.model[2] @ (*mean, 1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_another_numbering_of_key_points_changes_nothing_else(model: str) -> None:
    query, candidate = scene(TRUTH[model], 60, 140, noise=1.0)
    rng = np.random.default_rng(1)
    to_query, to_candidate = rng.permutation(200), rng.permutation(200)
    settings = GeometrySettings.model_validate({"model": model})
    rows = np.arange(200)
    pairs = np.column_stack([rows, rows]).astype(np.int32)
    similarities = np.linspace(1, 0.5, 200, dtype=np.float32)
    before = verify_matches(query, candidate, pairs, similarities, settings)
    # Row r of the query is now row to_query[r], and its match has moved with it; the list is shuffled too.
    renumbered = np.column_stack([to_query, to_candidate]).astype(np.int32)
    shuffled = rng.permutation(200)
    after = verify_matches(
        query[np.argsort(to_query)],
        candidate[np.argsort(to_candidate)],
        renumbered[shuffled],
        similarities[shuffled],
        settings,
    )
    assert before.model is not None
    np.testing.assert_array_equal(after.model, before.model)
    moved = {(int(to_query[i]), int(to_candidate[j])) for i, j in before.inliers}
    assert {(int(i), int(j)) for i, j in after.inliers} == moved
    assert (after.matches, after.added) == (before.matches, before.added)


@pytest.mark.parametrize("model", MODELS)
def test_swapping_the_images_gives_the_inverse_but_for_the_last_inliers(model: str) -> None:
    query, candidate = scene(TRUTH[model], noise=1.2)
    one, other = looked_at(query, candidate, model=model), looked_at(candidate, query, model=model)
    assert one.matches == other.matches
    ours, theirs = set(one.inliers[:, 0]), set(other.inliers[:, 0])
    assert len(ours & theirs) >= 0.95 * len(ours | theirs)
    assert other.model is not None
    assert corner_error(one.model, np.linalg.inv(other.model)) < 1.5


def test_threads_and_other_peoples_random_numbers_change_no_bit() -> None:
    import cv2

    scenes = [scene(TILTED, 35, 165, noise=2.5, seed=seed) for seed in range(60)]
    before, found = cv2.getNumThreads(), []
    try:
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            cv2.setRNGSeed(threads)
            found.append([looked_at(*each).model for each in scenes])
    finally:
        cv2.setNumThreads(before)
    assert sum(model is not None for model in found[0]) > 10
    for models in found[1:]:
        for model, first in zip(models, found[0], strict=True):
            np.testing.assert_array_equal(model, first)


def test_the_seed_draws_the_samples() -> None:
    query, candidate = scene(TILTED, 30, 170, noise=1.5)
    models = [looked_at(query, candidate, seed=seed, iterations=60).model for seed in range(10)]
    assert len({None if model is None else model.tobytes() for model in models}) > 1


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_the_threshold_counts_pixels_of_the_image_as_described(scale: float) -> None:
    """The same scene in originals `scale` times as large, through the frames that the decoder defines."""
    query, candidate = scene(TILTED, noise=1.0)
    small = looked_at(query, candidate)
    side = int(SIDE * scale)
    picture = Decoded(np.zeros((int(SIDE), int(SIDE), 3), np.uint8), side, side, (0, 0, side, side))
    large_query, large_candidate = picture.to_original(query), picture.to_original(candidate)
    large = looked_at(large_query, large_candidate, (scale, scale))
    np.testing.assert_array_equal(large.inliers, small.inliers)
    assert small.model is not None
    assert large.model is not None
    expected = picture.to_original(mapped(small.model, CORNERS).astype(np.float32))
    np.testing.assert_allclose(
        mapped(large.model, picture.to_original(CORNERS.astype(np.float32))), expected, atol=0.01
    )
    unscaled = looked_at(large_query, large_candidate)
    assert len(unscaled.inliers) < 0.9 * len(small.inliers)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_too_few_matches_say_nothing(model: str, n: int) -> None:
    query, candidate = scene(TRUTH[model], n, 0, noise=0)
    found = looked_at(query, candidate, model=model)
    assert is_refused(found)
    assert found.matches == n


@pytest.mark.parametrize("model", MODELS)
def test_as_many_as_asked_for_are_enough(model: str) -> None:
    query, candidate = scene(TRUTH[model], 8, 0, noise=0)
    assert len(looked_at(query, candidate, model=model).inliers) == 8
    assert is_refused(looked_at(query, candidate, model=model, min_inliers=9))
    corners = np.concatenate([CORNERS[:3], [[90.0, 400.0]]])
    found = looked_at(corners, mapped(TRUTH[model], corners), model=model, min_inliers=4)
    assert corner_error(found.model, TRUTH[model]) < 0.1


def test_a_place_counts_once_however_many_key_points_it_has() -> None:
    query, candidate = scene(TILTED, 9, 0, noise=0)
    thrice = looked_at(np.repeat(query[:7], 3, axis=0), np.repeat(candidate[:7], 3, axis=0))
    assert thrice.matches == 7
    assert is_refused(thrice)
    one_place = np.full_like(candidate, 5)
    assert looked_at(query, one_place).matches == looked_at(one_place, query).matches == 1


def test_of_matches_at_one_place_the_most_similar_is_kept() -> None:
    query, candidate = (np.repeat(points, 3, axis=0) for points in scene(TILTED, 9, 0, noise=0))
    pairs = np.column_stack([np.arange(27)] * 2).astype(np.int32)
    similarities = np.tile(np.array([0.5, 0.6, 0.9, 0.9, 0.5, 0.6], np.float32), 5)[:27]
    found = verify_matches(query, candidate, pairs, similarities, GeometrySettings())
    assert found.inliers[:, 0].tolist() == [2, 3, 8, 9, 14, 15, 20, 21, 26]


LINE = np.column_stack([np.arange(40) * 12.0, np.arange(40) * 7.0])
NEAR = np.random.default_rng(3).normal(0, 1, (40, 2))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("on a line", LINE),
        ("near a line", LINE + NEAR),
        ("all but one on a line", np.concatenate([LINE, [[20.0, 400.0]]])),
        ("one place", np.full((40, 2), 7.0)),
        ("nearly one place", 7 + NEAR),
    ],
)
def test_points_that_determine_no_plane_are_refused(model: str, name: str, points: np.ndarray) -> None:
    assert is_refused(looked_at(points, mapped(TRUTH[model], points), model=model))


@pytest.mark.parametrize("model", MODELS)
def test_a_narrow_strip_is_enough(model: str) -> None:
    """What is refused above is refused for being thin, not for being long."""
    strip = np.column_stack([np.arange(40) * 12.0, 15.0 * (np.arange(40) % 3)])
    assert corner_error(looked_at(strip, mapped(SLANTED, strip), model=model).model, SLANTED) < 1.0


def stretched(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


TURN = np.array([[0.0, -1.0, SIDE], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "truth", "possible"),
    [
        ("upside down", TURN @ TURN, True),
        ("a quarter turn", TURN, True),
        ("mirrored", TURN @ stretched(-1, 1), False),
        ("mirrored upside down", TURN @ stretched(1, -1), False),
        ("six times as large", stretched(6, 6), True),
        ("ten times as large", stretched(10, 10), False),
        ("a sixth", stretched(1 / 6, 1 / 6), True),
        ("a tenth", stretched(1 / 10, 1 / 10), False),
        ("tilted by 76 degrees", stretched(0.25, 1), True),
        ("tilted by 83 degrees", stretched(0.12, 1), False),
    ],
)
def test_what_no_camera_sees_is_refused(model: str, name: str, truth: np.ndarray, possible: bool) -> None:
    query, candidate = scene(truth, 100, 0, noise=0)
    assert is_refused(looked_at(query, candidate, model=model)) != possible


@pytest.mark.parametrize(("vanishing", "possible"), [(1.2e-3, True), (3.5e-3, False), (-2.5e-3, False)])
def test_extreme_perspective_and_what_lies_behind_the_camera_are_refused(
    vanishing: float, possible: bool
) -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0], [vanishing, 0, 1]])
    query, candidate = scene(truth, 100, 0, noise=0)
    assert is_refused(looked_at(query, candidate, threshold=1.0)) != possible


@pytest.mark.parametrize("model", MODELS)
def test_chance_is_refused(model: str) -> None:
    assert all(is_refused(looked_at(*scene(TILTED, 0, 100, seed=seed), model=model)) for seed in range(20))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_broken_coordinates_are_refused_quietly(wrong: float) -> None:
    query, candidate = scene(TILTED, 40, 0)
    assert is_refused(looked_at(query, np.full_like(candidate, wrong)))


@pytest.mark.parametrize(
    "returned", [None, np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), np.inf)]
)
def test_a_fit_that_fails_in_any_way_is_refused(
    returned: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    monkeypatch.setattr(cv2, "findHomography", lambda *_: (returned, None))
    with np.errstate(invalid="ignore"):
        assert is_refused(looked_at(*scene(TILTED)))


def test_what_inliers_add() -> None:
    query, candidate = scene(TILTED, 50, 0)
    assert looked_at(query, candidate, weight=0.02, cap=100).added == pytest.approx(0.02 * 50)
    assert looked_at(query, candidate, weight=0.02, cap=30).added == pytest.approx(0.02 * 30)
    assert looked_at(query[:7], candidate[:7]).added == 0


def features(points: np.ndarray, descriptors: np.ndarray) -> dict[str, np.ndarray]:
    return {"keypoints": np.asarray(points, np.float32), "descriptors": descriptors}


@pytest.mark.parametrize("kind", ["sift", "float"])
def test_verify_matches_descriptors_first(kind: str) -> None:
    rng = np.random.default_rng(0)
    query, candidate = scene(TILTED, 60, 20)
    ours = np.minimum(rng.exponential(30, (80, 128)), 255).astype(np.uint8)
    theirs = np.clip(ours + rng.normal(0, 10, ours.shape), 0, 255).astype(np.uint8)
    if kind == "float":
        ours, theirs = ours.astype(np.float16), theirs.astype(np.float16)
    order = rng.permutation(80)
    one, other = features(query, ours), features(candidate[order], theirs[order])
    found = verify(one, other, GeometrySettings())
    pairs, similarities = match(ours, theirs[order], 0.9)
    again = verify_matches(query, candidate[order], pairs, similarities, GeometrySettings())
    np.testing.assert_array_equal(found.inliers, again.inliers)
    np.testing.assert_array_equal(order[found.inliers[:, 1]], found.inliers[:, 0])
    assert set(range(60)) <= set(found.inliers[:, 0])
    nothing = features(query[:0], ours[:0])
    assert is_refused(verify(nothing, other, GeometrySettings()))
    assert is_refused(verify(one, nothing, GeometrySettings()))


@pytest.mark.shared
@pytest.mark.skipif(not OXFORD.is_dir(), reason="needs ../shared/data/oxford_affine")
def test_two_photographs_of_a_wall() -> None:
    import cv2

    sides = []
    for name in ("img1.png", "img2.png"):
        image = decode((OXFORD / "wall" / name).read_bytes(), DecodeSettings())
        assert isinstance(image, Decoded)
        local = describe(image.pixels, SiftSettings())
        local["keypoints"] = image.to_original(local["keypoints"])
        sides.append((local, image.width / image.pixels.shape[1]))
    (query, query_scale), (candidate, candidate_scale) = sides
    found = verify(query, candidate, GeometrySettings(), query_scale, candidate_scale)
    file = cv2.FileStorage(str(OXFORD / "wall" / "H1to2p.xml"), cv2.FILE_STORAGE_READ)
    assert corner_error(found.model, file.getNode("H12").mat()) < 4.0
    assert len(found.inliers) > 200
