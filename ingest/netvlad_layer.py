"""NetVLAD as a layer of a network (Arandjelovic et al. 2016), and its regions as in SFRS (Ge et al. 2020).

`index.netvlad` holds the same function over stored columns of maps, fitted by clustering; this one has
gradients, and the names that published checkpoints use: `conv.weight` (k, c, 1, 1), `conv.bias` (k,) where
there is one, `centroids` (k, c).
"""

import torch
from torch import Tensor, nn

from ingest.pooling import at_least_float32, l2_normalised
from ingest.regions import Region, sfrs_regions


class NetVladLayer(nn.Module):
    """Maps (b, c, h, w) to L2-normalised vectors (b, k c), word by word.

    Each cell's column x gets unit length; `a = softmax_k(w_k.x + b_k)`; `V_k = sum of a_k (x - c_k)` over the
    cells; then each V_k gets unit length, and the whole. Its parameters are random until they are loaded or
    set from a clustering (`index.netvlad.fit_netvlad`). Memory: (c + k) x h x w x 4 bytes an image, besides
    the map.

    Args:
        words: k.
        dim: c, channels of the maps.
        bias: whether assignment has a bias: initialisation v2 sets it, v1 and checkpoints of SFRS have none.
    """

    def __init__(self, words: int, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, words, kernel_size=1, bias=bias)
        self.centroids = nn.Parameter(torch.rand(words, dim))

    def forward(self, maps: Tensor) -> Tensor:
        """(b, c, h, w) to (b, k c) in float32, or in the maps' type where that holds more."""
        columns, weights = self._assigned(maps)
        return normalised_vlad(self._residuals(columns.flatten(2), weights.flatten(2)))

    def region_vlads(self, maps: Tensor) -> Tensor:
        """The vectors of the nine regions of SFRS: (b, c, h, w) to (b, 9, k c), each L2-normalised.

        Residuals are summed over the quarters; those of halves and whole are sums of the quarters', and only
        then normalised. The first is what `forward` gives. See `sfrs_regions` for order and odd sides.
        """
        columns, weights = self._assigned(maps)
        quarters = sfrs_regions(*maps.shape[-2:])[5:]
        tl, tr, bl, br = (self._residuals(_cells(columns, q), _cells(weights, q)) for q in quarters)
        top, bottom, left, right = tl + tr, bl + br, tl + bl, tr + br
        return normalised_vlad(torch.stack([top + bottom, top, bottom, left, right, tl, tr, bl, br], dim=1))

    def _assigned(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Unit columns (b, c, h, w), and the share of each word in each cell (b, k, h, w)."""
        maps = at_least_float32(maps)
        columns = l2_normalised(maps.movedim(1, -1)).movedim(-1, 1)
        logits = at_least_float32(self.conv(columns.to(self.conv.weight.dtype)))
        return columns, logits.softmax(dim=1)

    def _residuals(self, columns: Tensor, weights: Tensor) -> Tensor:
        """`sum a x - (sum a) c` over cells: (b, c, n), (b, k, n) to (b, k, c), not normalised."""
        masses = weights.sum(dim=2)[..., None]
        return torch.einsum("bkn,bcn->bkc", weights, columns) - masses * self.centroids


def normalised_vlad(residuals: Tensor) -> Tensor:
    """Raw residuals (..., k, c) to (..., k c): each word of unit length, then the whole."""
    return l2_normalised(l2_normalised(residuals).flatten(-2))


def _cells(maps: Tensor, region: Region) -> Tensor:
    return maps[:, :, region.y0 : region.y1, region.x0 : region.x1].flatten(2)
