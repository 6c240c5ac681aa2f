"""4-D convolution by its centre pivots (Min et al. 2021, HSNet, section 3.2; used by CVNet, Lee et al. 2022).

A k x k x k x k kernel keeps only the weights whose offset is zero in one of the two images. What remains
are two 2-D convolutions, which are added: one over the query at each position of the key, one over the key
at each position of the query. With stride s only every s-th position of the other image counts, so an input
off these *pivots* in both images is never read.

Tensors are (pairs, channels, hq, wq, hk, wk). Those made here have their channels innermost in memory: then
both convolutions run on channels-last images, and only the one over the query has to copy them there.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

_GROUPS = 4  # of every group norm in CVNet
# Bytes of input convolved at a time. On a CPU it should stay in the cache, and not be given back to the
# kernel when it is freed: a third of the time at 1024 x 768 pixels went into faulting it in again.
CPU_CHUNK, CHUNK = 4 * 2**20, 64 * 2**20


class CentrePivotConv(nn.Module):
    """One 4-D convolution: `conv1` over the query, `conv2` over the key, each with its bias.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        side: of the kernel, odd; side // 2 zeros are put around each image.
        stride: in all four dimensions.
    """

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2)
        self.conv2 = nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2)

    def forward(self, x: Float[Tensor, "p c hq wq hk wk"]) -> Float[Tensor, "p d iq jq ik jk"]:
        s = self.stride
        over_query = over_image(self.conv1, _parts(x[..., ::s, ::s].permute(0, 4, 5, 2, 3, 1)))
        over_key = over_image(self.conv2, _parts(x[:, :, ::s, ::s].permute(0, 2, 3, 4, 5, 1)))
        return joined(over_query, over_key)


def _parts(x: Float[Tensor, "p hb wb ha wa c"]) -> Iterator[Float[Tensor, "p rows wb c ha wa"]]:
    count = rows_at_once(x[:, 0].numel() * x.element_size(), x.device)
    for part in torch.split(x, count, dim=1):
        yield part.contiguous().permute(0, 1, 2, 5, 3, 4)


def rows_at_once(row_bytes: int, device: torch.device) -> int:
    """How many rows of positions, of so many bytes each, to convolve at a time on a device; 1 or more."""
    return max(1, (CPU_CHUNK if device.type == "cpu" else CHUNK) // row_bytes)


def over_image(
    conv: nn.Conv2d, parts: Iterable[Float[Tensor, "p rows wb c ha wa"]]
) -> Float[Tensor, "p hb wb ia ja d"]:
    """A 2-D convolution over one image (a) at each position of the other (b).

    Args:
        conv: c to d channels.
        parts: some rows of b's positions at a time.
    """
    done = []
    for part in parts:
        convolved = conv(part.reshape(-1, *part.shape[3:])).permute(0, 2, 3, 1)
        done.append(convolved.reshape(*part.shape[:3], *convolved.shape[1:]))
    return torch.cat(done, dim=1) if len(done) > 1 else done[0]


def joined(
    over_query: Float[Tensor, "p ik jk iq jq d"], over_key: Float[Tensor, "p iq jq ik jk d"]
) -> Float[Tensor, "p d iq jq ik jk"]:
    """The sum of both convolutions, in the memory of the second."""
    return over_key.add_(over_query.permute(0, 3, 4, 1, 2, 5)).permute(0, 5, 1, 2, 3, 4)


class GroupNorm4d(nn.GroupNorm):
    """Group norm (Wu and He 2018), 4 groups, over all four dimensions of a pair."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels)

    def forward(self, input: Float[Tensor, "p c hq wq hk wk"]) -> Float[Tensor, "p c hq wq hk wk"]:
        # As maps (positions, positions) with channels innermost, which torch norms without a copy.
        p, c, hq, wq, hk, wk = input.shape
        maps = input.permute(0, 2, 3, 4, 5, 1).reshape(p, hq * wq, hk * wk, c).permute(0, 3, 1, 2)
        normed = super().forward(maps).permute(0, 2, 3, 1)
        return normed.view(p, hq, wq, hk, wk, c).permute(0, 5, 1, 2, 3, 4)
