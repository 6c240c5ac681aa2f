"""The half of CVNet (Lee et al. 2022) that sees one image: the global descriptor and the projected pyramid.

The other half, which sees two (correlation and `cv_learner`), is in `index/`: what is made here of an image
does not depend on any other, so it is computed once and stored. Tensors have the names of the published
checkpoints.
"""

from collections.abc import Iterator, Sequence

from jaxtyping import Float, Float32
from torch import Tensor, full, nn
from torch.nn import functional

from ingest.errors import BadInput
from ingest.network_maps import Network
from ingest.network_resnet import Bottleneck, ResNet

PYRAMID_SCALES = (0.5, 0.7071, 1.0)
CHANNELS = 2048  # of the last stage and of the global descriptor
RERANK_CHANNELS = 1024  # of the map that reranking looks at
PROJECTED_CHANNELS = 256
_SMALLEST = 1e-6  # GeM's clamp


class GeMPool(nn.Module):
    """Generalised mean over space, `(mean(max(x, 1e-6)^p))^(1/p)`, with one learnable exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(full((1,), 3.0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        p = self.p.to(x.dtype)
        return x.clamp(min=_SMALLEST).pow(p).mean(dim=(2, 3)).pow(1 / p)


class Head(nn.Module):
    """Pooling and one linear layer, with no norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = GeMPool()
        self.fc = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Float[Tensor, "b 2048 h w"]) -> Float[Tensor, "b 2048"]:
        return functional.linear(self.pool(x), self.fc.weight.to(x.dtype), self.fc.bias.to(x.dtype))


class Encoder(ResNet):
    """A bottleneck ResNet with CVNet's head; what `encoder_q.` holds in a checkpoint."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__(Bottleneck, blocks, (256, 512, 1024, CHANNELS))
        self.head = Head()

    def global_descriptor(self, s4: Float[Tensor, "b 2048 h w"]) -> Float32[Tensor, "b 2048"]:
        """The L2-normalised descriptor of each image, from its map `s4`, in float32."""
        return functional.normalize(self.head(s4.float()), dim=1)


class CVNet(Network):
    """Layers as `ResNet`'s; the global descriptor is made from `s4`, the pyramid from `s3_pre`.

    Args:
        blocks: blocks of each stage of the backbone.
    """

    layers = ResNet.layers

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.encoder_q = Encoder(blocks)
        self.conv2ds = nn.ModuleList(
            nn.Conv2d(RERANK_CHANNELS, PROJECTED_CHANNELS, 3, padding=1, bias=False) for _ in PYRAMID_SCALES
        )

    def stages(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Float[Tensor, "b c i j"]]]:
        return self.encoder_q.stages(x)

    def global_descriptor(self, s4: Float[Tensor, "b 2048 h w"]) -> Float32[Tensor, "b 2048"]:
        """CVNet-Global: GeM, linear layer, L2 norm, in float32.

        Args:
            s4: (b, 2048, h, w), the layer of that name.
        """
        return self.encoder_q.global_descriptor(s4)

    def project_pyramid(self, s3_pre: Float[Tensor, "b 1024 h w"]) -> list[Float[Tensor, "b 256 i j"]]:
        """The map at three sizes, each through its own 3x3 convolution to 256 channels.

        Args:
            s3_pre: (b, 1024, h, w), the layer of that name, 2 cells or more a side.

        Returns:
            (b, 256, h', w') for each of `PYRAMID_SCALES`, of the sizes of `pyramid_sizes`, in the type of the
            map.

        Raises:
            BadInput: a side of 1 cell.
        """
        sizes = pyramid_sizes(s3_pre.shape[2], s3_pre.shape[3])
        weights = [conv.get_parameter("weight").to(s3_pre.dtype) for conv in self.conv2ds]
        return [
            functional.conv2d(_resized(s3_pre, size), weight, padding=1)
            for size, weight in zip(sizes, weights, strict=True)
        ]


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of the levels of a pyramid: sides times `PYRAMID_SCALES`, halves rounded to even.

    Raises:
        BadInput: a level without rows or columns.
    """
    sizes = [(round(height * scale), round(width * scale)) for scale in PYRAMID_SCALES]
    if any(0 in size for size in sizes):
        raise BadInput(
            f"CVNet cannot look at a map of {height} x {width} cells: half of a side of 1 rounds to 0; give "
            "it images of 17 pixels or more a side"
        )
    return sizes


def _resized(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c i j"]:
    if x.shape[2:] == size:
        return x
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def cvnet_r50() -> CVNet:
    """With a ResNet-50: 324 tensors, 34.8 million parameters without the norms' statistics."""
    return CVNet((3, 4, 6, 3))


def cvnet_r101() -> CVNet:
    """With a ResNet-101: 630 tensors."""
    return CVNet((3, 4, 23, 3))
