"""From pixels to a network's input: sizes, resizing, normalising, and batches of equal sizes."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.image_tensors import groups_by_size, reduction, resize, scaled_size, to_tensor
from ingest.networks import NETWORKS, Preprocessing

RGB = Preprocessing()


def photograph(height: int = 120, width: int = 161) -> np.ndarray:
    """Something with edges, gradients and colours, (h, w, 3) uint8 RGB."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)
    image[: height // 3, width // 2 :] = (250, 30, 10)
    cv2.circle(image, (width // 3, height // 2), height // 4, (10, 200, 90), -1)
    return image


# -- normalising --------------------------------------------------------------------------------------------


def naive(pixels: np.ndarray, name: str) -> np.ndarray:
    """What each network was trained on, written out."""
    values = pixels.astype(np.float64)
    if name == "efficientnet-lite0":
        normalised = (values - 127) / 128
    elif name.startswith("cvnet"):
        bgr = values[:, :, ::-1] / 255
        normalised = (bgr - [0.406, 0.456, 0.485]) / [0.225, 0.224, 0.229]
    else:
        normalised = (values / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return normalised.transpose(2, 0, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_sees_what_it_was_trained_on(name: str) -> None:
    found = to_tensor(photograph(), NETWORKS[name].preprocessing)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), naive(photograph(), name), rtol=1e-6, atol=1e-7)


def test_a_view_of_pixels_gives_the_same_and_is_left_alone() -> None:
    whole = photograph()
    view = whole[10:50, 20:90]
    before = whole.copy()
    np.testing.assert_array_equal(to_tensor(view, RGB).numpy(), to_tensor(view.copy(), RGB).numpy())
    np.testing.assert_array_equal(whole, before)


# -- resizing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.25, 0.7071, 1.4142, 1.0, 2.0])
def test_the_size_is_each_side_times_the_scale_rounded(scale: float) -> None:
    resized = resize(photograph(), scale, RGB)
    assert resized.dtype == np.uint8
    assert resized.shape == (round(120 * scale), round(161 * scale), 3)


def test_halves_round_to_even_and_no_side_vanishes() -> None:
    assert scaled_size(5, 7, 0.5) == (2, 4)
    assert scaled_size(1, 900, 0.1) == (1, 90)
    assert resize(photograph()[:1], 0.1, RGB).shape == (1, 16, 3)


def test_shrinking_averages_areas() -> None:
    pixels = photograph(120, 160)
    blocks = pixels.reshape(30, 4, 40, 4, 3).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(resize(pixels, 0.25, RGB) - blocks).max() <= 0.5 + 1e-6


def test_enlarging_interpolates_linearly() -> None:
    pixels = photograph(40, 30)
    expected = naive_linear(naive_linear(pixels.astype(np.float64), 80, 0), 60, 1)
    assert np.abs(resize(pixels, 2.0, RGB) - expected).max() <= 1


def naive_linear(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Between the centres of pixels, along one axis; the outermost values continue outside."""
    values = np.moveaxis(values, axis, 0)
    places = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    share = (places - below)[:, None, None]
    return np.moveaxis(values[below] * (1 - share) + values[above] * share, 0, axis)


@pytest.mark.parametrize(("scale", "rule"), [(0.7071, cv2.INTER_AREA), (1.4142, cv2.INTER_LINEAR)])
def test_the_rule_is_the_one_of_the_published_networks(scale: float, rule: int) -> None:
    size = (round(161 * scale), round(120 * scale))
    expected = cv2.resize(photograph(), size, interpolation=rule)
    np.testing.assert_array_equal(resize(photograph(), scale, RGB), expected)


def test_another_rule_can_be_stated() -> None:
    linear, cubic = Preprocessing(shrink="linear"), Preprocessing(enlarge="cubic")
    assert (resize(photograph(), 0.4, linear) != resize(photograph(), 0.4, RGB)).any()
    assert (resize(photograph(), 1.4, cubic) != resize(photograph(), 1.4, RGB)).any()


def test_scale_one_changes_nothing() -> None:
    np.testing.assert_array_equal(resize(photograph(), 1.0, RGB), photograph())


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_the_longest_side_is_brought_down_exactly_and_never_up(height: int, width: int, longest: int) -> None:
    size = scaled_size(height, width, reduction(height, width, longest))
    assert max(size) == min(longest, max(height, width))
    if max(height, width) <= longest:
        assert size == (height, width)


# -- batches ------------------------------------------------------------------------------------------------

sizes_drawn = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40)


@given(sizes_drawn, st.integers(1, 7))
def test_every_image_is_in_one_group_of_its_size(sizes: list[tuple[int, int]], batch: int) -> None:
    groups = groups_by_size(sizes, batch)
    assert sorted(place for group in groups for place in group) == list(range(len(sizes)))
    for group in groups:
        assert 1 <= len(group) <= batch
        assert len({sizes[place] for place in group}) == 1
        assert group == sorted(group)
    full = sum(-(-sizes.count(size) // batch) for size in set(sizes))
    assert len(groups) == full  # no more groups than it takes


def test_groups_come_in_the_order_of_the_first_of_each_size() -> None:
    sizes = [(2, 3), (1, 1), (2, 3), (1, 1), (2, 3), (3, 2)]
    assert groups_by_size(sizes, 2) == [[0, 2], [4], [1, 3], [5]]
