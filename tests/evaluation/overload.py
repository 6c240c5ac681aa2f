"""Five times more load than a server can take, for docs/evaluation.md: its answers, and what comes after."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.jobs import build_index
from deploy.recipes import load_recipe
from tests.evaluation.page import table
from tests.evaluation.smvs import Target, dvd_gallery
from tests.serving.app import Served, served
from tests.serving.faults import query_images, stored_queries
from tests.serving.processes_under_test import MemorySampler
from tests.serving.records import Record, Summary, summary
from tests.serving.running_load import running_load

TIMES = 5
SECONDS = 60.0
CALM_S = 20.0
RECOVER_S = 10.0
CLIENTS = 8
VECTOR_RATE, IMAGE_RATE = 20.0, 1.0  # requests a second, before and after
FLAT = 1.03  # the memory of the second half of the overload, of the first half's


@dataclass(frozen=True)
class Course:
    """Image searches: before, the overload, and after; vector searches go on at their rate all the while."""

    capacity: float
    before: list[Record]
    over: list[Record]
    after: list[Record]
    mib: tuple[float, float]  # median of either half of the overload


def overload(shared: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    with tempfile.TemporaryDirectory(prefix="reseen-overload-") as name:
        folder = Path(name)
        with dvd_gallery(shared, str(folder / "gallery"), "inline") as job:
            build_index(job, load_recipe("sift-vlad"))
            np.save(folder / "queries.npy", stored_queries(job.gallery, 50))
        files = query_images(shared / "data" / "smvs_dvd", 7)
        with served(folder / "gallery", folder) as server:
            course = _course(server, folder, files)
    return _text(course), _targets(course)


def _course(server: Served, folder: Path, files: list[Path]) -> Course:
    def load(seconds: float, **options: Any) -> list[Record]:
        options |= {"image": files, "seconds": seconds}
        with running_load(server.url, folder / "load.jsonl", **options) as running:
            return running.finish()

    def steady(seconds: float, image_rate: float) -> list[Record]:
        vectors = {"vectors": folder / "queries.npy", "rate": VECTOR_RATE}
        return load(seconds, image_rate=image_rate, **vectors)

    load(3, clients=1)  # what is done once
    capacity = summary(load(10, clients=CLIENTS)).answered
    before = steady(CALM_S, IMAGE_RATE)
    with MemorySampler((server.pid,)) as memory:
        begun = time.time()
        over = steady(SECONDS, TIMES * capacity)
    middle, end = begun + SECONDS / 2, begun + SECONDS
    time.sleep(max(0.0, begun + SECONDS + RECOVER_S - time.time()))
    after = steady(CALM_S, IMAGE_RATE)
    return Course(
        capacity, before, over, after, (memory.median(begun + 5, middle), memory.median(middle, end))
    )


def _of(records: list[Record], kind: str) -> Summary:
    return summary([record for record in records if record.kind == kind])


def _text(course: Course) -> str:
    said = {"before": "before", "over": f"{TIMES} x capacity", "after": f"{RECOVER_S:g} s after"}
    rows = []
    for when in said:
        for kind in ("image", "vector"):
            found = _of(getattr(course, when), kind)
            answered, refused = found.statuses.get(200, 0), found.statuses.get(429, 0)
            figures = [found.requests, answered, refused, found.failed, found.p50, found.p99]
            rows.append([f"{said[when]}: {kind}", *figures])
    head = ["load", "requests", "answered", "429", "anything else", "p50 of answers, ms", "p99, ms"]
    return (
        f"`reseen serve` in one process over the DVD covers. Capacity: the {course.capacity:.1f} image "
        f"searches a second that {CLIENTS} clients get who ask again as soon as they are answered, with the "
        f"load on the same 2 cores. Then {TIMES} times that for {SECONDS:g} s, whatever becomes of it, while "
        f"{VECTOR_RATE:g} vector searches a second go on.\n\n"
        + table(head, rows)
        + f"\nMemory of the server and its decoders: {course.mib[0]:.0f} MiB in the first half of the "
        f"overload, {course.mib[1]:.0f} in the second.\n"
    )


def _targets(course: Course) -> list[Target]:
    over, (first, second) = summary(course.over), course.mib
    before, after = _of(course.before, "image"), _of(course.after, "image")
    return [
        Target("only 200 and 429", over.failed == 0, str(over.statuses)),
        Target(
            "and half of what it can do is done",
            _of(course.over, "image").answered >= 0.5 * course.capacity,
            f"{_of(course.over, 'image').answered:.1f} of {course.capacity:.1f} a second",
        ),
        Target("memory flat", second <= FLAT * first, f"{first:.0f}, {second:.0f} MiB"),
        Target(
            f"normal latency {RECOVER_S:g} s after",
            summary(course.after).statuses.keys() == {200} and after.p50 <= 2 * before.p50,
            f"p50 {before.p50:.1f} ms before, {after.p50:.1f} after",
        ),
    ]
