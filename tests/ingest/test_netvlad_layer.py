"""The NetVLAD layer: parity with the reference implementation, its regions, and its laws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ingest.netvlad_layer import NetVladLayer, normalised_vlad
from ingest.regions import sfrs_regions

GOLDEN = Path(__file__).parents[1] / "golden" / "netvlad_sare_sfrs.npz"


def golden(name: str) -> Tensor:
    with np.load(GOLDEN) as file:
        return torch.from_numpy(file[name])


def golden_layer() -> NetVladLayer:
    """Loaded as a published checkpoint is."""
    layer = NetVladLayer(8, 16)
    layer.load_state_dict(
        {"conv.weight": golden("nv_conv")[:, :, None, None], "centroids": golden("nv_centroids")}
    )
    return layer.requires_grad_(False)


def layer_with_bias(words: int = 5, dim: int = 6) -> NetVladLayer:
    torch.manual_seed(0)
    layer = NetVladLayer(words, dim, bias=True)
    layer.conv.weight.data *= 8  # so that cells differ in their words
    return layer.requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_raw(layer: NetVladLayer, maps: Tensor) -> Tensor:
    """One cell after the other, in float64."""
    weights, centroids = layer.conv.weight[:, :, 0, 0].double(), layer.centroids.double()
    bias = 0 if layer.conv.bias is None else layer.conv.bias.double()
    sums = torch.zeros(len(maps), *centroids.shape, dtype=torch.double)
    for image, columns in enumerate(maps.double().flatten(2).unbind(0)):
        for x in columns.T:
            x = x / x.norm()
            shares = (weights @ x + bias).softmax(0)
            sums[image] += shares[:, None] * (x - centroids)
    return sums


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=1e-6)


def test_it_equals_the_reference_implementation() -> None:
    assert_near(golden_layer()(golden("nv_x")), golden("nv_vlad"))
    assert_near(normalised_vlad(golden("nv_raw")), golden("nv_vlad"))


def test_regions_and_their_similarities_equal_the_reference_implementation() -> None:
    query, *gallery = golden_layer().region_vlads(golden("rg_x"))
    assert_near(query, golden("rg_query_regions")[0, 0])
    assert_near(torch.stack(gallery), golden("rg_gallery_regions")[0])
    assert_near(torch.einsum("qd,grd->gqr", query, torch.stack(gallery)), golden("rg_scores")[0])


@pytest.mark.parametrize("layer", [golden_layer(), layer_with_bias(dim=16)], ids=["plain", "bias"])
def test_it_is_the_sum_of_weighted_residuals(layer: NetVladLayer) -> None:
    maps = golden("nv_x")
    assert_near(layer(maps), normalised_vlad(naive_raw(layer, maps)))
    flat = naive_raw(layer, maps)[0].flatten()  # word by word
    assert flat[:16].norm() == naive_raw(layer, maps)[0, 0].norm()


@pytest.mark.parametrize("sides", [(6, 8), (5, 7), (5, 8), (1, 4), (3, 1), (1, 1)])
def test_the_first_region_is_the_whole_map(sides: tuple[int, int]) -> None:
    layer, maps = layer_with_bias(), draw(2, 6, *sides)
    regions = layer.region_vlads(maps)
    assert regions.shape == (2, 9, layer(maps).shape[1])
    assert_near(regions[:, 0], layer(maps))


@pytest.mark.parametrize("sides", [(6, 8), (5, 7), (1, 4)])
def test_a_region_is_the_vlad_of_its_cells(sides: tuple[int, int]) -> None:
    layer, maps = layer_with_bias(), draw(2, 6, *sides)
    alone = [layer(maps[:, :, y0:y1, x0:x1]) for y0, x0, y1, x1 in sfrs_regions(*sides)]
    assert_near(layer.region_vlads(maps), torch.stack(alone, dim=1))


def test_vectors_and_their_words_have_unit_length() -> None:
    vectors = layer_with_bias()(draw(3, 6, 4, 5))
    assert_near(vectors.norm(dim=1), torch.ones(3))
    assert_near(vectors.unflatten(1, (5, 6)).norm(dim=2), torch.full((3, 5), 5**-0.5))


def test_neither_the_order_of_cells_nor_their_length_matters() -> None:
    layer, maps = layer_with_bias(), draw(2, 6, 4, 5)
    shuffled = maps.flatten(2)[:, :, torch.randperm(20)].reshape(maps.shape)
    assert_near(layer(shuffled), layer(maps))
    assert_near(layer(maps * draw(1, 1, 4, 5, seed=2).exp()), layer(maps))


def test_cells_of_zeros_stay_finite() -> None:
    layer = layer_with_bias().requires_grad_()
    maps = torch.zeros(1, 6, 3, 3, requires_grad=True)
    vectors = layer.region_vlads(maps)
    vectors.sum().backward()
    assert torch.isfinite(vectors).all()
    assert torch.isfinite(maps.grad).all()  # type: ignore[arg-type]


def test_it_has_the_names_of_published_checkpoints() -> None:
    plain, biased = NetVladLayer(4, 7).state_dict(), NetVladLayer(4, 7, bias=True).state_dict()
    assert {name: tuple(value.shape) for name, value in plain.items()} == {
        "conv.weight": (4, 7, 1, 1),
        "centroids": (4, 7),
    }
    assert biased.keys() - plain.keys() == {"conv.bias"}


def test_gradients_are_right() -> None:
    layer = layer_with_bias(3, 4).double().requires_grad_()
    maps = draw(1, 4, 3, 3).double().requires_grad_()

    def region_vlads(maps: Tensor, *_: Tensor) -> Tensor:
        return layer.region_vlads(maps)

    assert torch.autograd.gradcheck(region_vlads, (maps, *layer.parameters()))


def test_half_precision_is_summed_in_float32() -> None:
    layer, maps = layer_with_bias(), draw(2, 6, 30, 40)
    found = layer(maps.half())
    assert found.dtype == torch.float32
    assert_near(found, layer(maps.half().float()))
    torch.testing.assert_close(layer.half()(maps.half()), found, rtol=0, atol=2e-3)


def test_tensors_are_made_on_the_device_of_the_maps() -> None:
    layer = NetVladLayer(4, 6, bias=True).to("meta")
    maps = torch.empty(2, 6, 5, 7, device="meta")
    assert layer(maps).is_meta
    assert layer.region_vlads(maps).is_meta
    assert layer.region_vlads(maps).shape == (2, 9, 24)
