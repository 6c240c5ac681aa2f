"""Pooling and regions: parity with the reference implementation, their defining sums, and their laws."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BadInput
from ingest.pooling import (
    POOLINGS,
    PoolingSettings,
    centre_prior,
    crow,
    gem,
    l2_normalised,
    mac,
    pool,
    pool_regions,
    rmac,
    spoc,
)
from ingest.regions import Region, RegionSettings, region_boxes, regions_of, rmac_regions, sfrs_regions

GOLDEN = Path(__file__).parents[1] / "golden"
MAPS = {"map_a": (2, 8, 12, 9), "map_b": (1, 8, 24, 32), "map_c": (1, 8, 7, 7), "map_d": (1, 8, 2, 5)}
SIDES = st.integers(1, 40)


def seeded_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name: str, what: str) -> torch.Tensor:
    with np.load(GOLDEN / "pooling_whitening.npz") as file:
        return torch.from_numpy(file[f"{name}_{what}"]).squeeze((-2, -1))


def golden_maps(name: str) -> torch.Tensor:
    return torch.from_numpy(np.maximum(seeded_module().tensor(name, MAPS[name]), 0))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp(min=0)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-7)


# -- parity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("what", "chosen"),
    [
        ("mac", {"kind": "mac"}),
        ("spoc", {"kind": "spoc"}),
        ("gem3", {"kind": "gem"}),
        ("gem2.92", {"kind": "gem", "p": 2.92}),
        ("rmac", {"kind": "rmac"}),
    ],
)
def test_a_pooling_equals_the_reference_implementation(name: str, what: str, chosen: dict) -> None:
    assert_near(pool(golden_maps(name), PoolingSettings(**chosen)), golden(name, what))


@pytest.mark.parametrize("name", MAPS)
def test_regions_and_unit_length_equal_the_reference_implementation(name: str) -> None:
    maps = golden_maps(name)
    assert_near(pool_regions(maps, PoolingSettings(), RegionSettings(kind="rmac")), golden(name, "roipool"))
    assert_near(l2_normalised(gem(maps)), golden(name, "l2n"))


@pytest.mark.parametrize("p", [torch.tensor(2.92), torch.tensor([2.92]), torch.full((8,), 2.92)])
def test_a_learned_exponent_equals_a_fixed_one(p: torch.Tensor) -> None:
    assert_near(gem(golden_maps("map_a"), p), golden("map_a", "gem2.92"))


# -- poolings ---------------------------------------------------------------------------------------------


def test_gem_is_the_mean_at_1_and_comes_nearer_to_the_maximum_with_p() -> None:
    maps = draw(2, 5, 6, 7) + 0.1
    assert_near(gem(maps, 1), spoc(maps))
    steps = torch.stack([gem(maps, p) for p in (1, 2, 4, 8, 16, 32)])
    assert (steps.diff(dim=0) > 0).all()
    most = mac(maps)
    for p in (2, 8, 32):  # n^(-1/p) max <= the generalised mean of n <= max
        assert (gem(maps, p) <= most * 1.00001).all()
        assert (gem(maps, p) >= most * (6 * 7) ** (-1 / p) * 0.9999).all()
    torch.testing.assert_close(gem(maps / 4, 60), most / 4, rtol=0.07, atol=0)


def test_each_channel_may_have_an_exponent_of_its_own() -> None:
    maps = draw(2, 3, 4, 5)
    found = gem(maps, torch.tensor([1.0, 3.0, 5.0]))
    expected = torch.stack([gem(maps[:, [k]], p)[:, 0] for k, p in enumerate((1, 3, 5))], dim=1)
    assert_near(found, expected)


def test_gem_has_gradients_for_maps_and_exponent() -> None:
    maps = (draw(2, 3, 4, 5).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(gem, (maps, torch.tensor([2.7], dtype=torch.double, requires_grad=True)))


def test_rmac_is_the_sum_of_the_unit_maxima_of_its_regions() -> None:
    maps = draw(2, 6, 12, 20)
    regions = rmac_regions(12, 20)
    expected = sum(
        torch.nn.functional.normalize(maps[:, :, y0:y1, x0:x1].amax(dim=(2, 3)), dim=1)
        for y0, x0, y1, x1 in regions
    )
    assert_near(rmac(maps), expected)


def naive_crow(maps: np.ndarray) -> np.ndarray:
    """One image at a time, (c, h, w)."""
    sums = maps.sum(axis=0)
    cells = np.sqrt(sums / np.sqrt((sums**2).sum()))
    shares = np.array([(channel > 0).mean() for channel in maps])
    weights = np.array([np.log(shares.sum() / share) if share else 0 for share in shares])
    return (maps * cells).sum(axis=(1, 2)) * weights


def test_crow_is_the_sum_weighted_by_cell_and_channel() -> None:
    maps = draw(3, 5, 6, 7) - 0.5
    maps[:, 2] = -1  # a channel that is never positive weighs 0
    positive = maps.clamp(min=0).double().numpy()
    expected = torch.from_numpy(np.stack([naive_crow(each) for each in positive])).float()
    assert_near(crow(maps), expected)
    assert not crow(maps)[:, 2].any()


def test_crow_favours_rare_channels() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0], maps[0, 1, 1, 1] = 1 / 16, 1  # the same sums
    common, rare = crow(maps)[0]
    assert rare > 2 * common


def test_the_centre_prior_weighs_by_a_gaussian_around_the_middle() -> None:
    maps = draw(2, 3, 5, 8)
    ys, xs = np.mgrid[:5, :8]
    spread = 1 / 3 * 5 / 2
    weights = np.exp(-((ys - 2) ** 2 + (xs - 3.5) ** 2) / (2 * spread**2))
    weights = torch.from_numpy(weights / weights.sum()).float()
    assert_near(centre_prior(maps), (maps * weights).sum(dim=(2, 3)))


def test_a_wide_centre_prior_is_the_mean() -> None:
    maps = draw(2, 3, 5, 8)
    torch.testing.assert_close(centre_prior(maps, 1e4), spoc(maps), rtol=1e-4, atol=1e-6)
    assert_near(centre_prior(torch.full((1, 2, 5, 8), 3.0)), torch.full((1, 2), 3.0))


@pytest.mark.parametrize("kind", ["mac", "spoc", "gem", "crow"])
def test_the_order_of_the_cells_does_not_matter(kind: str) -> None:
    maps = draw(2, 5, 6, 7)
    shuffled = maps.flatten(2)[:, :, torch.randperm(42)].reshape(maps.shape)
    assert_near(pool(shuffled, PoolingSettings(kind=kind)), pool(maps, PoolingSettings(kind=kind)))


@pytest.mark.parametrize("kind", POOLINGS)
def test_images_do_not_depend_on_each_other(kind: str) -> None:
    maps, chosen = draw(3, 5, 6, 7), PoolingSettings(kind=kind)
    alone = torch.cat([pool(each, chosen) for each in maps.split(1)])
    assert_near(pool(maps, chosen), alone)
    assert pool(maps[:0], chosen).shape == (0, 5)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("sides", [(1, 1), (1, 6), (5, 1), (2, 2)])
def test_small_and_empty_looking_maps_give_finite_numbers_and_gradients(
    kind: str, sides: tuple[int, int]
) -> None:
    for maps in (torch.zeros(2, 4, *sides), draw(2, 4, *sides)):
        maps.requires_grad_()
        pooled = pool(maps, PoolingSettings(kind=kind))
        pooled.sum().backward()
        assert torch.isfinite(pooled).all()
        assert maps.grad is not None
        assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(kind: str, dtype: torch.dtype) -> None:
    maps = (60 * draw(2, 5, 30, 40)).to(dtype)  # cubes and sums beyond float16
    chosen = PoolingSettings(kind=kind)
    pooled = pool(maps, chosen)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pool(maps.float(), chosen))
    assert pool(maps.double(), chosen).dtype == torch.float64


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("regions", ["none", "sfrs", "rmac"])
def test_tensors_are_made_on_the_device_of_the_maps(kind: str, regions: str) -> None:
    maps = torch.empty(2, 16, 12, 20, device="meta")
    pooled = pool_regions(maps, PoolingSettings(kind=kind), RegionSettings(kind=regions))
    assert pooled.is_meta
    assert pooled.shape == (2, {"none": 1, "sfrs": 9, "rmac": 21}[regions], 16)


def test_the_table_holds_every_kind_of_the_settings() -> None:
    assert tuple(POOLINGS) == get_args(PoolingSettings.model_fields["kind"].annotation)


@pytest.mark.parametrize("shape", [(5, 6, 7), (2, 5), (2, 5, 0, 7), (2, 5, 6, 0)])
def test_what_is_not_a_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="pooling takes maps"):
        pool(torch.zeros(shape), PoolingSettings())


def test_reading_settings_does_not_load_torch() -> None:
    code = "import sys; from ingest.pooling import PoolingSettings as S; S(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- regions ----------------------------------------------------------------------------------------------


def test_the_number_of_rmac_regions() -> None:
    assert len(rmac_regions(12, 20)) == len(rmac_regions(20, 12)) == 21
    assert len(rmac_regions(15, 15)) == 1 + 14
    assert len(rmac_regions(9, 9, levels=1)) == 1 + 1
    assert len(rmac_regions(1, 7)) > 1  # levels without cells are left out


@given(SIDES, SIDES, st.integers(1, 4))
def test_rmac_regions_are_l_by_l_plus_m_squares_from_border_to_border(h: int, w: int, levels: int) -> None:
    whole, *squares = rmac_regions(h, w, levels)
    assert whole == (0, 0, h, w)
    extra = 0 if h == w else best_extra(min(h, w), max(h, w))
    for level in range(1, levels + 1):
        side = 2 * min(h, w) // (level + 1)
        if side == 0:
            break
        count = level * (level + extra)
        here, squares = squares[:count], squares[count:]
        assert len(set(here)) <= len(here) == count
        assert {(s.y1 - s.y0, s.x1 - s.x0) for s in here} == {(side, side)}
        assert (min(s.y0 for s in here), min(s.x0 for s in here)) == (0, 0)
        assert (max(s.y1 for s in here), max(s.x1 for s in here)) == (
            h if h > w or level > 1 else side,
            w if w > h or level > 1 else side,
        )
    assert squares == []


def best_extra(shorter: int, longer: int) -> int:
    return min(range(1, 7), key=lambda m: abs((1 - (longer - shorter) / (m * shorter)) - 0.4))


@given(SIDES, SIDES)
def test_a_turned_map_has_the_turned_regions(h: int, w: int) -> None:
    turned = {Region(x0, y0, x1, y1) for y0, x0, y1, x1 in rmac_regions(w, h)}
    assert set(rmac_regions(h, w)) == turned


def cells(region: Region) -> set[tuple[int, int]]:
    return {(y, x) for y in range(region.y0, region.y1) for x in range(region.x0, region.x1)}


@given(st.integers(2, 12), st.integers(2, 12))
def test_quarters_share_no_cell_and_make_up_halves_and_whole(h: int, w: int) -> None:
    whole, top, bottom, left, right, *quarters = map(cells, sfrs_regions(h, w))
    tl, tr, bl, br = quarters
    assert all(quarters)
    assert len(whole) == sum(map(len, quarters)) == h * w
    assert (tl | tr, bl | br, tl | bl, tr | br) == (top, bottom, left, right)
    assert tl | tr | bl | br == whole
    assert ((0, 0) in tl, (0, w - 1) in tr, (h - 1, 0) in bl, (h - 1, w - 1) in br) == (True,) * 4
    assert 0 <= len(tl) - len(br) <= h + w  # the middle of an odd side goes to the first half


def test_a_side_of_one_cell_is_both_its_halves() -> None:
    whole, top, bottom, left, right, *quarters = sfrs_regions(1, 4)
    assert whole == top == bottom == (0, 0, 1, 4)
    assert [left, right] == quarters[:2] == quarters[2:] == [(0, 0, 1, 2), (0, 2, 1, 4)]


def test_boxes_are_fractions_of_the_sides() -> None:
    boxes = region_boxes(5, 4, RegionSettings(kind="sfrs"))
    assert boxes.dtype == np.float32
    expected = [
        [0, 0, 1, 1],
        [0, 0, 1, 0.6],
        [0, 0.6, 1, 1],
        [0, 0, 0.5, 1],
        [0.5, 0, 1, 1],
        [0, 0, 0.5, 0.6],
        [0.5, 0, 1, 0.6],
        [0, 0.6, 0.5, 1],
        [0.5, 0.6, 1, 1],
    ]
    np.testing.assert_allclose(boxes, expected, atol=1e-7)
    assert region_boxes(5, 4, RegionSettings()).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("kind", ["none", "sfrs", "rmac"])
def test_boxes_regions_and_vectors_stand_in_one_order(kind: str) -> None:
    maps, chosen, pooling = (
        draw(2, 4, 7, 10),
        RegionSettings(kind=kind, levels=2),
        PoolingSettings(kind="mac"),
    )
    vectors = pool_regions(maps, pooling, chosen)
    boxes = region_boxes(7, 10, chosen) * [10, 7, 10, 7]
    assert vectors.shape[1] == len(boxes) == len(regions_of(7, 10, chosen))
    for vector, (x0, y0, x1, y1) in zip(vectors.unbind(1), boxes.round().astype(int), strict=True):
        assert torch.equal(vector, maps[:, :, y0:y1, x0:x1].amax(dim=(2, 3)))
    assert torch.equal(vectors[:, 0], pool(maps, pooling))


def test_a_map_without_cells_has_no_regions() -> None:
    with pytest.raises(BadInput, match="too small"):
        region_boxes(0, 4, RegionSettings())
