"""A million descriptors of photographs in 4 shards through the whole product, against one faiss index.

    python -m tests.benchmarks.million product GALLERY VECTORS.npy SHARD_ROWS
    python -m tests.benchmarks.million single VECTORS.npy OUT THREADS

Each way runs in a process of its own, whose memory is watched from outside.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.jobs import build_index, ingest, open_job, open_sources
from deploy.recipes import load_recipe
from index.ivfadc import IvfadcSettings, train_ivfadc
from index.opened import OpenGeneration, open_generation
from index.recipe import Recipe
from ingest.gallery import open_gallery
from ingest.store import Store
from ingest.threads import set_threads
from tests.benchmarks.processes import Watched, watched
from tests.evaluation.page import table

ROWS = 1_000_000
QUERIES = 1000
SHARDS = 4
SOURCE = "descriptors"
NPROBES = (8, 16, 32, 64, 128, 256)
RECALL_AT = (1, 10, 100)
LIMIT_MIB = 2048
_ADD_ROWS = 16_384


def recipe(shard_rows: int) -> Recipe:
    """`vectors-ivfadc` as it ships, in shards of this size; its gate only reports."""
    shipped = load_recipe("vectors-ivfadc")
    return shipped.model_copy(
        update={"shard_rows": shard_rows, "gate": shipped.gate.model_copy(update={"recall": 0.0})}
    )


def product(url: str, vectors: str, shard_rows: int, engine: Any = "ray") -> dict[str, Any]:
    """Ingest, build, publish, as the commands do; seconds of each, and the gate's figures."""
    begun = time.perf_counter()
    with open_job(url, engine, create=True) as job:
        started = time.perf_counter()
        ingest(job, open_sources([f"{SOURCE}=vectors:{vectors}"]), recipe(shard_rows))
        ingested = time.perf_counter()
        generation = build_index(job, recipe(shard_rows))
        built = time.perf_counter()
    return {
        "start": started - begun,
        "ingest": ingested - started,
        "build": built - ingested,
        "shards": len(generation.shards),
        "gate": generation.gate,
    }


def single(vectors: str, out: str, threads: int) -> dict[str, Any]:
    """Trains and adds with the same parameters in one faiss index, in memory."""
    import faiss

    settings = recipe(1).quantizer
    assert isinstance(settings, IvfadcSettings)
    begun = time.perf_counter()
    rows = np.load(vectors, mmap_mode="r")
    sample = np.random.default_rng(0).choice(
        len(rows), min(settings.sample_vectors, len(rows)), replace=False
    )
    index, _ = train_ivfadc(np.ascontiguousarray(rows[np.sort(sample)]), settings)
    trained = time.perf_counter()
    set_threads(threads)
    for start in range(0, len(rows), _ADD_ROWS):
        index.add(np.ascontiguousarray(rows[start : start + _ADD_ROWS]))
    added = time.perf_counter()
    faiss.write_index(index, out)
    return {"train": trained - begun, "add": added - trained, "lists": faiss.extract_index_ivf(index).nlist}


@dataclass(frozen=True)
class Million:
    """The files of the benchmark: vectors, held-out queries, and what is built of them."""

    folder: Path
    rows: int
    images: int

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors.npy"

    @property
    def queries(self) -> np.ndarray:
        return np.ascontiguousarray(np.load(self.folder / "queries.npy"))

    def gallery(self, turn: int) -> Path:
        return self.folder / f"gallery{turn}"

    def opened(self, turn: int = 0) -> OpenGeneration:
        return open_generation(open_gallery(Store(str(self.gallery(turn)))))


def prepare(shared: Path, folder: Path, rows: int = ROWS, queries: int = QUERIES) -> Million:
    """Describes photographs until there are enough vectors, and holds some out as queries.

    What an earlier run left in the folder is adopted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"made-{rows}-{queries}.json"
    if not made.exists():
        everything = folder / "all.npy"
        numbers = watched("tests.benchmarks.descriptors", str(shared), str(everything), str(rows + queries))
        found = np.load(everything, mmap_mode="r")
        np.save(folder / "queries.npy", found[:queries])
        np.save(folder / "vectors.npy", found[queries:])
        everything.unlink()
        made.write_text(json.dumps(numbers.result))
    counts = json.loads(made.read_text())
    return Million(folder, counts["rows"] - queries, counts["images"])


def exact_nearest(million: Million) -> np.ndarray:
    """(q,) row of the nearest vector of each query; of ties, the lowest row."""
    queries, rows = million.queries, np.load(million.vectors, mmap_mode="r")
    best, nearest = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
    for start in range(0, len(rows), 65_536):
        scores = queries @ rows[start : start + 65_536].T
        at = scores.argmax(axis=1)
        top = scores[np.arange(len(queries)), at]
        better = top > best
        best[better], nearest[better] = top[better], start + at[better]
    return nearest


def recalls(million: Million, opened: OpenGeneration, nprobes: tuple[int, ...] = NPROBES) -> list[list[Any]]:
    """For each nprobe, the share of queries with their exact nearest neighbour in the top 1, 10, 100."""
    from ingest.records import image_identity

    nearest = exact_nearest(million)
    wanted = np.array([image_identity(SOURCE, f"{row:09d}")[0] for row in nearest])
    lines: list[list[Any]] = []
    for nprobe in nprobes:
        found = opened.search(million.queries, max(RECALL_AT), nprobe).image_ids
        hits = found == wanted[:, None]
        lines.append([str(nprobe), *(float(hits[:, :k].any(axis=1).mean()) for k in RECALL_AT)])
    return lines


@dataclass(frozen=True)
class Builds:
    """What the builds took, turn by turn, and the memory of the product's processes."""

    product: list[Watched]
    one_thread: list[Watched]
    all_threads: list[Watched]


