"""Search through an opened generation against the raw faiss call on the same merged lists."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from index.opened import OpenGeneration
from ingest.threads import set_threads
from tests.benchmarks.ratios import interleaved, ratios, spread
from tests.evaluation.page import table

TOP = 100
SECONDS = 0.08  # of one turn, about: short, so that both ways see the same neighbours
REPEATS = 21
BATCHES = (1, 16, 256)
NPROBES = (32, 128)


def rate(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    """Queries a second, asked in batches until `SECONDS` have passed."""
    begun = now = time.perf_counter()
    asked = 0
    while now - begun < SECONDS:
        start = asked % (len(queries) - batch + 1)
        search(queries[start : start + batch])
        asked += batch
        now = time.perf_counter()
    return asked / (now - begun)


def raw_search(opened: OpenGeneration, nprobe: int) -> Callable[[np.ndarray], Any]:
    """The faiss call alone, its parameters made once."""
    import faiss

    lists = faiss.SearchParametersIVF(nprobe=nprobe)
    index: Any = opened.index
    parameters = lists
    if isinstance(faiss.downcast_index(index), faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=lists)
    return lambda queries: index.search(queries, TOP, params=parameters)


def compared(opened: OpenGeneration, queries: np.ndarray, nprobe: int, batch: int) -> list[Any]:
    ways = {
        "product": lambda q: opened.search(q, TOP, nprobe),
        "raw": raw_search(opened, nprobe),
    }
    for way in ways.values():
        way(queries[:batch])
    turns = {name: partial(rate, way, queries, batch) for name, way in ways.items()}
    found = interleaved(turns, REPEATS)
    return [
        f"{spread(found['raw']).median:,.0f}",
        f"{spread(found['product']).median:,.0f}",
        str(ratios(found["product"], found["raw"])),
    ]


def search_bench(opened: OpenGeneration, queries: np.ndarray) -> str:
    """The section of the page."""
    rows: list[list[Any]] = []
    cores = os.cpu_count() or 1
    try:
        for threads in sorted({1, cores}):
            set_threads(threads)
            for nprobe in NPROBES:
                for batch in BATCHES:
                    rows.append([f"{threads}", nprobe, batch, *compared(opened, queries, nprobe, batch)])
    finally:
        set_threads(cores)
    head = [
        "threads",
        "nprobe",
        "queries a call",
        "faiss, queries a second",
        "product",
        "product / faiss (aim >= .9)",
    ]
    return (
        "## Search\n\n"
        f"`OpenGeneration.search` against the raw faiss call on the same merged lists "
        f"({len(opened.image_ids):,} vectors, {len(opened.generation.shards)} shards), the best {TOP}, "
        f"{REPEATS} turns each. The product checks the queries, clips, orders by score and image id, and "
        "looks up image ids.\n\n" + table(head, rows)
    )


def merged_against_single(opened: OpenGeneration, single: Any, queries: np.ndarray) -> str:
    """The merged shards against one index that was never cut up, both by the raw call."""
    import faiss

    rows: list[list[Any]] = []
    whole = OpenGeneration(opened.generation, single, opened.image_ids, None)
    for nprobe in NPROBES:
        ways = {"merged": raw_search(opened, nprobe), "single": raw_search(whole, nprobe)}
        turns = {name: partial(rate, way, queries, 16) for name, way in ways.items()}
        found = interleaved(turns, REPEATS)
        rows.append([str(nprobe), str(ratios(found["merged"], found["single"]))])
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    return "Merged shards against the single index, raw faiss calls, 16 queries a call:\n\n" + table(
        ["nprobe", "merged / single"], rows
    )
