"""The features of one image: arrays by name, under the labels that the recipe gave them.

Conventions, which encoders and rerankers read:

- local features (key points, columns of a map, patches): `keypoints` (n, 2) float32, (x, y) in pixels of the
  original, the centre of the top-left pixel is (0, 0); `diameters` (n,) float32, original pixels;
  `descriptors` (n, d), uint8 for SIFT, float16 for what a network made.
- pooled descriptors: `descriptors` (r, d) float32, row 0 of the whole image, further rows of regions; `boxes`
  (r, 4) float32, x0, y0, x1, y1 in original pixels.
- a projected pyramid: see `ingest.pyramid_storage`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingest.errors import BadInput
from ingest.outcomes import Rejected

_LARGEST_FLOAT16 = 65_504

Arrays = Mapping[str, np.ndarray]
Found = list[dict[str, Arrays] | Rejected]  # for each of several images, its arrays by label


@dataclass(frozen=True)
class ImageFeatures:
    """What was found in an image.

    width, height: of the original after EXIF orientation, in pixels.
    scale: original pixels a pixel of the image as it was described; 1 or more.
    by_label: arrays by name, by label.
    """

    width: int
    height: int
    scale: float
    by_label: Mapping[str, Arrays]

    def of(self, label: str) -> Arrays:
        """The arrays of a label.

        Raises:
            BadInput: the recipe stores no such features.
        """
        if label not in self.by_label:
            there = ", ".join(sorted(self.by_label)) or "none"
            raise BadInput(
                f"there are no features {label!r} of this image, only: {there}; name one of them in `reads`, "
                "or describe them under features.describe"
            )
        return self.by_label[label]


def packed(arrays: Arrays, metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as the bytes of a safetensors file, whatever their order in memory."""
    from safetensors.numpy import save

    # It writes memory as it lies, and maps from a GPU lie channels last; asarray keeps () what is ().
    rows_first = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data: bytes = save(rows_first, metadata=metadata)
    return data


def to_float16(descriptors: np.ndarray) -> np.ndarray:
    """What a network made, as it is stored; what is beyond the range of float16 comes to its edge."""
    halves: np.ndarray = np.clip(descriptors, -_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16)
    return halves


def joined(found: Found, more: Found) -> Found:
    """For each image the labels of both; rejected is what either rejects."""
    return [
        some if isinstance(some, Rejected) else others if isinstance(others, Rejected) else {**some, **others}
        for some, others in zip(found, more, strict=True)
    ]
