"""What features will take is said before they are written, and is never less than what they take."""

from typing import Any

import numpy as np
import pytest

from deploy.costs import feature_bytes, part_images, told
from deploy.recipes import load_recipe, shipped
from ingest.compute import Compute
from ingest.decode import Decoded
from ingest.describe import ImageDescriber
from ingest.features import FeatureSettings
from ingest.image_features import ImageFeatures
from ingest.weights import read_describers_weights, weights_digests

NETWORK = {"name": "efficientnet-lite0"}
KINDS: dict[str, dict[str, Any]] = {
    "sift": {"kind": "sift", "max_keypoints": 20, "contrast_threshold": 0.0},
    "pooled": {"kind": "cnn-global", "network": NETWORK},
    "regions": {"kind": "cnn-global", "network": NETWORK, "regions": {"kind": "sfrs"}},
    "columns": {"kind": "cnn-columns", "network": NETWORK, "layer": "reduction_4"},
    "few columns": {"kind": "cnn-columns", "network": NETWORK, "layer": "reduction_3", "max_columns": 50},
    "patches": {"kind": "cnn-patches", "network": NETWORK, "max_patches": 20, "side": 32},
}


def noise(height: int, width: int) -> Decoded:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Decoded(pixels, width, height, (0, 0, width, height))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_is_what_it_takes_at_most(kind: str) -> None:
    from safetensors.numpy import load

    from ingest.checkpoints import from_arrays

    settings = FeatureSettings.model_validate(
        {"decode": {"longest_side": 128}, "describe": {"it": KINDS[kind]}}
    )
    read = read_describers_weights(settings.describe)
    states = {digest: from_arrays(load(data)) for digest, data in read.objects.items()}
    assert weights_digests(read.describe.values()) == states.keys()
    describer = ImageDescriber(read.describe, lambda digest: states[digest], Compute())
    (found,) = describer.describe([noise(96, 128)])
    assert isinstance(found, ImageFeatures)
    taken = sum(array.nbytes for array in found.of("it").values())
    said = feature_bytes(settings)["it"]
    assert 0.5 * said < taken <= said * 1.001


def test_what_is_not_stored_costs_nothing() -> None:
    pyramid = {"kind": "cvnet-pyramid", "network": {"name": "cvnet-r50", "weights": "seed:0"}}
    for storage, share in (("float32", 4), ("float16", 2), ("int8", 1)):
        settings = FeatureSettings.model_validate({"describe": {"pyramid": {**pyramid, "storage": storage}}})
        assert feature_bytes(settings)["pyramid"] == pytest.approx(share * 530_000, rel=0.05)
    settings = FeatureSettings.model_validate({"describe": {"pyramid": {**pyramid, "storage": "none"}}})
    assert feature_bytes(settings) == {}


def test_parts_are_smaller_where_features_are_large() -> None:
    assert part_images(None) == 1024
    assert part_images(load_recipe("sift-vlad").features) == 1024
    assert 32 <= part_images(load_recipe("cvnet-r50").features) < 256


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_can_be_told(name: str) -> None:
    features = load_recipe(name).features
    if features is not None:
        text = told(features, 10_000_000)
        assert text.startswith("features of 10,000,000 images will take up to ")
        assert all(label in text for label in features.stored)
