"""Residual networks (He et al. 2016) as CVNet builds them: names of the published checkpoints' tensors.

Bottlenecks have their stride on the 3x3 convolution, and the projection is `proj` with its norm `bn`. All
padding is symmetric: cell (i, j) of a map of stride s is centred on pixel (s j, s i) of the input.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ingest.network_maps import Network

_EPS = 1e-5


def _conv(channels_in: int, channels_out: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS)


class Stem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 maximum of stride 2: (b, 3, h, w) to (b, 64, h/4, w/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(3, 64, 7, stride=2)
        self.bn = _norm(64)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64 i j"]:
        return functional.max_pool2d(
            functional.relu(self.bn(self.conv(x)), inplace=True), 3, stride=2, padding=1
        )


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1; a norm after each and a ReLU between them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inside = channels_out // 4
        self.a, self.a_bn = _conv(channels_in, inside, 1), _norm(inside)
        self.b, self.b_bn = _conv(inside, inside, 3, stride), _norm(inside)
        self.c, self.c_bn = _conv(inside, channels_out, 1), _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a_bn(self.a(x)), inplace=True)
        x = functional.relu(self.b_bn(self.b(x)), inplace=True)
        made: Tensor = self.c_bn(self.c(x))
        return made


class Basic(nn.Module):
    """3x3 (with the stride), 3x3; a norm after each and a ReLU between them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.a, self.a_bn = _conv(channels_in, channels_out, 3, stride), _norm(channels_out)
        self.b, self.b_bn = _conv(channels_out, channels_out, 3), _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a_bn(self.a(x)), inplace=True)
        made: Tensor = self.b_bn(self.b(x))
        return made


class Block(nn.Module):
    """A transform beside the identity, or beside a projection where the shape changes. No final ReLU."""

    def __init__(
        self, kind: type[Bottleneck | Basic], channels_in: int, channels_out: int, stride: int
    ) -> None:
        super().__init__()
        self.projects = channels_in != channels_out or stride != 1
        if self.projects:
            self.proj = _conv(channels_in, channels_out, 1, stride)
            self.bn = _norm(channels_out)
        self.f = kind(channels_in, channels_out, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        beside: Tensor = self.bn(self.proj(x)) if self.projects else x
        transformed: Tensor = self.f(x)
        return beside + transformed


class ResNet(Network):
    """The maps of a residual network: `s1` to `s4`, strides 4 to 32, and each `_pre`, before its final ReLU.

    Args:
        kind: the transform of each block.
        blocks: blocks of each of the four stages.
        channels: of each stage.
    """

    layers = ("s1_pre", "s1", "s2_pre", "s2", "s3_pre", "s3", "s4_pre", "s4")

    def __init__(
        self, kind: type[Bottleneck | Basic], blocks: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = Stem()
        inputs = (64, *channels)
        for stage, count in enumerate(blocks):
            members: OrderedDict[str, nn.Module] = OrderedDict(
                (
                    f"b{n + 1}",
                    Block(
                        kind,
                        inputs[stage] if n == 0 else channels[stage],
                        channels[stage],
                        stride=2 if n == 0 and stage > 0 else 1,
                    ),
                )
                for n in range(count)
            )
            self.add_module(f"s{stage + 1}", nn.Sequential(members))

    def stages(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Float[Tensor, "b c i j"]]]:
        x = self.stem(x)
        for name in ("s1", "s2", "s3", "s4"):
            *early, last = self.get_submodule(name).children()
            for block in early:
                x = functional.relu(block(x), inplace=True)
            before = last(x)
            yield f"{name}_pre", before
            x = functional.relu(before)  # not in place: `before` may be kept
            yield name, x


def resnet18() -> ResNet:
    """Basic blocks (2, 2, 2, 2); 64, 128, 256, 512 channels; 11.2 million parameters."""
    return ResNet(Basic, (2, 2, 2, 2), (64, 128, 256, 512))


def resnet50() -> ResNet:
    """Bottlenecks (3, 4, 6, 3); 256, 512, 1024, 2048 channels; 23.5 million parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), (256, 512, 1024, 2048))


def resnet101() -> ResNet:
    """Bottlenecks (3, 4, 23, 3); 256, 512, 1024, 2048 channels; 42.5 million parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), (256, 512, 1024, 2048))
