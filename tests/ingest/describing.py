"""What tests of describers share: opened ones, pictures as pixels, and features compared to the last bit."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ingest.compute import Compute
from ingest.decode import Decoded
from ingest.describe import ImageDescriber
from ingest.features import FeatureSettings
from ingest.image_features import Arrays, ImageFeatures
from ingest.outcomes import Rejected
from ingest.weights import read_describers_weights


def open_describer(describe: Mapping[str, Any], **compute: Any) -> ImageDescriber:
    """The describers of a recipe's `features.describe`, with the weights that it names."""
    from safetensors.torch import load

    settings = FeatureSettings.model_validate({"describe": describe}).describe
    read = read_describers_weights(settings)
    return ImageDescriber(read.describe, lambda digest: load(read.objects[digest]), Compute(**compute))


def one(describer: ImageDescriber, image: Decoded, label: str) -> Arrays:
    """What one image holds under one label."""
    (features,) = describer.describe([image])
    assert isinstance(features, ImageFeatures), features
    return features.of(label)


def whole(pixels: np.ndarray) -> Decoded:
    """An image that was not reduced, turned or cut."""
    height, width = pixels.shape[:2]
    return Decoded(pixels, width, height, (0, 0, width, height))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8 with structure at several scales."""
    rng = np.random.default_rng([height, width, seed])
    made = np.zeros((height, width, 3))
    for cells in (3, 9, 27):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        made += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return (made / 3).astype(np.uint8)


def png_of(pixels: np.ndarray, **options: Any) -> bytes:
    """Pixels as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def same(one: ImageFeatures | Rejected, other: ImageFeatures | Rejected) -> bool:
    """Whether two are equal to the last bit."""
    if isinstance(one, Rejected) or isinstance(other, Rejected):
        return one == other
    rest = (one.width, one.height, one.scale) == (other.width, other.height, other.scale)
    return rest and _flat(one) == _flat(other)


def _flat(features: ImageFeatures) -> Sequence[tuple[Any, ...]]:
    return [
        (label, name, array.dtype, array.shape, array.tobytes())
        for label, arrays in sorted(features.by_label.items())
        for name, array in sorted(arrays.items())
    ]
