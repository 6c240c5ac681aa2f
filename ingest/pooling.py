"""Pooling: the map of a network becomes one vector, or one a region.

Maps are (b, c, h, w) tensors: c channels of h x w cells, for b images. Results are (b, c), or (b, r, c), not
L2-normalised: that, whitening and L2 again come after. Half-precision maps are pooled in float32, anything
else in its own type, all on the device of the maps, and gradients pass through.

torch is imported inside the functions, so that reading a recipe does not wait for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.errors import BadInput
from ingest.regions import Region, RegionSettings, regions_of, rmac_regions

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-6  # GeM takes what is below it for it
_SAFE_NORM = 1e-12  # vectors shorter than it are not stretched to unit length: what is zero stays zero


class PoolingSettings(BaseModel):
    """How a map, or a region of it, becomes one vector. None of the choices costs time worth counting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mac", "spoc", "gem", "rmac", "crow", "centre"] = Field(
        default="gem",
        description="mac: maximum; spoc: mean; gem: generalised mean; rmac: sum of the unit maxima of a grid "
        "of regions; crow: sum weighted by cell and channel; centre: mean with more weight in the middle",
    )
    p: float = Field(
        default=3.0,
        ge=1,
        le=16,
        description="gem: the exponent; 1 is the mean (spoc), more comes nearer to the maximum (mac)",
    )
    levels: int = Field(
        default=3, ge=1, le=6, description="rmac: levels of the grid; level l adds about l^2 regions"
    )
    sigma: float = Field(
        default=1 / 3,
        gt=0,
        description="centre: standard deviation of the Gaussian, in halves of the map's shorter side; "
        "large is the mean (spoc)",
    )


def pool(maps: "Tensor", settings: PoolingSettings) -> "Tensor":
    """One vector a map: (b, c, h, w) to (b, c), not normalised.

    Raises:
        BadInput: the maps have another number of axes, or no cells.
    """
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise BadInput(
            f"pooling takes maps (images, channels, rows, columns) with cells, got {tuple(maps.shape)}: "
            "name a layer that yields maps, and larger images if there are no cells"
        )
    return POOLINGS[settings.kind](maps, settings)


def pool_regions(maps: "Tensor", pooling: PoolingSettings, regions: RegionSettings) -> "Tensor":
    """One vector a region: (b, c, h, w) to (b, r, c), in the order of `ingest.regions.regions_of`.

    The first is the whole map's. `ingest.regions.region_boxes` says where the regions are.
    """
    import torch

    height, width = maps.shape[-2:]
    cuts = [_cut(maps, region) for region in regions_of(height, width, regions)]
    return torch.stack([pool(cut, pooling) for cut in cuts], dim=1)


def mac(maps: "Tensor") -> "Tensor":
    """The maximum of each channel (Razavian et al. 2016)."""
    return at_least_float32(maps).amax(dim=(2, 3))


def spoc(maps: "Tensor") -> "Tensor":
    """The mean of each channel: sum pooling (Babenko and Lempitsky 2015), but for a factor."""
    return at_least_float32(maps).mean(dim=(2, 3))


def gem(maps: "Tensor", p: "float | Tensor" = 3.0) -> "Tensor":
    """The generalised mean `mean(max(x, 1e-6)^p)^(1/p)` of each channel (Radenović et al. 2019, equation 3).

    Args:
        maps: (b, c, h, w); `x^p` must fit its type (float32 holds 200^16).
        p: the exponent; a tensor of one element, or of one a channel, gets gradients.
    """
    columns = at_least_float32(maps).clamp(min=_LEAST).flatten(2)
    if not isinstance(p, int | float):
        p = p.to(columns.dtype).reshape(-1, 1)
    return columns.pow(p).mean(dim=2, keepdim=True).pow(1 / p).squeeze(2)


def rmac(maps: "Tensor", levels: int = 3) -> "Tensor":
    """The sum of the unit-length maxima of R-MAC's regions, the whole among them (Tolias et al. 2016)."""
    maps = at_least_float32(maps)
    regions = rmac_regions(maps.shape[2], maps.shape[3], levels)
    first, *others = (l2_normalised(mac(_cut(maps, region))) for region in regions)
    return sum(others, first)


def crow(maps: "Tensor") -> "Tensor":
    """The cross-dimensional weighted sum (Kalantidis et al. 2016, sections 4.1 and 4.2).

    With S the sum over channels, cells weigh `(S / |S|_2)^(1/2)`; with Q_k the share of cells in which
    channel k is positive, channels weigh `log(sum Q / Q_k)`, 0 where Q_k is 0. Defined after a ReLU: what
    is negative is taken for 0.
    """
    maps = at_least_float32(maps).clamp(min=0)
    sums = maps.sum(dim=1)
    # The root's slope at 0 is infinite. A cell of sum 0 holds zeros alone: its weight does not matter.
    cells = l2_normalised(sums.flatten(1)).clamp(min=_SAFE_NORM).sqrt().reshape(sums.shape)
    shares = (maps > 0).to(maps.dtype).mean(dim=(2, 3))
    total = shares.sum(dim=1, keepdim=True)
    channels = (total / shares).log().where(shares > 0, 0)
    return (maps * cells[:, None]).sum(dim=(2, 3)) * channels


def centre_prior(maps: "Tensor", sigma: float = 1 / 3) -> "Tensor":
    """The mean weighted by a Gaussian around the map's centre (Babenko and Lempitsky 2015, section 3.2).

    Args:
        maps: (b, c, h, w).
        sigma: standard deviation, in halves of the map's shorter side.
    """
    maps = at_least_float32(maps)
    spread = sigma * min(maps.shape[2:]) / 2
    weights = _gaussian(maps, 2, spread)[:, None] * _gaussian(maps, 3, spread)
    return (maps * weights).sum(dim=(2, 3))


def _gaussian(maps: "Tensor", axis: int, spread: float) -> "Tensor":
    """Weights of sum 1 along one side of the maps; the middle weighs most."""
    import torch

    length = maps.shape[axis]
    offsets = torch.arange(length, dtype=maps.dtype, device=maps.device) - (length - 1) / 2
    return (-((offsets / spread) ** 2) / 2).softmax(dim=0)


POOLINGS: dict[str, Callable[["Tensor", PoolingSettings], "Tensor"]] = {
    "mac": lambda maps, _: mac(maps),
    "spoc": lambda maps, _: spoc(maps),
    "gem": lambda maps, settings: gem(maps, settings.p),
    "rmac": lambda maps, settings: rmac(maps, settings.levels),
    "crow": lambda maps, _: crow(maps),
    "centre": lambda maps, settings: centre_prior(maps, settings.sigma),
}


def l2_normalised(vectors: "Tensor") -> "Tensor":
    """Vectors along the last axis, divided by their L2 norm; a zero vector stays zero."""
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=_SAFE_NORM)
    return unit


def at_least_float32(maps: "Tensor") -> "Tensor":
    """Half-precision maps in float32, where sums and powers do not overflow; others as they are."""
    return maps.float() if maps.dtype.itemsize < 4 else maps


def _cut(maps: "Tensor", region: Region) -> "Tensor":
    return maps[:, :, region.y0 : region.y1, region.x0 : region.x1]
