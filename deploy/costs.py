"""What features will take on the store: said before anything is written, and what a part's size follows from.

Upper estimates, for images of 4:3 that are as large as the recipe lets them be.
"""

from typing import TYPE_CHECKING, Any

from ingest.cnn_columns import ColumnsSettings
from ingest.cnn_global import GlobalSettings
from ingest.cnn_patches import PatchesSettings
from ingest.cvnet_pyramid import PyramidSettings
from ingest.features import FeatureSettings
from ingest.network_kinds import NETWORKS, Layer
from ingest.pyramid_storage import stored_bytes
from ingest.regions import regions_of
from ingest.sift import SiftSettings

if TYPE_CHECKING:
    from ingest.networks import NetworkSettings

_SIFT_BYTES = 148  # a key point: place, diameter, angle, response, descriptor
_LEAST_SIDE = 32  # pixels of an image that has a pyramid
_PLACE_BYTES = 12  # of another local feature
_UNKNOWN = Layer(2048, 32, 0)  # of somebody's own network
_PART_BYTES = 256 * 2**20  # of a part's features, in a worker's memory while it is described
_PART_IMAGES = (32, 1024)


def feature_bytes(features: FeatureSettings) -> dict[str, int]:
    """Bytes an image, by label."""
    longest = features.decode.longest_side
    return {label: _bytes(settings, longest) for label, settings in features.stored.items()}


def _bytes(settings: Any, longest: int) -> int:
    if isinstance(settings, SiftSettings):
        return settings.max_keypoints * _SIFT_BYTES
    width = min(longest, getattr(settings, "longest_side", None) or longest)
    height = 3 * width // 4
    if isinstance(settings, PyramidSettings):
        if settings.storage == "none":
            return 0
        height, width = max(height, _LEAST_SIDE), max(width, _LEAST_SIDE)
        return stored_bytes(height, width, settings.storage, longest_map_side=settings.longest_map_side)
    layer = _layer(settings.network, settings.layer)
    if isinstance(settings, PatchesSettings):
        return settings.max_patches * (2 * layer.channels + _PLACE_BYTES)
    cells = -(-height // layer.stride), -(-width // layer.stride)
    if isinstance(settings, ColumnsSettings):
        return min(settings.max_columns, cells[0] * cells[1]) * (2 * layer.channels + _PLACE_BYTES)
    assert isinstance(settings, GlobalSettings)
    return len(regions_of(*cells, settings.regions)) * 4 * (layer.channels + 4)


def _layer(network: "NetworkSettings", name: str | None) -> Layer:
    kind = NETWORKS[network.name]
    return kind.layers.get(name or kind.default_layer, _UNKNOWN)


def part_images(features: FeatureSettings | None) -> int:
    """Images of a part, so that a worker has memory for what it finds in them."""
    least, most = _PART_IMAGES
    if features is None:
        return most
    return max(least, min(most, _PART_BYTES // max(1, sum(feature_bytes(features).values()))))


def told(features: FeatureSettings, images: int) -> str:
    """`features of 10,000 images will take up to 13 GB: 222 KB local, 1,074 KB pyramid an image`."""
    each = feature_bytes(features)
    parts = (
        ", ".join(f"{size / 1000:,.0f} KB {label}" for label, size in each.items()) or "nothing is stored of"
    )
    total = images * sum(each.values())
    return f"features of {images:,} images will take up to {_size(total)}: {parts} an image"


def _size(count: float) -> str:
    for unit in ("KB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:,.3g} {unit}"
    return f"{count / 1000:,.3g} TB"
