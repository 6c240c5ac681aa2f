"""Centre-pivot 4-D convolution: parity with the reference implementation, and with a dense 4-D kernel."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from index import centre_pivot
from index.centre_pivot import CentrePivotConv, GroupNorm4d, rows_at_once
from tests.golden.seeded import seeded, tensor
from tests.index.cvnet_pairs import golden, relative_error


def made(channels_in: int, channels_out: int, side: int, stride: int, key: str) -> CentrePivotConv:
    conv = CentrePivotConv(channels_in, channels_out, side, stride).requires_grad_(False)
    for name, own in conv.named_parameters():
        own.copy_(torch.from_numpy(seeded(key + name).standard_normal(tuple(own.shape)) * 0.1))
    return conv


def inputs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def dense(conv: CentrePivotConv, x: Tensor) -> Tensor:
    """A full 4-D convolution, offset by offset, with the weights off the pivots left at zero."""
    side, stride = conv.conv1.kernel_size[0], conv.stride
    half = side // 2
    kernel = torch.zeros(conv.conv1.weight.shape[:2] + (side,) * 4, dtype=torch.float64)
    kernel[..., half, half] += conv.conv1.weight
    kernel[:, :, half, half] += conv.conv2.weight
    padded = torch.nn.functional.pad(x.double(), (half,) * 8)
    total: Tensor = (conv.conv1.bias + conv.conv2.bias).double().view(1, -1, 1, 1, 1, 1)
    for offsets in itertools.product(range(side), repeat=4):
        cut = [slice(o, o + n, stride) for o, n in zip(offsets, x.shape[2:], strict=True)]
        total = total + torch.einsum("dc,pcijkl->pdijkl", kernel[(..., *offsets)], padded[(..., *cut)])
    return total


@pytest.mark.parametrize(
    ("key", "channels_in", "channels_out", "side", "stride"),
    [("cp_k5s2", 9, 16, 5, 2), ("cp_k3s1", 4, 6, 3, 1), ("cp_k3s2", 4, 6, 3, 2)],
)
def test_it_equals_the_reference_implementation(
    key: str, channels_in: int, channels_out: int, side: int, stride: int
) -> None:
    conv = made(channels_in, channels_out, side, stride, key)
    found = conv(torch.from_numpy(tensor(key, (2, channels_in, 7, 6, 5, 8))))
    assert relative_error(found, golden(key)) < 1e-6


@settings(deadline=None, max_examples=12)
@given(st.tuples(*[st.integers(1, 5)] * 4), st.sampled_from([1, 3]), st.integers(1, 3), st.integers(1, 2))
def test_it_is_a_4d_convolution_with_weights_on_the_pivots_alone(
    sides: tuple[int, int, int, int], side: int, stride: int, pairs: int
) -> None:
    conv = made(2, 3, side, stride, "dense")
    x = inputs((pairs, 2, *sides))
    found = conv(x)
    assert found.shape == (pairs, 3, *(-(-n // stride) for n in sides))
    np.testing.assert_allclose(found, dense(conv, x), atol=1e-5)


def test_what_is_off_the_pivots_in_both_images_is_never_read() -> None:
    conv = made(2, 3, 5, 2, "off")
    x = inputs((1, 2, 6, 5, 4, 7))
    off = torch.ones(6, 5, 4, 7, dtype=torch.bool)
    off[::2, ::2] = False
    off[..., ::2, ::2] = False
    np.testing.assert_array_equal(conv(torch.where(off, torch.nan, x)), conv(x))
    on = torch.zeros_like(x)
    on[0, 0, 0, 0, 1, 1] = 1  # a pivot of the query, not of the key
    assert not torch.equal(conv(x + on), conv(x))


@pytest.mark.parametrize("pairs", [1, 3])
def test_the_size_of_the_parts_changes_nothing(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = made(4, 6, 3, 1, "parts")
    x = inputs((pairs, 4, 5, 4, 3, 6))
    whole = conv(x)
    monkeypatch.setattr(centre_pivot, "CPU_CHUNK", 1)
    assert rows_at_once(1000, x.device) == 1
    np.testing.assert_allclose(conv(x), whole, atol=1e-6)


def test_the_layout_in_memory_changes_nothing_and_channels_come_out_innermost() -> None:
    conv = made(4, 6, 3, 1, "layout")
    x = inputs((2, 4, 5, 4, 3, 6))
    innermost = x.permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)
    np.testing.assert_allclose(conv(innermost), conv(x), atol=1e-6)
    assert conv(x).stride(1) == 1


@pytest.mark.parametrize("pairs", [1, 2])
def test_group_norm_is_over_all_four_dimensions_of_a_pair(pairs: int) -> None:
    norm = GroupNorm4d(8).requires_grad_(False)
    norm.weight.copy_(inputs((8,), seed=1))
    norm.bias.copy_(inputs((8,), seed=2))
    x = inputs((pairs, 8, 3, 4, 2, 5)).permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)
    groups = x.double().reshape(pairs, 4, -1)
    mean, variance = groups.mean(dim=2, keepdim=True), groups.var(dim=2, keepdim=True, correction=0)
    unit = ((groups - mean) / (variance + 1e-5).sqrt()).view(x.shape)
    by_channel = (1, -1, 1, 1, 1, 1)
    expected = unit * norm.weight.view(by_channel) + norm.bias.view(by_channel)
    np.testing.assert_allclose(norm(x), expected, atol=1e-5)
    assert norm(x).stride(1) == 1  # torch copies otherwise, which takes longer than all else in it


def test_it_runs_on_the_meta_device() -> None:
    layers = torch.nn.Sequential(CentrePivotConv(9, 16, 5, 2), GroupNorm4d(16)).to("meta")
    found = layers(torch.empty(2, 9, 10, 7, 6, 9, device="meta"))
    assert (found.device.type, found.shape) == ("meta", (2, 16, 5, 4, 3, 5))
