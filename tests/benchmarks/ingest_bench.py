"""Photographs to VLAD: the product on all cores through Ray, against cores x the bare kernel on one core.

The product lists a folder, extracts features and encodes them, writing everything to the gallery. Its time
runs from the first task that begins in a worker to the last result, in both stages, and the listing: the
start of processes and imports is left out, as it is of the bare kernel. Fitting is left out of both.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.recipes import load_recipe
from index.codebook import Codebook, CodebookSettings, fit_codebook
from index.encodings import encode, read_encodings
from index.vlad import Vlad, VladSettings
from ingest.engine import Engine, open_engine
from ingest.extract import extract
from ingest.features import read_features
from ingest.gallery import create_gallery
from ingest.job import Job
from ingest.models import save_model
from ingest.parts import PartSizes, ingest_source
from ingest.progress import SilentProgress
from ingest.sift import rootsift
from ingest.sources import Source, open_source
from ingest.store import Store
from tests.benchmarks import bare
from tests.benchmarks.processes import Watched, cpu_seconds, watched
from tests.benchmarks.ratios import interleaved, ratios, spread
from tests.evaluation.page import table

IMAGES = 144
PART = PartSizes(most_images=12, least_images=12)  # small: the last parts of a short run end together
WORDS = 256


@dataclass(frozen=True)
class _Timed:
    """A worker that says of each task when it began, its CPU time, and about the process."""

    inner: Any

    def start(self) -> Callable[[Any], tuple[Any, float, float, int, int]]:
        return _TimedFunction(self.inner.start())


@dataclass(frozen=True)
class _TimedFunction:
    inner: Any

    def __call__(self, task: Any) -> tuple[Any, float, float, int, int]:
        begun, cpu = time.time(), cpu_seconds()
        return self.inner(task), begun, cpu_seconds() - cpu, os.nice(0), os.getpid()

    def close(self) -> None:
        if hasattr(self.inner, "close"):
            self.inner.close()


@dataclass
class _Stopwatch:
    """An engine that adds up seconds between the workers' beginning and the last result."""

    inner: Engine
    seconds: float = 0.0
    cpu: float = 0.0
    niceness: int = 0
    workers: int = field(init=False)

    def __post_init__(self) -> None:
        self.workers = self.inner.workers

    def map(self, worker: Any, tasks: Iterable[Any]) -> Iterator[Any]:
        first: dict[int, float] = {}
        last = 0.0
        for result, begun, cpu, niceness, process in self.inner.map(_Timed(worker), tasks):
            first[process] = min(first.get(process, begun), begun)
            last, self.niceness = time.time(), niceness
            self.cpu += cpu
            yield result
        if first:
            self.seconds += last - sum(first.values()) / len(first)


