"""Planar scenes with published homographies: how well the fitted ones agree, and what a pair costs.

Scenes of the Oxford affine covariant regions set (Mikolajczyk et al. 2005): image 1 of each against images 2
to 6, through the decoder and the key points of the recipe `sift-vlad`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from deploy.recipes import load_recipe
from index.geometry import GeometrySettings, Verification, verify_matches
from index.matching import match
from ingest.decode import Decoded, decode
from ingest.sift import SiftSettings, describe
from ingest.threads import fixed_threads
from tests.evaluation.page import Cell, table
from tests.evaluation.smvs import Target

SCENES = {
    "graf": "painted wall, tilted",
    "wall": "brick wall, tilted",
    "boat": "zoom and rotation",
    "leuven": "ever darker",
}
OTHERS = (2, 3, 4, 5, 6)
REPEATS = 5
CLOSE = 5.0  # pixels of the original: an overlay looks right

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """One photograph: its local features in pixels of the original, its size, original over described."""

    local: dict[str, np.ndarray]
    width: int
    height: int
    scale: float


@dataclass(frozen=True)
class Pair:
    """Image 1 of a scene against another. `error` is infinite where nothing was fitted."""

    scene: str
    other: int
    error: float
    found: Verification
    match_ms: float
    fit_ms: float


def planes(shared: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    settings = GeometrySettings()
    with fixed_threads(1):
        pairs = list(measured(shared / "data" / "oxford_affine", settings))
    errors = [pair.error for pair in pairs]
    close = sum(error < CLOSE for error in errors)
    text = (
        "Image 1 of each scene against images 2 to 6, features as `sift-vlad` stores them, one "
        f"{settings.model} a pair (ratio {settings.ratio}, threshold {settings.threshold:g} pixels as "
        f"described, at least {settings.min_inliers} inliers). Error: mean distance, in pixels of the "
        "original, of the four corners of image 1 as the fitted and as the published homography map them; "
        f"- where nothing was fitted. Milliseconds: median of {REPEATS}, one thread.\n\n"
        + _all_pairs(pairs)
        + "\n"
        + _by_scene(pairs)
    )
    figures = f"{median(errors):.2f}; {close} of {len(errors)}"
    holds = median(errors) <= 3 and close >= 0.7 * len(errors)
    name = f"corner error: median <= 3 pixels, {0.7 * len(errors):.0f} of {len(errors)} below {CLOSE:g}"
    return text, [Target(name, holds, figures)]


def measured(folder: Path, settings: GeometrySettings) -> Iterator[Pair]:
    """Every pair of every scene."""
    for scene in SCENES:
        first = _view(folder / scene / "img1.png")
        for other in OTHERS:
            second = _view(folder / scene / f"img{other}.png")
            truth = published(folder / scene / f"H1to{other}p.xml", other)
            yield _pair(scene, other, first, second, truth, settings)


def _pair(
    scene: str,
    other: int,
    first: View,
    second: View,
    truth: Float64[np.ndarray, "3 3"],
    settings: GeometrySettings,
) -> Pair:
    (matches, similarities), match_ms = _timed(
        lambda: match(first.local["descriptors"], second.local["descriptors"], settings.ratio)
    )
    points = first.local["keypoints"], second.local["keypoints"]
    found, fit_ms = _timed(
        lambda: verify_matches(*points, matches, similarities, settings, first.scale, second.scale)
    )
    return Pair(scene, other, corner_error(found, truth, first), found, match_ms, fit_ms)


def _view(path: Path) -> View:
    features = load_recipe("sift-vlad").features
    assert features is not None
    image, kind = decode(path.read_bytes(), features.decode), features.describe["local"]
    assert isinstance(image, Decoded)
    assert isinstance(kind, SiftSettings)
    local = describe(image.pixels, kind)
    local["keypoints"] = image.to_original(local["keypoints"])
    return View(local, image.width, image.height, max(image.width, image.height) / max(image.pixels.shape))


def published(path: Path, other: int) -> Float64[np.ndarray, "3 3"]:
    """The homography from image 1 to another, in pixels of the originals."""
    import cv2

    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)  # its nodes die with it
    return np.asarray(file.getNode(f"H1{other}").mat(), np.float64)


def corner_error(found: Verification, truth: Float64[np.ndarray, "3 3"], first: View) -> float:
    """Mean distance of the first image's corners, mapped by the fitted and by the published homography."""
    if found.model is None:
        return math.inf
    right, bottom = first.width - 1, first.height - 1
    corners = np.array([[0, 0, 1], [right, 0, 1], [right, bottom, 1], [0, bottom, 1]])
    ours, theirs = corners @ found.model.T, corners @ truth.T
    return float(np.linalg.norm(ours[:, :2] / ours[:, 2:] - theirs[:, :2] / theirs[:, 2:], axis=1).mean())


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the median of its milliseconds."""
    times = []
    for _ in range(REPEATS):
        start = perf_counter()
        result = run()
        times.append(1e3 * (perf_counter() - start))
    return result, median(times)


def _all_pairs(pairs: list[Pair]) -> str:
    rows: list[list[Cell]] = [
        [
            f"{pair.scene} 1-{pair.other}",
            f"{pair.error:.2f}" if math.isfinite(pair.error) else None,
            pair.found.matches,
            len(pair.found.inliers),
            f"{pair.match_ms:.1f}",
            f"{pair.fit_ms:.2f}",
        ]
        for pair in pairs
    ]
    return table(["pair", "corner error, px", "matches", "inliers", "match, ms", "fit, ms"], rows)


def _by_scene(pairs: list[Pair]) -> str:
    rows: list[list[Cell]] = []
    for scene, what in SCENES.items():
        own = [pair for pair in pairs if pair.scene == scene]
        rows.append(
            [
                f"{scene} ({what})",
                f"{median(pair.error for pair in own):.2f}",
                f"{sum(pair.error < CLOSE for pair in own)} of {len(own)}",
                f"{median(pair.match_ms for pair in own):.1f}",
                f"{median(pair.fit_ms for pair in own):.2f}",
            ]
        )
    head = ["scene", "median error, px", f"below {CLOSE:g} px", "match, ms", "fit, ms"]
    return table(head, rows)
