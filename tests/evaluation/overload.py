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
from tests.serving.records import Record, summary
from tests.serving.running_load import running_load

TIMES = 5
SECONDS = 60.0
CALM_S = 20.0
RECOVER_S = 10.0
CLIENTS = 8
NORMAL = {"vector": 20.0, "image": 1.0}  # requests a second, before and after
FLAT = 1.1  # the memory of the second half of the overload, of the first half's


@dataclass(frozen=True)
class Course:
    """One kind of request: before, the overload, the ten seconds after it, and what follows."""

    kind: str
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
        asked: dict[str, dict[str, Any]] = {
            "vector": {"vectors": folder / "queries.npy"},
            "image": {"image": files},
        }
        with served(folder / "gallery", folder) as server:
            courses = [_course(server, folder, kind, asked[kind]) for kind in asked]
    return _text(courses), [target for course in courses for target in _targets(course)]


def _course(server: Served, folder: Path, kind: str, asked: dict[str, Any]) -> Course:
    def load(seconds: float, **options: Any) -> list[Record]:
        with running_load(server.url, folder / "load.jsonl", seconds=seconds, **asked, **options) as running:
            return running.finish()

    rate = "rate" if kind == "vector" else "image_rate"
    load(3, clients=1)  # what is done once
    capacity = summary(load(10, clients=CLIENTS)).answered
    before = load(CALM_S, **{rate: NORMAL[kind]})
    with MemorySampler((server.pid,)) as memory:
        begun = time.time()
        over = load(SECONDS, **{rate: TIMES * capacity})
        middle, end = begun + SECONDS / 2, time.time()
    time.sleep(max(0.0, begun + SECONDS + RECOVER_S - time.time()))
    after = load(CALM_S, **{rate: NORMAL[kind]})
    return Course(
        kind, capacity, before, over, after, (memory.median(begun + 5, middle), memory.median(middle, end))
    )


def _text(courses: list[Course]) -> str:
    rows = []
    for course in courses:
        for when in ("before", "over", "after"):
            found = summary(getattr(course, when))
            said = {"before": "before", "over": f"{TIMES} x capacity", "after": f"{RECOVER_S:g} s after"}[
                when
            ]
            rows.append(
                [
                    f"{course.kind}, {said}",
                    found.requests,
                    found.statuses.get(200, 0),
                    found.statuses.get(429, 0),
                    found.failed,
                    found.p50,
                    found.p99,
                ]
            )
    head = ["load", "requests", "answered", "429", "anything else", "p50 of answers, ms", "p99, ms"]
    memory = "; ".join(
        f"{course.kind}: {course.mib[0]:.0f} MiB in the first half of the overload, {course.mib[1]:.0f} in "
        "the second"
        for course in courses
    )
    capacities = ", ".join(f"{course.capacity:.1f} {course.kind} searches" for course in courses)
    return (
        f"`reseen serve` in one process over the DVD covers. Capacity: what {CLIENTS} clients get that ask "
        f"again as soon as they are answered, {capacities} a second, with the load on the same 2 cores. Then "
        f"{TIMES} times that for {SECONDS:g} s, whatever becomes of it.\n\n"
        + table(head, rows)
        + f"\nMemory, {memory}.\n"
    )


def _targets(course: Course) -> list[Target]:
    over, after, before = summary(course.over), summary(course.after), summary(course.before)
    first, second = course.mib
    return [
        Target(f"{course.kind}: only 200 and 429", over.failed == 0, str(over.statuses)),
        Target(f"{course.kind}: memory flat", second <= FLAT * first, f"{first:.0f}, {second:.0f} MiB"),
        Target(
            f"{course.kind}: normal latency {RECOVER_S:g} s after",
            after.failed == 0 and after.p50 <= 2 * before.p50,
            f"p50 {before.p50:.1f} ms before, {after.p50:.1f} after",
        ),
    ]