def photographs(shared: Path, folder: Path) -> str:
    """Copies photographs, or renders synthetic ones where there are none; says which."""
    folder.mkdir(parents=True)
    found = sorted((shared / "data" / "smvs_dvd").rglob("*.jpg"))
    if found:
        for place, file in enumerate(found[:: max(1, len(found) // IMAGES)][:IMAGES]):
            shutil.copy(file, folder / f"{place:04d}.jpg")
        return "photographs of DVD covers, 640 pixels wide at the most (`../shared/data/smvs_dvd`)"
    source: Any = open_source(f"synthetic:scenes={IMAGES // 4},views=3,distractors={IMAGES // 4},size=640")
    for place, listed in enumerate(source.listing()):
        (folder / f"{place:04d}.bmp").write_bytes(source.read(listed.key))
    return "rendered scenes, 640 pixels wide (the photographs of `../shared` are not at hand)"


@dataclass
class IngestBench:
    """What both ways share: the files and a fitted encoder."""

    files: Path
    work: Path
    engine: Engine
    encoder: Vlad
    galleries: int = 0
    niceness: int = 0  # of Ray's workers, and so of the bare kernel

    def product(self) -> tuple[float, float]:
        """Images a second by the clock, and a CPU second."""
        self.galleries += 1
        gallery = create_gallery(Store(str(self.work / f"gallery{self.galleries}")))
        watch = _Stopwatch(self.engine)
        job = Job(gallery, watch, SilentProgress())
        digest = save_model(gallery, "encoder", {"encoder": "vlad", "notes": []}, self.encoder.to_arrays())
        settings = load_recipe("sift-vlad").features
        assert settings is not None
        begun, cpu = time.time(), time.process_time()
        source = open_source(str(self.files))
        assert isinstance(source, Source)
        ingest_source(gallery, source, job.progress, PART)
        listing, listing_cpu = time.time() - begun, time.process_time() - cpu
        from ingest.catalogue import read_catalogue

        catalogue = read_catalogue(gallery)
        features = extract(job, catalogue, settings, {source.name: source})
        self.encodings = encode(job, catalogue.parts, features.digest, digest, None)
        self.gallery, self.catalogue = gallery, catalogue
        self.niceness = watch.niceness
        images = catalogue.rows
        return images / (listing + watch.seconds), images / (listing_cpu + watch.cpu)

    def bare(self, processes: int = 1) -> tuple[float, float]:
        """The same of the bare kernel; of several processes at once, the sum of their rates."""
        from concurrent.futures import ThreadPoolExecutor

        files = sorted(map(str, self.files.iterdir()))
        cores = os.cpu_count() or 1
        np.save(self.work / "centroids.npy", self.encoder.codebook.centroids)
        with ThreadPoolExecutor(processes) as pool:
            runs = list(pool.map(lambda at: self._kernel(files[at::cores]), range(processes)))
        results = [run.result for run in runs]
        self.sample = results[0]["sample"]
        rate = sum(result["images"] / result["seconds"] for result in results)
        cpu = sum(result["images"] for result in results) / sum(result["cpu_seconds"] for result in results)
        return rate, cpu

    def _kernel(self, files: list[str]) -> Watched:
        settings = load_recipe("sift-vlad").features
        assert settings is not None
        numbers = (str(settings.decode.longest_side), str(settings.describe["local"].max_keypoints))
        centroids = str(self.work / "centroids.npy")
        return watched(
            "tests.benchmarks.bare", str(self.niceness), centroids, *numbers, *files, environment=bare.THREADS
        )

    def agreement(self) -> float:
        """The least inner product of the first components of the bare kernel's vectors with the product's."""
        vectors = self.sample
        part = self.catalogue.parts[0]
        _, _, mine = read_encodings(self.gallery, self.encodings.digest, part.part)
        head = mine[:, : len(vectors[0])]
        bare_head = np.array(vectors[0])
        scores = head @ bare_head / (np.linalg.norm(head, axis=1) * np.linalg.norm(bare_head) + 1e-12)
        return float(scores.max())


def fitted_encoder(files: Path, work: Path, words: int) -> Vlad:
    """An encoder fitted on some of the images, as any other."""
    settings = load_recipe("sift-vlad").features
    assert settings is not None
    gallery = create_gallery(Store(str(work / "fit")))
    source = open_source(str(files))
    assert isinstance(source, Source)
    ingest_source(gallery, source, SilentProgress(), PART)
    from ingest.catalogue import read_catalogue

    catalogue = read_catalogue(gallery)
    catalogue = replace(catalogue, parts=catalogue.parts[:1])
    with open_engine("inline") as engine:
        features = extract(Job(gallery, engine, SilentProgress()), catalogue, settings, {source.name: source})
    found = read_features(gallery, features.digest, catalogue.parts[0].part)
    descriptors = np.concatenate([rootsift(image.of("local")["descriptors"]) for _, image in found])
    codebook = fit_codebook(descriptors, CodebookSettings(words=words, iterations=5))
    return Vlad(Codebook(codebook.centroids, words), VladSettings())


def ingest_bench(shared: Path, work: Path, repeats: int) -> str:
    """The section of the page."""
    what = photographs(shared, work / "photographs")
    encoder = fitted_encoder(work / "photographs", work, WORDS)
    cores = os.cpu_count() or 1
    with open_engine("ray") as engine:
        bench = IngestBench(work / "photographs", work, engine, encoder)
        found = interleaved(
            {"product": bench.product, "bare": bench.bare, "all": lambda: bench.bare(cores)}, repeats
        )
        agreement = bench.agreement()
    return _section(what, cores, found, agreement, repeats)


def _section(what: str, cores: int, found: dict[str, list[Any]], agreement: float, repeats: int) -> str:
    rate = {name: [run[0] for run in runs] for name, runs in found.items()}
    cpu = {name: [run[1] for run in runs] for name, runs in found.items()}
    rates = [
        ["product, all cores, Ray", str(spread(rate["product"])), str(spread(cpu["product"]))],
        ["bare kernel, one core", str(spread(rate["bare"])), str(spread(cpu["bare"]))],
        [f"bare kernel, {cores} processes at once", str(spread(rate["all"])), str(spread(cpu["all"]))],
    ]
    ideal = [cores * value for value in rate["bare"]]
    lines = [
        [f"product / ({cores} x bare kernel on one core)", str(ratios(rate["product"], ideal)), ">= .9"],
        ["product / bare kernel on all cores at once", str(ratios(rate["product"], rate["all"])), ""],
        [f"bare kernel on all cores at once / ({cores} x one core)", str(ratios(rate["all"], ideal)), ""],
        ["the same work: CPU time, bare kernel / product", str(ratios(cpu["product"], cpu["bare"])), ""],
    ]
    return (
        "## Photographs to VLAD\n\n"
        f"{IMAGES} {what}, 1,500 key points, VLAD with {WORDS} words; {repeats} turns each. The product "
        "lists, reads, decodes in an isolated process, describes, checks, writes features and encodings. "
        "Process start, imports and fitting are left out of both, and both run at the niceness of Ray's "
        "workers. Images a second, median (least to most):\n\n"
        + table(["", "a second", "a second of CPU time"], rates)
        + "\n"
        + table(["ratio", "median (least to most)", "aim"], lines)
        + "\nThe ratio by CPU time is what the product adds to the kernel; it does not feel other programs "
        f"on the machine. Both make the same vectors (inner product of one image's: {agreement:.4f}).\n"
    )
