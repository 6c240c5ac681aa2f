"""CVNet as a describer: descriptor and pyramid of the reference implementation, from one pass, as stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ingest import cnn
from ingest.cnn import NetworkDescriber, Seen
from ingest.cnn_global import GlobalReader, GlobalSettings
from ingest.compute import Compute
from ingest.cvnet_pyramid import PyramidReader, PyramidSettings
from ingest.describe import ImageDescriber
from ingest.features import FeatureSettings
from ingest.image_features import ImageFeatures
from ingest.image_tensors import to_tensor
from ingest.network_maps import Network
from ingest.networks import NetworkSettings, build_network
from ingest.outcomes import Outcome, Rejected
from ingest.pyramid_storage import from_stored
from tests.cvnet_checkpoint import golden_state
from tests.golden.seeded import tensor
from tests.ingest.describing import picture, same, whole

GOLDEN = Path(__file__).parents[1] / "golden" / "cvnet.npz"
NETWORK = {"name": "cvnet-r50", "weights": "seed:0", "digest": "0" * 32}
LABELS: dict[str, Any] = {
    "global": {"kind": "cnn-global", "network": NETWORK, "head": True},
    "pyramid": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "float32"},
    "half": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "float16"},
    "none": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "none"},
    "capped": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "float32", "longest_map_side": 4},
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return golden_state()


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> Network:
    return build_network(NetworkSettings.model_validate(NETWORK), state)


@pytest.fixture(scope="module")
def describer(state: dict[str, Tensor]) -> ImageDescriber:
    settings = FeatureSettings.model_validate({"describe": LABELS})
    return ImageDescriber(settings.describe, lambda _: state, Compute())


def test_the_stored_descriptor_is_that_of_the_reference_implementation(network: Network) -> None:
    with torch.inference_mode():
        maps = network(torch.from_numpy(tensor("img", (1, 3, 96, 128))))
    reader = GlobalReader(GlobalSettings.model_validate(LABELS["global"]))
    (found,) = reader.arrays(network, {1.0: maps}, [Seen(whole(picture(96, 128)), 128, 96)])
    assert not isinstance(found, Rejected)
    with np.load(GOLDEN) as golden:
        expected = golden["r50_global"]
    assert found["descriptors"].shape == (1, 2048)
    assert np.abs(found["descriptors"][0] - expected).max() < 1e-4 * np.abs(expected).max()
    assert found["boxes"].tolist() == [[0, 0, 128, 96]]


def test_the_stored_pyramid_is_what_the_network_projects(network: Network) -> None:
    """Whose correlations are those of the reference implementation (test_network_cvnet)."""
    s3 = torch.from_numpy(tensor("fq", (1, 1024, 10, 7)))
    reader = PyramidReader(PyramidSettings.model_validate(LABELS["pyramid"]))
    (found,) = reader.arrays(network, {1.0: {"s3_pre": s3}}, [Seen(whole(picture(160, 112)), 112, 160)])
    assert not isinstance(found, Rejected)
    expected = network.project_pyramid(s3)  # type: ignore[operator]
    for made, level in zip(from_stored(found), expected, strict=True):
        assert np.array_equal(made, level[0].numpy())


def test_one_pass_gives_descriptor_and_pyramids(
    describer: ImageDescriber, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = NetworkDescriber._maps
    monkeypatch.setattr(NetworkDescriber, "_maps", lambda *given: passes.append(given[3]) or original(*given))
    pixels = picture(64, 96)
    (found,) = describer.describe([whole(pixels)])
    assert isinstance(found, ImageFeatures)
    assert passes == [["s3_pre", "s4"]]
    with torch.inference_mode():
        maps = network(to_tensor(pixels, NetworkSettings.model_validate(NETWORK).preprocessing)[None])
        descriptor = network.global_descriptor(maps["s4"])  # type: ignore[operator]
        pyramid = [level[0].numpy() for level in network.project_pyramid(maps["s3_pre"])]  # type: ignore[operator]
    np.testing.assert_allclose(found.of("global")["descriptors"], descriptor.numpy(), atol=1e-6)
    for label in ("pyramid", "none"):
        for made, level in zip(from_stored(found.of(label)), pyramid, strict=True):
            np.testing.assert_allclose(made, level, atol=1e-4 * np.abs(level).max())
    for made, level in zip(from_stored(found.of("half")), pyramid, strict=True):
        np.testing.assert_allclose(made, level, atol=1e-3 * np.abs(level).max())
    assert [made.shape[1:] for made in from_stored(found.of("capped"))] == [(2, 2), (2, 3), (3, 4)]


def test_channels_are_seen_in_the_order_that_the_network_was_trained_on(describer: ImageDescriber) -> None:
    pixels = picture(64, 64)
    as_it_is, swapped = describer.describe([whole(pixels), whole(np.ascontiguousarray(pixels[:, :, ::-1]))])
    assert isinstance(as_it_is, ImageFeatures) and isinstance(swapped, ImageFeatures)
    assert not np.allclose(
        as_it_is.of("global")["descriptors"], swapped.of("global")["descriptors"], atol=1e-3
    )


def test_images_do_not_see_each_other(describer: ImageDescriber, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in a batch, as on a GPU; sums are made in another order there."""
    images = [whole(picture(*size, seed)) for seed, size in enumerate(((64, 96), (96, 64), (64, 96)))]
    alone = [describer.describe([image])[0] for image in images]
    assert all(map(same, describer.describe(images), alone))
    monkeypatch.setitem(cnn._BATCH, "cpu", 2)
    for found, expected in zip(describer.describe(images), alone, strict=True):
        assert isinstance(found, ImageFeatures) and isinstance(expected, ImageFeatures)
        for label, arrays in expected.by_label.items():
            for name, array in arrays.items():
                largest = np.abs(array).max().astype(np.float64)
                np.testing.assert_allclose(found.of(label)[name] / largest, array / largest, atol=1e-3)


@pytest.mark.parametrize("size", [(16, 64), (64, 16)])
def test_an_image_whose_map_has_a_side_of_one_cell_is_too_small(
    size: tuple[int, int], describer: ImageDescriber
) -> None:
    good = whole(picture(64, 64))
    rejected, found = describer.describe([whole(picture(*size)), good])
    assert isinstance(rejected, Rejected) and rejected.reason is Outcome.TOO_SMALL
    assert "17 pixels or more" in rejected.detail
    assert same(found, describer.describe([good])[0])
    assert isinstance(describer.describe([whole(picture(17, 64))])[0], ImageFeatures)


def test_what_is_not_stored_is_not_described_when_storing(state: dict[str, Tensor]) -> None:
    settings = FeatureSettings.model_validate({"describe": LABELS})
    assert set(settings.stored) == LABELS.keys() - {"none"}
    (found,) = ImageDescriber(settings.stored, lambda _: state, Compute()).describe([whole(picture(64, 64))])
    assert isinstance(found, ImageFeatures)
    assert set(found.by_label) == LABELS.keys() - {"none"}
