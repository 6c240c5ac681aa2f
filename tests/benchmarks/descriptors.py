"""RootSIFT descriptors of real photographs, as a plain file of vectors.

    python -m tests.benchmarks.descriptors SHARED OUT.npy COUNT

Key points of low contrast are taken too (threshold .01 instead of .04, up to 8,192 an image): that gives
more vectors an image. The rows are shuffled with a fixed seed.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ingest.sift import SiftSettings, describe, rootsift

FOLDERS = ("smvs_dvd", "dvd_extra", "strecha", "oxford_affine", "grocery")
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm")
SETTINGS = SiftSettings(max_keypoints=8192, contrast_threshold=0.01)
DIM = 128


def photographs(shared: Path) -> list[Path]:
    """All photographs, folder by folder."""
    return [
        file
        for name in FOLDERS
        for file in sorted((shared / "data" / name).rglob("*"))
        if file.suffix.lower() in ENDINGS
    ]


def described(file: Path) -> np.ndarray:
    """(n, 128) uint8, nothing for a file that is no image."""
    from ingest.decode import Decoded, DecodeSettings, decode
    from ingest.threads import set_threads

    set_threads(1)
    image = decode(file.read_bytes(), DecodeSettings())
    if not isinstance(image, Decoded):
        return np.zeros((0, DIM), np.uint8)
    return describe(image.pixels, SETTINGS)["descriptors"]


def descriptors(shared: Path, count: int) -> tuple[np.ndarray, int]:
    """At least `count` descriptors, if there are so many, and the number of images they came from."""
    blocks: list[np.ndarray] = []
    rows = 0
    with ProcessPoolExecutor() as pool:
        for block in _few_at_a_time(pool, photographs(shared)):
            blocks.append(block)
            rows += len(block)
            if rows >= count:
                break
    return np.concatenate(blocks), len(blocks)


def _few_at_a_time(pool: ProcessPoolExecutor, files: list[Path]) -> Iterator[np.ndarray]:
    for start in range(0, len(files), 16):
        yield from pool.map(described, files[start : start + 16])


def write(shared: Path, out: Path, count: int) -> dict[str, int]:
    """Writes (rows, 128) float32, at most `count` rows; returns the numbers of rows and images."""
    found, images = descriptors(shared, count)
    order = np.random.default_rng(0).permutation(len(found))[:count]
    rows = np.lib.format.open_memmap(out, "w+", np.float32, (len(order), DIM))
    for start in range(0, len(order), 65_536):
        rows[start : start + 65_536] = rootsift(found[order[start : start + 65_536]])
    rows.flush()
    return {"rows": len(order), "images": images}


if __name__ == "__main__":
    print(json.dumps(write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
