"""CVNet-Rerank: stored projections against projecting the candidate anew for each pair (`cvnet_ways`).

Weights are seeded as those of the golden outputs, and images are made up: time and memory do not depend on
their values. Each turn is a process of its own, so that the peak of its memory is that of one way.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.cvnet_ways import CANDIDATES, COMPUTE, SETTINGS, decoded
from tests.benchmarks.processes import watched
from tests.benchmarks.ratios import interleaved, ratios, spread
from tests.evaluation.page import table

WIDTH, HEIGHT = 512, 384
WAYS = {
    "stored": "stored projections (float16)",
    "projected": "the candidate projected anew from its map",
    "both": "query and candidate projected anew from their maps",
    "image": "the candidate computed anew from its decoded image",
}
AIM = 3


def cvnet_bench(work: Path, repeats: int) -> str:
    """The section of the page."""
    folder = work / "cvnet"
    folder.mkdir(parents=True)
    write_inputs(folder)
    return _section(interleaved({way: partial(_turn, way, folder) for way in WAYS}, repeats), repeats)


def _turn(way: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = watched("tests.benchmarks.cvnet_ways", way, str(folder)).result
    return found


def write_inputs(folder: Path) -> None:
    """Weights, images (the first is the query's), their maps, and their projections as they are stored."""
    import torch
    from safetensors.numpy import save
    from safetensors.torch import save_file

    from ingest.describe import ImageDescriber
    from ingest.image_tensors import to_tensor
    from ingest.networks import build_network

    state = seeded_state()
    save_file(state, folder / "weights.safetensors")
    network = build_network(SETTINGS.network, state)
    describer = ImageDescriber({"pyramid": SETTINGS}, lambda digest: state, COMPUTE)
    images = made_up_images(1 + CANDIDATES)
    for number, found in enumerate(describer.describe([decoded(pixels) for pixels in images])):
        record = save(dict(found.of("pyramid")))  # type: ignore[union-attr]
        (folder / f"pyramid{number}.safetensors").write_bytes(record)
        seen = to_tensor(images[number], SETTINGS.network.preprocessing)
        with torch.inference_mode():
            made = network(seen[None], ("s3_pre",))["s3_pre"].numpy()
        np.save(folder / f"map{number}.npy", made)
        np.save(folder / f"image{number}.npy", images[number])


def seeded_state() -> dict[str, Any]:
    """The tensors of a checkpoint of cvnet-r50, valued as for the golden outputs."""
    import torch

    from index.cvnet import CvLearner
    from ingest.network_cvnet import cvnet_r50
    from tests.golden.seeded import weight

    with torch.device("meta"):
        parts = {"": cvnet_r50(), "cv_learner.": CvLearner()}
    shapes = {
        prefix + name: tuple(own.shape)
        for prefix, part in parts.items()
        for name, own in part.state_dict().items()
    }
    return {name: torch.from_numpy(np.asarray(weight(name, shape))) for name, shape in shapes.items()}


def made_up_images(count: int) -> list[np.ndarray]:
    """(384, 512, 3) uint8 each, smooth, and different."""
    import cv2

    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (12, 16, 3)).astype(np.uint8) for _ in range(count)]
    return [np.ascontiguousarray(cv2.resize(each, (WIDTH, HEIGHT))) for each in coarse]


def _section(found: dict[str, list[dict[str, Any]]], repeats: int) -> str:
    rate = {way: [turn["pairs"] / turn["seconds"] for turn in turns] for way, turns in found.items()}
    rows = [
        [
            name,
            str(spread(rate[way])),
            "" if way == "stored" else str(ratios(rate["stored"], rate[way])),
            f"{max(turn['peak_mib'] for turn in found[way]):,.0f}",
            f"{max(turn['peak_mib'] - turn['before_mib'] for turn in found[way]):,.0f}",
        ]
        for way, name in WAYS.items()
    ]
    head = ["", "pairs a second", f"stored: times as fast (aim >= {AIM})", "peak MiB", "of it for the pairs"]
    exact = found["both"][0]["scores"]
    errors = {
        way: f"{np.abs(np.subtract(turns[0]['scores'], exact)).max():.0e}" for way, turns in found.items()
    }
    return (
        "## CVNet-Rerank\n\n"
        f"`cvnet-r50`, made-up images of {WIDTH} x {HEIGHT} pixels, seeded weights; a query and {CANDIDATES} "
        f"candidates, one thread, {repeats} turns each, each in a process of its own. Projections and maps "
        "(float32) are in memory: reading is in no row, nor are start, imports and the first query. Both "
        "projected anew is a pair by itself, from maps as they were stored; elsewhere the query's projection "
        "is there, as where a query keeps its own for all its candidates. Median (least to most):\n\n"
        + table(head, rows)
        + "\nMemory is resident, of the whole process from the first pair on, with the weights that the way "
        "needs; the last column is what came on top of what was there before. Scores differ from those of "
        f"both projected anew by {errors['image']} (the candidate from its image), {errors['projected']} "
        f"(from its map; in both the query is stored as float16) and {errors['stored']} (both "
        "stored as float16).\n"
    )