def build_turns(million: Million, repeats: int) -> Builds:
    """Builds in turns: the product, faiss adding on one thread, faiss adding on all."""
    builds = Builds([], [], [])
    shard_rows = str(-(-million.rows // SHARDS))
    for turn in range(repeats):
        shutil.rmtree(million.gallery(turn), ignore_errors=True)
        command = ("product", str(million.gallery(turn)), str(million.vectors), shard_rows)
        builds.product.append(watched("tests.benchmarks.million", *command))
        for threads, runs in ((1, builds.one_thread), (os.cpu_count() or 1, builds.all_threads)):
            out = str(million.folder / "single.faiss")
            command = ("single", str(million.vectors), out, str(threads))
            runs.append(watched("tests.benchmarks.million", *command))
    return builds


def section(million: Million, builds: Builds, recall: list[list[Any]]) -> str:
    """The section of the page."""
    result = builds.product[0].result
    lists = builds.one_thread[0].result["lists"]
    return (
        "## A million descriptors\n\n"
        f"{million.rows:,} RootSIFT descriptors (128-D) of {million.images} photographs, as a `.npy` file, "
        f"by recipe `vectors-ivfadc` ({lists} lists, OPQ, 16 bytes) in {result['shards']} shards, through "
        "Ray: ingest, fit, shards, gate, publish. One faiss index: the same fit, and all vectors added, from "
        "a file to memory. Seconds are of this run, for their ratios.\n\n"
        + _times(builds)
        + "\n"
        + _memory(builds)
        + f"\nThe exact nearest neighbour of {QUERIES} held-out descriptors among the first 1, 10 and 100 "
        f"answers; the gate found {_gate(result['gate'])}.\n\n"
        + table(["lists read (nprobe)", *(f"recall@{k}" for k in RECALL_AT)], recall)
    )


def _gate(figures: dict[str, Any]) -> str:
    asked = f"{figures['queries']} queries at the recipe's nprobe"
    return f"{figures['recall']:.4f} within {figures['depth']} of {asked}"


def _times(builds: Builds) -> str:
    from tests.benchmarks.ratios import ratios, spread

    def total(runs: list[Watched], *parts: str) -> list[float]:
        return [sum(run.result[part] for part in parts) for run in runs]

    whole, build = total(builds.product, "ingest", "build"), total(builds.product, "build")
    rows = [
        ["product: ingest", str(spread(total(builds.product, "ingest")))],
        ["product: fit, shards, gate, publish", str(spread(build))],
        ["faiss: train", str(spread(total(builds.one_thread, "train")))],
        ["faiss: add, one thread", str(spread(total(builds.one_thread, "add")))],
        ["faiss: add, all threads", str(spread(total(builds.all_threads, "add")))],
    ]
    lines = []
    for name, runs in (("one thread", builds.one_thread), ("all threads", builds.all_threads)):
        bare = total(runs, "train", "add")
        lines.append([f"build / faiss, {name}", str(ratios(build, bare))])
        lines.append([f"ingest and build / faiss, {name}", str(ratios(whole, bare))])
    return table(["seconds", "median (least to most)"], rows) + "\n" + table(["ratio of times", ""], lines)


def _memory(builds: Builds) -> str:
    roles = sorted({role for run in builds.product for role in run.peak_mib})
    rows = [[role, f"{max(run.peak_mib.get(role, 0.0) for run in builds.product):,.0f}"] for role in roles]
    worst = max(run.peak_mib[role] for run in builds.product for role in ("driver", "worker"))
    return table(["most resident memory of a process, shared pages included", "MiB"], rows) + (
        f"\nLimit: {LIMIT_MIB:,} MiB for the driver and for each worker: "
        f"{'holds' if worst < LIMIT_MIB else 'MISSED'}.\n"
    )


if __name__ == "__main__":
    if sys.argv[1] == "product":
        print(json.dumps(product(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        print(json.dumps(single(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
