"""VGG16 (Simonyan and Zisserman 2015) to `conv5_3`, with torchvision's names: `features.N.{weight,bias}`."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from ingest.network_maps import Network

_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Network):
    """The last map of each stage before its ReLU: `conv1_2` to `conv5_3`, strides 1 to 16.

    3x3 convolutions keep the size, 2x2 maxima halve it (rounding down): cell j of a map of stride s is
    centred on pixel s j + (s - 1) / 2.
    """

    layers = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        channels_in = 3
        self._named: dict[int, str] = {}
        for stage, widths in enumerate(_CHANNELS):
            for channels in widths:
                steps += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
                channels_in = channels
            self._named[len(steps) - 2] = self.layers[stage]
            steps.append(nn.MaxPool2d(2))
        # Up to the last convolution: a map that is handed out is before its ReLU, which is not in place.
        self.features = nn.Sequential(*steps[:-2])

    def stages(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Float[Tensor, "b c i j"]]]:
        for place, step in enumerate(self.features):
            x = step(x)
            if name := self._named.get(place):
                yield name, x
