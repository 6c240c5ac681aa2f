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
RATES = {"vector": 20.0, "image": 1.0}  # requests a second, before and after
FLAT = 1.03  # the memory of the second half of the overload, of the first half's


@dataclass(frozen=True)
class Course:
    """Both kinds of searches: before, during an overload with one of them, and after."""

    kind: str  # of the overload; the other kind goes on at its rate
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
            courses = [_course(server, folder, files, kind) for kind in ("image", "vector")]
    return _text(courses), [target for course in courses for target in _targets(course)]


def _course(server: Served, folder: Path, files: list[Path], kind: str) -> Course:
    queries = {"image": {"image": files}, "vector": {"vectors": folder / "queries.npy"}}

    def load(seconds: float, **options: Any) -> list[Record]:
        with running_load(server.url, folder / "load.jsonl", seconds=seconds, **options) as running:
            return running.finish()

    def steady(seconds: float, **rates: float) -> list[Record]:
        rates = RATES | rates
        both = queries["image"] | queries["vector"]
        return load(seconds, rate=rates["vector"], image_rate=rates["image"], **both)

    load(3, clients=1, **queries[kind])  # what is done once
    capacity = summary(load(10, clients=CLIENTS, **queries[kind])).answered
    before = steady(CALM_S)
    with MemorySampler((server.pid,)) as memory:
        begun = time.time()
        over = steady(SECONDS, **{kind: TIMES * capacity})
    middle, end = begun + SECONDS / 2, begun + SECONDS
    time.sleep(max(0.0, begun + SECONDS + RECOVER_S - time.time()))
    after = steady(CALM_S)
    mib = memory.median(begun + 5, middle), memory.median(middle, end)
    return Course(kind, capacity, before, over, after, mib)


def _of(records: list[Record], kind: str) -> Summary:
    return summary([record for record in records if record.kind == kind])


def _text(courses: list[Course]) -> str:
    rows = [row for course in courses for row in _rows(course)]
    capacities = " and ".join(f"{course.capacity:,.1f} {course.kind} searches" for course in courses)
    memory = "; ".join(f"{course.kind}: {course.mib[0]:.0f}, {course.mib[1]:.0f}" for course in courses)
    others = " and ".join(f"{rate:g} {kind}" for kind, rate in RATES.items())
    head = ["load", "requests", "answered", "429", "anything else", "p50 of answers, ms", "p99, ms"]
    return (
        f"`reseen serve` in one process over the DVD covers. Capacity: the {capacities} a second that "
        f"{CLIENTS} clients get who ask again as soon as they are answered, with the load on the same 2 "
        f"cores. Then {TIMES} times that for {SECONDS:g} s, whatever becomes of it, first of the one kind, "
        f"then of the other, while the other goes on; before and after, {others} searches a second.\n\n"
        + table(head, rows)
        + "\nMemory of the server and its decoders in the first and in the second half of the overload, "
        f"MiB: {memory}.\n"
    )


def _rows(course: Course) -> list[list[Any]]:
    said = {"before": "before", "over": f"{TIMES} x {course.kind}", "after": f"{RECOVER_S:g} s after"}
    rows = []
    for when, name in said.items():
        for kind in ("image", "vector"):
            found = _of(getattr(course, when), kind)
            answered, refused = found.statuses.get(200, 0), found.statuses.get(429, 0)
            figures = [found.requests, answered, refused, found.failed, found.p50, found.p99]
            rows.append([f"{name}: {kind}", *figures])
    return rows


def _targets(course: Course) -> list[Target]:
    over, (first, second) = summary(course.over), course.mib
    answered = _of(course.over, course.kind).answered
    before, after = _of(course.before, course.kind), _of(course.after, course.kind)
    name = f"{TIMES} x {course.kind}"
    return [
        Target(f"{name}: only 200 and 429", over.failed == 0, str(over.statuses)),
        Target(
            f"{name}: and half of what it can do is done",
            answered >= 0.5 * course.capacity,
            f"{answered:.1f} of {course.capacity:.1f} a second",
        ),
        Target(f"{name}: memory flat", second <= FLAT * first, f"{first:.0f}, {second:.0f} MiB"),
        Target(
            f"{name}: normal latency {RECOVER_S:g} s after",
            summary(course.after).statuses.keys() == {200} and after.p50 <= 2 * before.p50,
            f"p50 {before.p50:.1f} ms before, {after.p50:.1f} after",
        ),
    ]
