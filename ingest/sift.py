"""SIFT key points and descriptors (Lowe 2004), and RootSIFT (Arandjelovic and Zisserman 2012).

Cost at 640 x 480, one thread: about 0.1 s an image, most of it the doubled first octave; memory: about
100 bytes a pixel for the scale space, and max_keypoints x 148 bytes for what is kept.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field


class SiftSettings(BaseModel):
    """What is detected and kept. All of it changes the features, so all of it is part of their digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sift"] = "sift"
    max_keypoints: int = Field(
        default=1500,
        ge=1,
        le=65_536,
        description="key points kept an image, the strongest first; 148 bytes of storage each, and the cost "
        "of encoding grows in proportion",
    )
    contrast_threshold: float = Field(
        default=0.04,
        ge=0,
        le=1,
        description="least contrast of a key point, for grey values from 0 to 1, as in OpenCV (which divides "
        "it by octave_layers); lower finds key points in flat, dark and blurred images",
    )
    edge_threshold: float = Field(
        default=10.0,
        gt=1,
        description="largest ratio of principal curvatures; lower drops more of what lies on edges",
    )
    sigma: float = Field(
        default=1.6,
        gt=0.5,
        le=10,
        description="blur of the first octave, in pixels of the doubled image; lower is finer",
    )
    octave_layers: int = Field(
        default=3, ge=1, le=10, description="scales looked at an octave; the time grows in proportion"
    )


def describe(pixels: UInt8[np.ndarray, "h w 3"], settings: SiftSettings) -> dict[str, np.ndarray]:
    """Finds and describes the strongest key points of an image.

    Grey is 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits. The result is the same at any number of threads.

    Args:
        pixels: (h, w, 3) uint8, RGB.
        settings: what is detected and kept.

    Returns:
        n <= max_keypoints rows, by response descending, then by y, x, diameter and angle:
        keypoints: (n, 2) float32, (x, y) in pixels of `pixels`; the centre of the top-left pixel is (0, 0).
        diameters: (n,) float32, pixels of `pixels`, of the neighbourhood that OpenCV reports as size.
        angles: (n,) float32, degrees in [0, 360), clockwise on the screen (y points down) from the x axis.
        responses: (n,) float32, absolute contrast.
        descriptors: (n, 128) uint8, OpenCV's: 512 times the unit vector, clipped at 255.
        An image without key points gives n = 0.
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    detector = cv2.SIFT_create(
        nfeatures=settings.max_keypoints,  # keeps ties at the cut, so that what is kept depends on no order
        nOctaveLayers=settings.octave_layers,
        contrastThreshold=settings.contrast_threshold,
        edgeThreshold=settings.edge_threshold,
        sigma=settings.sigma,
        enable_precise_upscale=True,  # without it every position is a quarter of a pixel off
    )
    found, descriptors = detector.detectAndCompute(grey, None)
    if not found:
        return _none_found()
    rows = np.array([(*point.pt, point.size, point.angle, point.response) for point in found], np.float32)
    x, y, diameters, angles, responses = rows.T
    order = np.lexsort((angles, diameters, x, y, -responses))[: settings.max_keypoints]
    return {
        "keypoints": np.ascontiguousarray(rows[order, :2]),
        "diameters": diameters[order],
        "angles": angles[order] % np.float32(360),
        "responses": responses[order],
        "descriptors": descriptors[order].astype(np.uint8),
    }


def _none_found() -> dict[str, np.ndarray]:
    return {
        "keypoints": np.zeros((0, 2), np.float32),
        "diameters": np.zeros(0, np.float32),
        "angles": np.zeros(0, np.float32),
        "responses": np.zeros(0, np.float32),
        "descriptors": np.zeros((0, 128), np.uint8),
    }


def rootsift(descriptors: UInt8[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """RootSIFT: each descriptor L1-normalised, then its square root (so that its L2 norm is 1).

    A descriptor of zeros stays zeros. The inner product of two results is the Hellinger kernel of the
    descriptors (Arandjelovic and Zisserman 2012, section 2).
    """
    totals = descriptors.sum(axis=1, dtype=np.float32)
    scale = 1 / np.sqrt(np.maximum(totals, 1))
    roots: np.ndarray = np.sqrt(descriptors, dtype=np.float32)
    roots *= scale[:, None]
    return roots
