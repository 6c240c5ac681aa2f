"""Images to pooled descriptors: the product against a bare loop over the same network.

Both see the same images, decoded beforehand, in one process with one thread, in short turns. The product
describes them as a worker does (`ImageDescriber` of the recipe `effnet-gem`) and encodes them. The bare loop
is torch alone: the network up to the recipe's layer, GeM, L2 norm. A whole ingest by one worker is timed
beside them by its own stages, with what it waits for the decoding process and without.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.jobs import ingest, open_job, open_sources
from deploy.recipes import load_recipe
from index.pooled import Pooled, PooledSettings
from index.recipe import Recipe, with_read_weights
from ingest.cnn_global import GlobalSettings
from ingest.compute import Compute
from ingest.decode import Decoded, DecodeSettings, decode
from ingest.describe import ImageDescriber
from ingest.image_features import ImageFeatures
from ingest.networks import build_network, read_weights
from ingest.threads import fixed_threads
from tests.benchmarks.ingest_bench import photographs
from tests.benchmarks.ratios import interleaved, ratios, spread
from tests.evaluation.page import table

RECIPE = "effnet-gem"
COMPUTE = Compute(device="cpu")
TURN = 32  # images: short, so that both ways see the same neighbours
TURNS = 7  # for each turn of ingest


@dataclass(frozen=True)
class Rate:
    """Images a second by the clock, and a second of CPU time."""

    clock: float
    cpu: float


def bare_loop(settings: GlobalSettings) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """From pixels (h, w, 3) uint8 to L2-normalised GeM, an image at a time, with nothing around it."""
    import torch

    network = build_network(settings.network)
    layer, p = settings.layer or "", settings.pooling.p
    seen = settings.network.preprocessing
    mean, std = torch.tensor(seen.mean).view(3, 1, 1), torch.tensor(seen.std).view(3, 1, 1)

    def vectors(images: Sequence[np.ndarray]) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for pixels in images:
                x = (torch.from_numpy(pixels).permute(2, 0, 1).float() / seen.scale - mean) / std
                pooled = network(x[None], (layer,))[layer].clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
                found.append(torch.nn.functional.normalize(pooled)[0].numpy())
        return np.stack(found)

    return vectors


@dataclass
class EncodeBench:
    """What both sides share: a recipe, the folder of images, and the images decoded as the recipe says."""

    recipe: Recipe
    files: Path
    work: Path
    galleries: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    difference: float = 0.0  # the largest of a component between both sides' vectors

    def __post_init__(self) -> None:
        assert self.recipe.features is not None
        self.features = self.recipe.features
        self.images = [decoded(file, self.features.decode) for file in sorted(self.files.iterdir())]
        (settings,) = self.features.describe.values()
        assert isinstance(settings, GlobalSettings)
        state = read_weights(settings.network)
        self._describer = ImageDescriber(self.features.describe, lambda digest: state, COMPUTE)
        self._bare = bare_loop(settings)
        self._last: dict[str, np.ndarray] = {}

    def product(self) -> Rate:
        return self._turn("product", self._described)

    def bare(self) -> Rate:
        return self._turn("bare", lambda images: self._bare([image.pixels for image in images]))

    def _described(self, images: Sequence[Decoded]) -> np.ndarray:
        found = []
        for made in self._describer.describe(images):
            assert isinstance(made, ImageFeatures)
            pooled = made.of("global")
            encoder = Pooled(pooled["descriptors"].shape[1], PooledSettings())
            found.append(encoder.encode(pooled))
        return np.stack(found)

    def _turn(self, name: str, vectors: Callable[[Sequence[Decoded]], np.ndarray]) -> Rate:
        """The next images, the same for both sides."""
        start = self.asked.get(name, 0) % (len(self.images) - TURN + 1)
        self.asked[name] = start + TURN
        begun, cpu = time.perf_counter(), time.process_time()
        self._last[name] = vectors(self.images[start : start + TURN])
        rate = Rate(TURN / (time.perf_counter() - begun), TURN / (time.process_time() - cpu))
        if name == "bare" and self.asked[name] == self.asked.get("product"):  # of the same images
            difference = float(np.abs(self._last["product"] - self._last["bare"]).max())
            self.difference = max(self.difference, difference)
        return rate

    def ingested(self) -> tuple[float, float]:
        """Images a second of an ingest by one worker into a new gallery: but for waiting to decode; all."""
        self.galleries += 1
        with open_job(str(self.work / f"gallery{self.galleries}"), create=True, compute=COMPUTE) as job:
            seconds = ingest(job, open_sources([str(self.files)]), self.recipe).seconds
        total = sum(seconds.values())
        return len(self.images) / (total - seconds["decode"]), len(self.images) / total


def decoded(file: Path, settings: DecodeSettings) -> Decoded:
    image = decode(file.read_bytes(), settings)
    assert isinstance(image, Decoded)
    return image


def encode_bench(shared: Path, work: Path, repeats: int) -> str:
    """The section of the page."""
    what = photographs(shared, work / "encoded")
    recipe, _ = with_read_weights(load_recipe(RECIPE))
    with fixed_threads(1):
        bench = EncodeBench(recipe, work / "encoded", work / "encode")
        ways = {"product": bench.product, "bare": bench.bare}
        interleaved(ways, 1)  # first touch
        found = interleaved(ways, TURNS * repeats)
        ingests = interleaved({"ingest": bench.ingested, "bare": bench.bare}, repeats)
    clock = {name: [rate.clock for rate in rates] for name, rates in found.items()}
    cpu = {name: [rate.cpu for rate in rates] for name, rates in found.items()}
    stages, whole = zip(*ingests["ingest"], strict=True)
    beside = [rate.clock for rate in ingests["bare"]]
    rates = [
        ["product: describe and encode decoded images", str(spread(clock["product"]))],
        ["bare loop on decoded images", str(spread(clock["bare"]))],
        ["product: ingest, but for waiting to decode", str(spread(stages))],
        ["product: ingest, all stages", str(spread(whole))],
    ]
    lines = [
        ["product / bare loop", str(ratios(clock["product"], clock["bare"])), ">= .95"],
        ["the same by CPU time", str(ratios(cpu["product"], cpu["bare"])), ""],
        ["ingest, but for waiting to decode / bare loop", str(ratios(stages, beside)), ""],
        ["ingest, all stages / bare loop without decoding", str(ratios(whole, beside)), ""],
    ]
    return (
        "## Photographs through a network\n\n"
        f"{len(bench.images)} {what}, reduced to {bench.features.decode.longest_side} pixels, recipe "
        f"`{RECIPE}`; one process, one thread. Product and bare loop: {TURNS * repeats} turns of {TURN} "
        f"images each, decoded beforehand. Ingest by one worker: {repeats} turns of all images, each "
        "followed by a turn of the bare loop; it reads, decodes in a process of its own while images are "
        "described, checks and writes. Images a second, median (least to most):\n\n"
        + table(["", "a second"], rates)
        + "\n"
        + table(["ratio", "median (least to most)", "aim"], lines)
        + f"\nBoth make the same vectors (largest difference of a component: {bench.difference:.0e}).\n"
    )
