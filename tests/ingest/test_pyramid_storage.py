"""Stored pyramids: what each type keeps, what it costs, and the cap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from torch.nn import functional

from ingest.errors import BadInput
from ingest.image_features import packed
from ingest.network_cvnet import cvnet_r50, pyramid_sizes
from ingest.pyramid_storage import PyramidStorage, capped_size, from_stored, stored_bytes, to_stored

STORAGES: tuple[PyramidStorage, ...] = ("float32", "float16", "int8")


def pyramid(height: int = 10, width: int = 7, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((256, *size)) * rng.uniform(0.01, 50, size)).astype(np.float32)
        for size in pyramid_sizes(height, width)
    ]


def test_float32_is_kept_as_it_is() -> None:
    for found, given_ in zip(from_stored(to_stored(pyramid(), "float32")), pyramid(), strict=True):
        np.testing.assert_array_equal(found, given_)


def test_float16_is_off_by_its_rounding_alone() -> None:
    for found, given_ in zip(from_stored(to_stored(pyramid(), "float16")), pyramid(), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, given_, rtol=2**-11, atol=2**-25)


def test_int8_is_off_by_half_a_step_of_its_cell_at_most() -> None:
    maps = pyramid()
    stored = to_stored(maps, "int8")
    for number, (found, given_) in enumerate(zip(from_stored(stored), maps, strict=True)):
        steps = stored[f"steps{number}"]
        np.testing.assert_array_equal(steps, np.abs(given_).max(axis=0) / np.float32(127))
        assert (np.abs(stored[f"scale{number}"]).max(axis=0) == 127).all()  # the whole range is used
        assert (np.abs(found - given_) <= steps * 0.5001).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_names_types_and_sizes_are_as_stated(storage: PyramidStorage) -> None:
    stored = to_stored(pyramid(10, 7), storage)
    sizes = [(5, 4), (7, 5), (10, 7)]
    expected = {f"scale{n}": (np.dtype(storage), (256, *size)) for n, size in enumerate(sizes)}
    if storage == "int8":
        expected |= {f"steps{n}": (np.dtype(np.float32), size) for n, size in enumerate(sizes)}
    assert {name: (array.dtype, array.shape) for name, array in stored.items()} == expected


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_file_of_tensors_holds_it(channels_last: bool, storage: PyramidStorage) -> None:
    maps = pyramid()
    if channels_last:  # as maps come from a GPU
        maps = [np.ascontiguousarray(level.transpose(1, 2, 0)).transpose(2, 0, 1) for level in maps]
    expected = from_stored(to_stored(pyramid(), storage))
    for found, level in zip(from_stored(load(packed(to_stored(maps, storage)))), expected, strict=True):
        np.testing.assert_array_equal(found, level)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("storage", STORAGES)
def test_cells_of_zeros_stay_zero(storage: PyramidStorage) -> None:
    maps = pyramid()
    maps[1][:, 2, 3] = 0
    assert not from_stored(to_stored(maps, storage))[1][:, 2, 3].any()


def test_a_cell_beyond_the_range_of_float16_keeps_its_direction() -> None:
    maps = pyramid()
    maps[2][:, 4, 4] *= 1e5
    found = from_stored(to_stored(maps, "float16"))[2]
    assert np.isfinite(found).all()
    before, after = maps[2][:, 4, 4].astype(np.float64), found[:, 4, 4].astype(np.float64)
    assert before @ after / np.linalg.norm(before) / np.linalg.norm(after) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found[:, 4, 3], maps[2][:, 4, 3], rtol=2**-11, atol=2**-25)


# Cost


def test_the_cost_at_1024_x_768_is_the_published_one() -> None:
    assert stored_bytes(768, 1024, "float16") == 2_749_440
    assert stored_bytes(768, 1024, "float32") == 2 * 2_749_440
    assert stored_bytes(768, 1024, "int8") == 2_749_440 // 2 + 4 * 5_370


@settings(deadline=None, max_examples=40)
@given(
    st.integers(17, 400),
    st.integers(17, 400),
    st.sampled_from(STORAGES),
    st.one_of(st.none(), st.integers(2, 30)),
)
def test_what_is_announced_is_what_is_written(
    height: int, width: int, storage: PyramidStorage, cap: int | None
) -> None:
    maps = pyramid(-(-height // 16), -(-width // 16))
    written = sum(array.nbytes for array in to_stored(maps, storage, cap).values())
    assert stored_bytes(height, width, storage, longest_map_side=cap) == written


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 112), (111, 113), (33, 17)])
def test_the_map_has_as_many_cells_as_the_cost_takes_it_to_have(height: int, width: int) -> None:
    with torch.device("meta"):
        features = cvnet_r50()(torch.empty(1, 3, height, width), ["s3_pre"])["s3_pre"]
    cells = sum(rows * columns for rows, columns in pyramid_sizes(*features.shape[2:]))
    assert stored_bytes(height, width, "float32") == cells * 256 * 4


def test_an_image_too_small_has_no_cost() -> None:
    with pytest.raises(BadInput, match="17 pixels or more"):
        stored_bytes(16, 400, "int8")


# The cap


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(2, 300))
def test_a_capped_map_is_in_proportion_and_has_a_pyramid(height: int, width: int, longest: int) -> None:
    rows, columns = capped_size(height, width, longest)
    assert max(rows, columns) == min(longest, max(height, width))
    assert 2 <= rows <= height
    assert 2 <= columns <= width
    factor = max(rows, columns) / max(height, width)
    assert abs(rows - height * factor) <= 0.5 or rows == 2
    assert abs(columns - width * factor) <= 0.5 or columns == 2
    pyramid_sizes(rows, columns)


def test_a_longer_map_is_reduced_with_aligned_corners() -> None:
    maps = pyramid(20, 31)
    found = from_stored(to_stored(maps, "float32", longest_map_side=12))
    assert [level.shape[1:] for level in found] == pyramid_sizes(8, 12)
    for level, given_ in zip(found, maps, strict=True):
        expected = functional.interpolate(
            torch.from_numpy(given_)[None], level.shape[1:], mode="bilinear", align_corners=True
        )
        np.testing.assert_allclose(level, expected[0], atol=1e-3)


@pytest.mark.parametrize("cap", [None, 10, 11])
def test_a_map_within_the_cap_is_left_alone(cap: int | None) -> None:
    for found, given_ in zip(from_stored(to_stored(pyramid(), "float32", cap)), pyramid(), strict=True):
        np.testing.assert_array_equal(found, given_)


def test_a_cap_that_leaves_no_pyramid_is_refused() -> None:
    with pytest.raises(BadInput, match="longest_map_side is 1"):
        to_stored(pyramid(), "float16", longest_map_side=1)


# What is refused


@pytest.mark.parametrize(
    ("storage", "name"),
    [("float16", "scale1"), ("int8", "scale2"), ("int8", "steps0"), ("float32", "scale0")],
)
def test_a_stored_pyramid_with_a_part_missing_is_refused(storage: PyramidStorage, name: str) -> None:
    stored = to_stored(pyramid(), storage)
    del stored[name]
    with pytest.raises(BadInput, match=f"no '{name}'.*extract the features again"):
        from_stored(stored)
    with pytest.raises(BadInput, match="it has nothing"):
        from_stored({})


def test_what_is_no_pyramid_is_refused() -> None:
    good = pyramid()
    for bad in (good[:2], [*good, good[0]], [good[0][0], *good[1:]], [good[0][:9], *good[1:]]):
        with pytest.raises(BadInput, match="a pyramid is 3 maps"):
            to_stored(bad, "float16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("storage", STORAGES)
def test_values_that_are_not_finite_are_refused(storage: PyramidStorage, value: float) -> None:
    maps = pyramid()
    maps[0][3, 1, 1] = value
    with pytest.raises(BadInput, match="infinite or no numbers"):
        to_stored(maps, storage)
