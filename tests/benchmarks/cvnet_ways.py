"""Pairs looked at by CVNet-Rerank in one way, in a process of its own.

    python -m tests.benchmarks.cvnet_ways WAY FOLDER

reads what `cvnet_bench` wrote into the folder, and prints as JSON: pairs, seconds, the scores of one query,
and MiB of resident memory before the first pair and at the most from there on. One thread computes.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index.steps import Query
from ingest.compute import Compute
from ingest.cvnet_pyramid import PyramidSettings
from ingest.decode import Decoded
from ingest.image_features import Arrays, ImageFeatures
from ingest.networks import NetworkSettings
from ingest.threads import set_threads

CANDIDATES = 8
QUERIES = {"stored": 8, "projected": 2, "both": 1, "image": 1}  # asked in a turn: about a second or more each
COMPUTE = Compute(device="cpu")
SETTINGS = PyramidSettings(
    network=NetworkSettings(name="cvnet-r50", weights="seed:0", digest="seeded"), storage="float16"
)

Scores = Callable[[], list[float]]


def main() -> None:
    set_threads(1)
    scores = OPENERS[sys.argv[1]](Path(sys.argv[2]))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most of memory counts from here on
    scores()  # first touch
    begun = time.perf_counter()
    for _ in range(QUERIES[sys.argv[1]]):
        found = scores()
    seconds = time.perf_counter() - begun
    pairs = QUERIES[sys.argv[1]] * CANDIDATES
    memory = {"before_mib": before, "peak_mib": _status("VmHWM")}
    print(json.dumps({"pairs": pairs, "seconds": seconds, "scores": found, **memory}))


def _status(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def stored(folder: Path) -> Scores:
    """The step as a search uses it, on stored projections of query and candidates."""
    step, query = _step(folder), _query(folder)
    candidates = [_features(_pyramid(folder, number)) for number in range(1, 1 + CANDIDATES)]
    return lambda: [each.figures["score"] for each in step.score(query, candidates, [0.0] * len(candidates))]


def projected(folder: Path, both: bool) -> Scores:
    """Each candidate projected from its map when it is looked at; the query stored, or projected too."""
    from ingest.pyramid_storage import from_stored

    step, project = _step(folder), _projector(folder)
    of_query = from_stored(_pyramid(folder, 0))
    maps = [np.load(folder / f"map{number}.npy") for number in range(1 + CANDIDATES)]
    return lambda: [
        float(step.reranker.scores(project(maps[0]) if both else of_query, [project(candidate)])[0])
        for candidate in maps[1:]
    ]


def from_image(folder: Path) -> Scores:
    """Each candidate described anew from its decoded image, as with `storage: none` and nothing cached."""
    from ingest.describe import ImageDescriber

    step, query = _step(folder), _query(folder)
    settings = SETTINGS.model_copy(update={"storage": "none"})
    describer = ImageDescriber({"pyramid": settings}, lambda digest: weights(folder), COMPUTE)
    images = [decoded(np.load(folder / f"image{number}.npy")) for number in range(1, 1 + CANDIDATES)]

    def scores() -> list[float]:
        candidates = (describer.describe([image]) for image in images)
        return [step.score(query, each, [0.0])[0].figures["score"] for each in candidates]

    return scores


OPENERS: dict[str, Callable[[Path], Scores]] = {
    "stored": stored,
    "projected": partial(projected, both=False),
    "both": partial(projected, both=True),
    "image": from_image,
}


def weights(folder: Path, prefix: str = "") -> dict[str, Any]:
    """The tensors below a prefix, by their whole names; no others come into memory."""
    from safetensors import safe_open

    with safe_open(folder / "weights.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def decoded(pixels: np.ndarray) -> Decoded:
    """Pixels as the decoder gives them."""
    height, width = pixels.shape[:2]
    return Decoded(pixels, width, height, (0, 0, width, height))


def _step(folder: Path) -> Any:
    from index.cvnet import CvnetReranker, load_learner
    from index.cvnet_settings import CvnetSettings
    from index.cvnet_step import CvnetStep

    reranker = CvnetReranker(load_learner(weights(folder, "cv_learner.")))
    return CvnetStep(CvnetSettings(), reranker, COMPUTE.threads)


def _projector(folder: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """From a map (1, 1024, h, w) to its projected pyramid; of the network only what that takes is there."""
    import torch

    from ingest.network_cvnet import cvnet_r50

    with torch.device("meta"):
        network = cvnet_r50()
    prefix = "conv2ds."
    state = {name.removeprefix(prefix): tensor for name, tensor in weights(folder, prefix).items()}
    network.conv2ds.load_state_dict(state, assign=True)

    def project(given: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [level[0].numpy() for level in network.project_pyramid(torch.from_numpy(given))]

    return project


def _query(folder: Path) -> Query:
    return Query(np.zeros(1, np.float32), _features(_pyramid(folder, 0)))


def _features(pyramid: Arrays) -> ImageFeatures:
    return ImageFeatures(1, 1, 1.0, {"pyramid": pyramid})


def _pyramid(folder: Path, number: int) -> Arrays:
    from safetensors.numpy import load

    pyramid: Arrays = load((folder / f"pyramid{number}.safetensors").read_bytes())
    return pyramid


if __name__ == "__main__":
    main()
