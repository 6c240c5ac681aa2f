"""The gate: what a generation must show before it is published.

Counts agree, every vector is finite, and the index finds the exact nearest neighbour of held-out queries
among its first hundred answers often enough. The exact search streams over the stored vectors, part by
part; the index is searched shard by shard: memory is one shard, or one part a worker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from index.encodings import read_encodings
from index.fit import SEED
from index.merge import merge_topk
from index.quantizer import deserialise, search, selector_bitmap
from index.recipe import Recipe
from index.samplers import Sample
from index.sampling import highest
from index.shards import Shard
from ingest.catalogue import Catalogue, LiveRows, PartRef
from ingest.errors import Corrupt, OverBudget
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.tables import read_object

DEPTH = 100
_TIE = 1e-6  # scores this close are ties: any of them counts as the nearest


@dataclass(frozen=True)
class Queries:
    """Held-out images as queries: their ids and vectors. They are never answers to themselves."""

    image_ids: Int64[np.ndarray, " q"]
    vectors: Float32[np.ndarray, "q d"]
    held_out: bool  # False where there were too few images to leave any out of the fit


def check_gate(
    job: Job,
    recipe: Recipe,
    encodings: str,
    catalogue: Catalogue,
    live: LiveRows,
    shards: Sequence[Shard],
    masks: Mapping[str, Bool[np.ndarray, " n"]],
    tables: Sequence[pa.Table],
) -> dict[str, Any]:
    """Checks a generation that is not published yet; returns the figures that are stored with it.

    Raises:
        Corrupt: counts disagree, or a vector is not finite.
        OverBudget: the recall is below the recipe's threshold.
    """
    queries = _held_out_queries(job, recipe, encodings, catalogue, live)
    nearest, vectors = _exact_nearest(job, encodings, catalogue, live, queries)
    found = _search_shards(job, recipe, shards, masks, tables, queries)
    rows = sum(shard.count for shard in shards) - sum(int(mask.sum()) for mask in masks.values())
    if rows != vectors:
        raise Corrupt(
            f"the shards have {rows} rows in force, the stored vectors are {vectors}: nothing is published; "
            "build again with --rebuild"
        )
    hits = [bool(nearest[q] & set(found[q].tolist())) for q in range(len(found)) if nearest[q]]
    figures = {"queries": len(hits), "held_out": queries.held_out, "depth": DEPTH}
    if not hits:
        return {**figures, "recall": None}
    recall = sum(hits) / len(hits)
    if recall < recipe.gate.recall:
        raise OverBudget(
            f"nothing is published: of {len(hits)} held-out queries the index finds the exact nearest "
            f"neighbour in its top {DEPTH} for {recall:.1%}, and recipe {recipe.name!r} demands "
            f"{recipe.gate.recall:.1%}; spend more bytes a vector or probe more lists (quantizer.*), or "
            "lower gate.recall"
        )
    return {**figures, "recall": round(recall, 6)}


def _held_out_queries(
    job: Job, recipe: Recipe, encodings: str, catalogue: Catalogue, live: LiveRows
) -> Queries:
    chosen = highest(live.image_id, recipe.gate.queries, SEED)
    samples = [
        Sample(catalogue.parts[place], tuple(map(int, live.row[chosen][live.part[chosen] == place])))
        for place in np.unique(live.part[chosen])
    ]
    ids, vectors = [], []
    for _, part_ids, part_vectors in sorted(
        job.engine.map(QueryReader(job.gallery, encodings), samples), key=_first
    ):
        ids.append(part_ids)
        vectors.append(part_vectors)
    held_out = len(live.image_id) >= recipe.sample_vectors + recipe.gate.queries
    if not ids:
        return Queries(np.empty(0, np.int64), np.empty((0, 0), np.float32), held_out)
    return Queries(np.concatenate(ids), np.concatenate(vectors), held_out)


def _first(found: tuple[str, Any, Any]) -> str:
    return found[0]


@dataclass(frozen=True)
class QueryReader:
    """Reads the vectors of the images that were drawn as queries."""

    gallery: Gallery
    encodings: str

    def start(self) -> "QueryReader":
        return self

    def __call__(self, sample: Sample) -> tuple[str, np.ndarray, np.ndarray]:
        rows, ids, vectors = read_encodings(self.gallery, self.encodings, sample.part.part)
        drawn = np.isin(rows, sample.rows)
        return sample.part.part, ids[drawn], vectors[drawn]


@dataclass(frozen=True)
class ExactTask:
    """One part of the streamed exact search, and which of its rows are in force."""

    part: PartRef
    rows: Int64[np.ndarray, " n"]

    def __str__(self) -> str:
        return f"exact search in {self.part}"


@dataclass(frozen=True)
class ExactSearch:
    """The nearest neighbour of every query in one part; runs in any engine."""

    gallery: Gallery
    encodings: str
    queries: Queries

    def start(self) -> "ExactSearch":
        return self

    def __call__(self, task: ExactTask) -> tuple[int, np.ndarray, list[np.ndarray]]:
        """Number of vectors in force; best score of each query; ids of the images that reach it."""
        rows, ids, vectors = read_encodings(self.gallery, self.encodings, task.part.part)
        alive = np.isin(rows, task.rows)
        ids, vectors = ids[alive], vectors[alive]
        if not np.isfinite(vectors).all():
            bad = ids[~np.isfinite(vectors).all(axis=1)][0]
            raise Corrupt(f"the vector of image {bad} in {task.part} is not finite: nothing is published")
        count = len(self.queries.image_ids)
        if not len(ids):
            return 0, np.full(count, -np.inf), [ids] * count
        scores = self.queries.vectors @ vectors.T
        scores[self.queries.image_ids[:, None] == ids[None, :]] = -np.inf
        best = scores.max(axis=1)
        return len(ids), best, [ids[row >= top - _TIE] for row, top in zip(scores, best, strict=True)]


def _exact_nearest(
    job: Job, encodings: str, catalogue: Catalogue, live: LiveRows, queries: Queries
) -> tuple[list[set[int]], int]:
    """For each query the ids of its exact nearest neighbours (ties); and the vectors in force."""
    order = np.argsort(live.part, kind="stable")
    bounds = np.searchsorted(live.part[order], np.arange(len(catalogue.parts) + 1))
    tasks = [
        ExactTask(part, live.row[order[bounds[place] : bounds[place + 1]]])
        for place, part in enumerate(catalogue.parts)
    ]
    best = np.full(len(queries.image_ids), -np.inf)
    found: list[list[tuple[float, np.ndarray]]] = [[] for _ in best]
    total = 0
    with job.progress.stage("check: exact search", catalogue.rows, "vectors") as stage:
        for count, scores, ids in job.engine.map(ExactSearch(job.gallery, encodings, queries), tasks):
            total += count
            for q in np.flatnonzero(scores > np.maximum(best - _TIE, -np.finfo(np.float32).max)):
                found[q].append((float(scores[q]), ids[q]))
            best = np.maximum(best, scores)
            stage.advance(count)
    nearest = [
        {int(image) for score, ids in pairs if score >= best[q] - _TIE for image in ids}
        for q, pairs in enumerate(found)
    ]
    return nearest, total


def _search_shards(
    job: Job,
    recipe: Recipe,
    shards: Sequence[Shard],
    masks: Mapping[str, Bool[np.ndarray, " n"]],
    tables: Sequence[pa.Table],
    queries: Queries,
) -> Int64[np.ndarray, "q k"]:
    """Ids of the first hundred answers of the index, the query itself left out."""
    if not len(queries.image_ids):
        return np.empty((0, DEPTH), np.int64)
    all_scores, all_ids = [], []
    with job.progress.stage("check: index", sum(shard.count for shard in shards), "vectors") as stage:
        for shard, table in zip(shards, tables, strict=True):
            scores, ids = _search_shard(job, recipe, shard, masks.get(shard.shard), table, queries)
            all_scores.append(scores)
            all_ids.append(ids)
            stage.advance(shard.count)
    scores, ids = merge_topk(all_scores, all_ids, DEPTH + 1)
    kept = np.full((len(ids), DEPTH), -1, np.int64)
    for q, row in enumerate(ids):
        others = row[row != queries.image_ids[q]][:DEPTH]
        kept[q, : len(others)] = others
    return kept


def _search_shard(
    job: Job, recipe: Recipe, shard: Shard, mask: np.ndarray | None, table: pa.Table, queries: Queries
) -> tuple[np.ndarray, np.ndarray]:
    index = deserialise(read_object(job.gallery.store, shard.index))
    if index.ntotal != table.num_rows:
        raise Corrupt(
            f"shard {shard.shard} has {index.ntotal} vectors and {table.num_rows} rows: nothing is "
            "published; build again with --rebuild"
        )
    if not index.ntotal:
        empty = np.empty((len(queries.image_ids), 0))
        return empty.astype(np.float32), empty.astype(np.int64)
    selector = None if mask is None else selector_bitmap(~mask)
    scores, rows = search(index, queries.vectors, DEPTH + 1, recipe.nprobe, selector)
    ids = np.where(rows >= 0, table["image_id"].to_numpy()[np.maximum(rows, 0)], -1)
    if not np.isfinite(scores[rows >= 0]).all():
        raise Corrupt(f"shard {shard.shard} gives scores that are not finite: nothing is published")
    return scores, ids
