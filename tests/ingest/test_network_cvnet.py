"""CVNet's half that sees one image: parity with the reference implementation, names, and small maps."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from ingest.checkpoints import load_exactly
from ingest.errors import BadInput
from ingest.network_cvnet import CVNet, GeMPool, cvnet_r50, cvnet_r101, pyramid_sizes
from ingest.networks import NETWORKS
from tests.golden.seeded import tensor, weight

GOLDEN = Path(__file__).parents[1] / "golden" / "cvnet.npz"
BLOCKS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}
MAKE = {"r50": cvnet_r50, "r101": cvnet_r101}

# (in, out, side) of the centre-pivot convolutions of each block of `cv_learner`: index/ builds them.
CV_LEARNER = (
    ((9, 16, 5),),
    ((16, 16, 3), (16, 32, 3)),
    ((32, 32, 3), (32, 32, 3), (32, 64, 3)),
    ((64, 64, 3), (64, 64, 3), (64, 128, 3)),
)


def norm_names(name: str) -> list[str]:
    return [
        f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def published_names(blocks: tuple[int, ...]) -> list[str]:
    """What the published checkpoints hold of the part that sees one image."""
    names = ["encoder_q.stem.conv.weight", *norm_names("encoder_q.stem.bn")]
    for stage, count in enumerate(blocks, start=1):
        for n in range(1, count + 1):
            block = f"encoder_q.s{stage}.b{n}"
            if n == 1:
                names += [f"{block}.proj.weight", *norm_names(f"{block}.bn")]
            for conv in "abc":
                names += [f"{block}.f.{conv}.weight", *norm_names(f"{block}.f.{conv}_bn")]
    names += [f"encoder_q.head.{part}" for part in ("pool.p", "fc.weight", "fc.bias")]
    return names + [f"conv2ds.{scale}.weight" for scale in range(3)]


def cv_learner_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for block, convs in enumerate(CV_LEARNER, start=1):
        for n, (channels_in, channels_out, side) in enumerate(convs):
            name = f"cv_learner.block{block}"
            for conv in ("conv1", "conv2"):
                yield f"{name}.{3 * n}.{conv}.weight", (channels_out, channels_in, side, side)
                yield f"{name}.{3 * n}.{conv}.bias", (channels_out,)
            yield f"{name}.{3 * n + 1}.weight", (channels_out,)
            yield f"{name}.{3 * n + 1}.bias", (channels_out,)
    for layer, channels_out in ((0, 128), (2, 2)):
        yield f"cv_learner.mlp.{layer}.weight", (channels_out, 128)
        yield f"cv_learner.mlp.{layer}.bias", (channels_out,)


def on_meta(which: str) -> CVNet:
    with torch.device("meta"):
        return MAKE[which]()


@cache
def seeded_network(which: str) -> CVNet:
    network = on_meta(which)
    shapes = {name: tuple(own.shape) for name, own in network.state_dict().items()}
    load_exactly(network, {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    return network.eval().requires_grad_(False)


def relative_error(found: torch.Tensor, golden: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(found.numpy() - golden).max() / np.abs(golden).max())


@pytest.mark.parametrize("which", ["r50", "r101"])
def test_descriptor_and_map_equal_the_reference_implementation(which: str) -> None:
    network = seeded_network(which)
    maps = network(torch.from_numpy(tensor("img", (1, 3, 96, 128))), ["s3_pre", "s4"])
    rerank = maps["s3_pre"]
    with np.load(GOLDEN) as golden:
        assert tuple(rerank.shape) == tuple(golden[f"{which}_feat_shape"])
        assert relative_error(rerank[0, :8], golden[f"{which}_feat_corner"]) < 1e-4
        assert relative_error(rerank.mean(dim=(2, 3))[0], golden[f"{which}_feat_mean_c"]) < 1e-4
        descriptor = network.global_descriptor(maps["s4"])[0]
        assert relative_error(descriptor, golden[f"{which}_global"]) < 1e-4


def test_the_pyramid_correlates_as_the_reference_implementation_says() -> None:
    network = seeded_network("r50")
    query, key = (
        network.project_pyramid(torch.from_numpy(tensor(name, shape)))
        for name, shape in (("fq", (1, 1024, 10, 7)), ("fk", (1, 1024, 6, 9)))
    )
    with np.load(GOLDEN) as golden:
        expected = golden["fm_corr"]
    for place, (q, k) in enumerate((q, k) for q in query for k in key):
        assert relative_error(naive_correlation(q[0], k[0], (10, 7), (6, 9)), expected[place]) < 1e-4


def naive_correlation(
    q: torch.Tensor, k: torch.Tensor, query_size: tuple[int, int], key_size: tuple[int, int]
) -> torch.Tensor:
    """Cosines of all pairs of cells, brought to the sizes of the two maps, without the negative ones."""
    norms = q.norm(dim=0)[:, :, None, None] * k.norm(dim=0)
    cosines = torch.einsum("chw,cij->hwij", q, k) / (norms + 1e-8)
    for size in (query_size, key_size):  # the first two sides; then they change places
        rows, columns, *others = cosines.shape
        flat = cosines.reshape(rows, columns, -1).permute(2, 0, 1)[None]
        resized = functional.interpolate(flat, size, mode="bilinear", align_corners=True)[0]
        cosines = resized.reshape(*others, *size)
    return cosines.relu()


@pytest.mark.parametrize(
    ("which", "tensors", "parameters"), [("r50", 382, 35_190_499), ("r101", 688, 54_182_627)]
)
def test_names_and_numbers_are_those_of_the_published_checkpoint(
    which: str, tensors: int, parameters: int
) -> None:
    network, others = on_meta(which), dict(cv_learner_shapes())
    assert sorted(network.state_dict()) == sorted(published_names(BLOCKS[which]))
    assert len(network.state_dict()) + len(others) == tensors
    own = sum(parameter.numel() for parameter in network.parameters())
    assert own + sum(int(np.prod(shape)) for shape in others.values()) == parameters


def test_a_published_checkpoint_loads_beside_its_other_half() -> None:
    whole = {name: torch.empty(own.shape, device="meta") for name, own in on_meta("r50").state_dict().items()}
    whole |= {name: torch.empty(shape, device="meta") for name, shape in cv_learner_shapes()}
    load_exactly(on_meta("r50"), whole, NETWORKS["cvnet-r50"].others)
    with pytest.raises(BadInput, match=r"58 left over: cv_learner\.block1"):
        load_exactly(on_meta("r50"), whole)


def test_shapes_are_the_published_ones() -> None:
    shapes = {name: tuple(own.shape) for name, own in on_meta("r50").state_dict().items()}
    assert shapes["encoder_q.s2.b1.f.b.weight"] == (128, 128, 3, 3)
    assert shapes["encoder_q.s4.b1.proj.weight"] == (2048, 1024, 1, 1)
    assert shapes["encoder_q.head.fc.weight"] == (2048, 2048)
    assert {shapes[f"conv2ds.{scale}.weight"] for scale in range(3)} == {(256, 1024, 3, 3)}


def test_the_descriptor_is_of_unit_length_and_in_float32_from_half_precision() -> None:
    network = seeded_network("r50")
    s4 = torch.from_numpy(np.abs(tensor("s4", (2, 2048, 3, 4)))) * 40  # its cube would not fit into float16
    whole = network.global_descriptor(s4)
    half = network.global_descriptor(s4.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(half, whole, atol=1e-3, rtol=0)


def test_pooling_is_the_generalised_mean_of_what_is_above_the_clamp() -> None:
    pool = GeMPool()
    small = torch.tensor([[[[0.0, -1.0]], [[0.02, 0.05]]]])
    expected = [1e-6, ((0.02**3 + 0.05**3) / 2) ** (1 / 3)]
    torch.testing.assert_close(pool(small).detach(), torch.tensor([expected]), rtol=1e-5, atol=0)


def test_the_pyramid_keeps_the_type_of_the_map() -> None:
    network = seeded_network("r50")
    s3 = torch.from_numpy(tensor("s3", (2, 1024, 5, 4)))
    whole, half = network.project_pyramid(s3), network.project_pyramid(s3.bfloat16())
    for one, other in zip(whole, half, strict=True):
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(other.float(), one, atol=0.15, rtol=0.05)


def test_levels_of_a_pyramid_round_halves_to_even() -> None:
    assert pyramid_sizes(5, 7) == [(2, 4), (4, 5), (5, 7)]
    assert pyramid_sizes(2, 3) == [(1, 2), (1, 2), (2, 3)]
    made = seeded_network("r50").project_pyramid(torch.zeros(1, 1024, 5, 7))
    assert [tuple(level.shape) for level in made] == [(1, 256, 2, 4), (1, 256, 4, 5), (1, 256, 5, 7)]


@pytest.mark.parametrize("size", [(1, 8), (8, 1)])
def test_a_map_with_a_side_of_one_cell_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=rf"{size[0]} x {size[1]} cells.*17 pixels or more"):
        on_meta("r50").project_pyramid(torch.zeros(1, 1024, *size, device="meta"))


def test_an_image_of_the_least_size_has_a_pyramid_and_a_smaller_one_has_not() -> None:
    network = on_meta("r50")
    for side, rows in ((17, 2), (16, 1)):
        (made,) = network(torch.zeros(1, 3, side, 64, device="meta"), ["s3_pre"]).values()
        assert made.shape[2] == rows


def test_it_computes_on_the_device_of_its_input() -> None:
    network = on_meta("r101")
    maps = network(torch.zeros(2, 3, 64, 96, device="meta"), ["s3_pre", "s4"])
    assert network.global_descriptor(maps["s4"]).is_meta
    assert all(level.is_meta for level in network.project_pyramid(maps["s3_pre"]))


def test_gradients_reach_the_exponent_and_the_first_convolution() -> None:
    network = cvnet_r50().train()
    (s4,) = network(torch.from_numpy(tensor("img", (2, 3, 33, 64))), ["s4"]).values()
    network.global_descriptor(s4)[:, 0].sum().backward()
    for name in ("encoder_q.head.pool.p", "encoder_q.stem.conv.weight"):
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0
