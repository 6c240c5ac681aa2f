"""The server against the commands, for docs/evaluation.md: the same answers, field by field, and mAP."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.jobs import build_index
from deploy.labels import read_labels
from deploy.recipes import load_recipe
from deploy.search_job import search
from deploy.terminal import Output
from index.exact import read_collection
from index.generation import Generation
from index.metrics import average_precision, ranks_of_positives
from ingest.job import Job
from serve.api import FoundImage, SearchRequest
from serve.client import Client
from tests.evaluation.page import table
from tests.evaluation.smvs import JUNK, LABELS, Target, dvd_gallery, evaluate_covers
from tests.serving.app import served
from tests.serving.faults import query_images
from tests.serving.ray_server import ray_served

SHARDS = 8
GROUPS = (1, 2, 3, 8)
QUERIES = 25
# What is asked with each image: fields of the request, which are options of `reseen search` too.
ASKED: tuple[dict[str, Any], ...] = (
    {"top": 20},
    {"top": 10, "box": (40.0, 30.0, 300.0, 320.0)},
    {"top": 20, "where": 'source = "smvs_dvd" and not key prefix "Droid"', "nprobe": 1},
    {"top": 10, "rerank": "geometry", "depth": 10},
    {"top": 10, "rerank": "expand,geometry"},
)


def equal_answers(shared: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    with tempfile.TemporaryDirectory(prefix="reseen-served-") as name:
        folder = Path(name)
        url = str(folder / "gallery")
        with dvd_gallery(shared, url, "inline") as job:
            recipe = load_recipe("sift-vlad")
            generation = build_index(job, recipe.model_copy(update={"shard_rows": 1}))  # a shard a part
            if len(generation.shards) != SHARDS:
                raise RuntimeError(f"{len(generation.shards)} shards were built instead of {SHARDS}")
            files = query_images(shared / "data" / "smvs_dvd", 12 * QUERIES)[::12]
            wanted = [_searched(url, folder, files, asked) for asked in ASKED]
            rows = []
            for way, asked_there in _ways(url, folder):
                with asked_there as client:
                    different = sum(
                        _differences(client, files, asked, expected)
                        for asked, expected in zip(ASKED, wanted, strict=True)
                    )
                    rows.append([way, len(ASKED) * len(files), different, _map(client, job, generation)])
            command = evaluate_covers(job, generation.number).map
    return _text(rows, command), _targets(rows, command)


@contextmanager
def _embedded(url: str, folder: Path, groups: int) -> Iterator[Client]:
    own = folder / f"embedded-{groups}"
    own.mkdir()
    with served(url, own, "--groups", groups) as server, Client(server.url) as client:
        yield client


@contextmanager
def _on_ray(url: str, folder: Path, groups: int) -> Iterator[Client]:
    own = folder / f"ray-{groups}"
    own.mkdir()
    with ray_served(url, own, groups, 1) as server, Client(server.url) as client:
        yield client


def _ways(url: str, folder: Path) -> Iterator[tuple[str, Any]]:
    for groups in GROUPS:
        yield f"embedded, {SHARDS} shards in {groups} group(s)", _embedded(url, folder, groups)
    for groups in (1, 3):
        yield f"Ray, {SHARDS} shards in {groups} group(s)", _on_ray(url, folder, groups)


def _searched(url: str, folder: Path, files: list[Path], asked: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What `reseen search --json` prints for each file."""
    box = ",".join(map(str, asked["box"])) if "box" in asked else None
    found = search(
        url,
        [str(file) for file in files],
        box,
        asked["top"],
        None,
        asked.get("nprobe"),
        folder / "search-cache",
        Output(True, True),
        rerank=asked.get("rerank"),
        depth=asked.get("depth"),
        where=asked.get("where"),
    )
    return [answer["results"] for answer in found["queries"]]


def _differences(
    client: Client, files: list[Path], asked: dict[str, Any], expected: list[list[dict[str, Any]]]
) -> int:
    """How many answers are not, field by field, what the command prints."""
    different = 0
    for file, wanted in zip(files, expected, strict=True):
        request = SearchRequest(allow_partial=False, **asked)
        answer = client.search(request, [file], timeout_s=60.0)
        different += [_printed(each) for each in answer.results] != wanted
    return different


def _printed(found: FoundImage) -> dict[str, Any]:
    """A result of the API in the fields of the command's JSON."""
    steps = [
        {"step": each.step, "added": each.added, **each.figures, **({"box": each.box} if each.box else {})}
        for each in found.steps
    ]
    plain = found.model_dump(include={"rank", "score", "similarity", "uri", "source", "key", "metadata"})
    return {**plain, "image_id": int(found.image_id), "steps": steps}


def _map(client: Client, job: Job, generation: Generation) -> float:
    """mAP of every labelled image searching for the others, by `similar` of the API."""
    collection = read_collection(job.gallery, generation)
    labels = read_labels(job.gallery, collection, LABELS, junk_pattern=JUNK)
    ids, found = collection.live.image_id, []
    for place in np.flatnonzero(labels.asked):
        alike = ids[(labels.of == labels.of[place]) & (np.arange(len(ids)) != place)]
        request = SearchRequest(image_ids=[str(ids[place])], top=len(ids) - 1, allow_partial=False)
        answer = client.search(request, timeout_s=60.0)
        ranked = np.array([int(each.image_id) for each in answer.results])
        found.append(average_precision(ranks_of_positives(ranked, alike, ids[labels.junk]), len(alike)))
    return float(np.mean(found))


def _text(rows: list[list[Any]], command: float) -> str:
    head = ["server", "answers compared", "different", "mAP through the API"]
    return (
        f"The DVD covers in {SHARDS} shards. {QUERIES} photographs, each sent to `POST /v1/search/upload` in "
        f"{len(ASKED)} ways (plain; with a box; with a filter and one list; with geometry; with expansion, "
        "then geometry), against what `reseen search --json` prints: rank, id, score and similarity to all "
        "six digits, evidence, place, metadata. Then every labelled photograph as a query by its id: "
        f"`reseen evaluate` says mAP {command:.6f}.\n\n" + table(head, rows)
    )


def _targets(rows: list[list[Any]], command: float) -> list[Target]:
    different = sum(row[2] for row in rows)
    apart = max(abs(row[3] - command) for row in rows)
    return [
        Target(
            "answers over HTTP equal the command's, both backends, any grouping",
            not different,
            str(different),
        ),
        Target("mAP through the API is the command's", apart < 1e-9, f"{apart:.1e} apart"),
    ]
