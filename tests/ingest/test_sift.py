"""SIFT: what is kept and in which order, where key points lie, and images with nothing in them."""

import numpy as np
import pytest

from ingest.sift import SiftSettings, describe, rootsift

NAMES = {"keypoints", "diameters", "angles", "responses", "descriptors"}


def photograph(h: int = 150, w: int = 200, seed: int = 0) -> np.ndarray:
    """Smoothed noise with blobs of many sizes."""
    import cv2

    rng = np.random.default_rng(seed)
    image = np.full((h, w, 3), 127, np.float32)
    for size in (3, 7, 15, 31):
        image += (
            12 * size * cv2.GaussianBlur(rng.standard_normal((h, w, 3)).astype(np.float32), (0, 0), size / 3)
        )
    return np.clip(image, 0, 255).astype(np.uint8)


def disc(x: float, y: float, radius: float = 6, side: int = 80) -> np.ndarray:
    """A smooth bright blob whose centre lies at (x, y), the centre of the top-left pixel being (0, 0)."""
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    bump = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return np.repeat((40 + 200 * bump)[..., None], 3, axis=2).astype(np.uint8)


def test_shapes_types_and_ranges() -> None:
    local = describe(photograph(), SiftSettings())
    n = len(local["responses"])
    assert set(local) == NAMES
    assert n > 50
    assert (local["keypoints"].shape, local["keypoints"].dtype) == ((n, 2), np.float32)
    assert (local["descriptors"].shape, local["descriptors"].dtype) == ((n, 128), np.uint8)
    for name in ("diameters", "angles", "responses"):
        assert (local[name].shape, local[name].dtype) == ((n,), np.float32)
    assert ((local["angles"] >= 0) & (local["angles"] < 360)).all()
    assert (local["keypoints"] >= -0.5).all()
    assert (local["keypoints"] < [200, 150]).all()


def test_the_strongest_are_kept_in_a_fixed_order() -> None:
    everything = describe(photograph(), SiftSettings(max_keypoints=65_536))
    n = len(everything["responses"])
    assert (np.diff(everything["responses"]) <= 0).all()
    for most in (1, 10, n - 1, n):
        some = describe(photograph(), SiftSettings(max_keypoints=most))
        for name in NAMES:
            np.testing.assert_array_equal(some[name], everything[name][:most])


def test_ties_are_broken_by_position() -> None:
    tile = disc(40, 40)
    image = np.tile(tile, (2, 3, 1))
    local = describe(image, SiftSettings())
    rows = np.column_stack(
        [-local["responses"], local["keypoints"][:, ::-1], local["diameters"], local["angles"]]
    )
    assert len(np.unique(local["responses"])) < len(rows)
    assert (np.lexsort(rows.T[::-1]) == np.arange(len(rows))).all()
    for most in range(1, 5):  # the cut falls between ties, which OpenCV alone would all keep
        some = describe(image, SiftSettings(max_keypoints=most))
        np.testing.assert_array_equal(some["keypoints"], local["keypoints"][:most])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    import cv2

    before = cv2.getNumThreads()
    expected = describe(photograph(), SiftSettings())
    cv2.setNumThreads(threads)
    try:
        found = describe(photograph(), SiftSettings())
    finally:
        cv2.setNumThreads(before)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(("x", "y"), [(40, 40), (31.25, 45.5), (50, 22.75)])
def test_positions_are_in_pixels_from_the_centre_of_the_top_left_one(x: float, y: float) -> None:
    local = describe(disc(x, y), SiftSettings(contrast_threshold=0.02))
    nearest = np.linalg.norm(local["keypoints"] - np.array([x, y]), axis=1).min()
    assert nearest < 0.1


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_without_anything_in_it_has_no_key_points(value: int) -> None:
    local = describe(np.full((64, 64, 3), value, np.uint8), SiftSettings())
    assert local["descriptors"].shape == (0, 128)
    assert local["keypoints"].shape == (0, 2)
    assert {name: array.dtype for name, array in local.items()} == {
        name: array.dtype for name, array in describe(photograph(), SiftSettings()).items()
    }


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (8, 8)])
def test_tiny_images_are_answered(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert describe(noise, SiftSettings())["descriptors"].shape[1] == 128


def test_a_view_of_a_larger_array_is_described_like_a_copy() -> None:
    image = photograph()
    view = image[10:120, 20:170]
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(
        describe(view, SiftSettings())["descriptors"], describe(view.copy(), SiftSettings())["descriptors"]
    )


def test_red_and_blue_weigh_differently() -> None:
    red, blue = np.zeros((2, 80, 80, 3), np.uint8)
    red[..., 0], blue[..., 2] = disc(40, 40)[..., 0], disc(40, 40)[..., 0]
    strongest = [
        describe(image, SiftSettings(contrast_threshold=0))["responses"].max() for image in (red, blue)
    ]
    assert strongest[0] / strongest[1] == pytest.approx(0.299 / 0.114, rel=0.1)


def test_a_lower_contrast_threshold_finds_more() -> None:
    counts = [
        len(describe(photograph(), SiftSettings(contrast_threshold=value))["responses"])
        for value in (0.01, 0.03, 0.05)
    ]
    assert counts[0] > counts[1] > counts[2] > 0


def test_rootsift_is_the_root_of_the_l1_normalised_descriptor() -> None:
    descriptors = np.random.default_rng(0).integers(0, 256, (40, 128), dtype=np.uint8)
    naive = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True, dtype=np.float64))
    rooted = rootsift(descriptors)
    assert rooted.dtype == np.float32
    np.testing.assert_allclose(rooted, naive, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rooted, axis=1), 1, atol=1e-6)


def test_rootsift_of_nothing() -> None:
    assert rootsift(np.zeros((0, 128), np.uint8)).shape == (0, 128)
    assert not rootsift(np.zeros((2, 128), np.uint8)).any()
