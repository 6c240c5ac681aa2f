"""Faults under a steady load on Ray Serve, for docs/evaluation.md: what requests got meanwhile."""

import tempfile
import time
from pathlib import Path

import numpy as np

from deploy.jobs import build_index
from deploy.recipes import load_recipe
from ingest.job import Job
from tests.evaluation.equality import s3_server
from tests.evaluation.page import table
from tests.evaluation.smvs import Target, dvd_gallery
from tests.serving.faults import TOP, Faults, Phase, query_images, stored_queries, wrong_answers
from tests.serving.ray_server import RayServed, ray_served
from tests.serving.records import Record, summary
from tests.serving.running_load import running_load

SHARDS = 8
FLIPS = 20
OUTAGE_S = 60.0
# Deadlines of the requests that the load sends, as a client would set them.
VECTOR_MS, IMAGE_MS = 2_000, 15_000
LOSSLESS = ("nothing", "each replica", "generation", "rolling", "store", "one replica")


def faults(shared: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    with tempfile.TemporaryDirectory(prefix="reseen-faults-") as name, s3_server() as store:
        folder, url = Path(name), f"s3://{store.bucket()}/gallery"
        with dvd_gallery(shared, url, "inline") as job:
            recipe = load_recipe("sift-vlad")
            generation = build_index(job, recipe.model_copy(update={"shard_rows": 1}))  # a shard a part
            if len(generation.shards) != SHARDS:
                raise RuntimeError(f"{len(generation.shards)} shards were built instead of {SHARDS}")
            queries = stored_queries(job.gallery, 50)
            np.save(folder / "queries.npy", queries)
            files = query_images(shared / "data" / "smvs_dvd", 7)
            with ray_served(url, folder) as server:
                phases, records = _run(job, server, store.pid, folder, files)
            wrong = wrong_answers(job.gallery, records, queries, [file.read_bytes() for file in files])
    return _text(phases, records, wrong), _targets(phases, records, wrong)


def _run(
    job: Job, server: RayServed, store: int, folder: Path, files: list[Path]
) -> tuple[list[Phase], list[Record]]:
    options = {
        "vectors": folder / "queries.npy",
        "rate": 20,
        "image": files,
        "image_rate": 1,
        "seconds": 3_600,
        "request": {"top": TOP, "timeout_ms": VECTOR_MS},
        "image_request": {"top": TOP, "timeout_ms": IMAGE_MS},
    }
    with running_load(server.url, folder / "load.jsonl", **options) as load:
        time.sleep(3)
        done = Faults(job, server, load)
        done.nothing(20)
        done.each_replica_killed()
        done.flipped(FLIPS)
        done.rolled()
        done.store_stopped(store, OUTAGE_S)
        done.group_lost()
        done.replica_stopped()
        done.group_stopped()
        done.nothing(10)
        records = load.stop()
    return done.phases, records


def _text(phases: list[Phase], records: list[Record], wrong: int) -> str:
    rows = []
    for phase in phases:
        found = summary(phase.of(records))
        rows.append(
            [
                phase.name,
                found.requests,
                found.failed,
                found.statuses.get(429, 0),
                found.partial,
                found.least_coverage,
                found.p50,
                found.p99,
                found.worst,
                max(phase.back, default=None),
            ]
        )
    head = ["what was done", "requests", "failed", "429", "partial", "least coverage"]
    head += ["p50, ms", "p99, ms", "worst, ms", "back after, s"]
    return (
        f"The DVD covers in {SHARDS} shards on S3 (SeaweedFS), `reseen serve --ray` with 2 groups x 2 "
        f"replicas and 2 ingresses on this machine, under 20 vector queries (deadline {VECTOR_MS / 1e3:g} s) "
        f"and one image query (deadline {IMAGE_MS / 1e3:g} s) a second, whatever became of those before. "
        "Failed: neither an answer nor a 429. Partial: less than all shards, and marked so. Back: until "
        "every replica was whole again, or every ingress served the new generation; the worst case. Of all "
        f"full answers, {wrong} were not what `reseen search` finds in the generation that they name.\n\n"
        + table(head, rows)
    )


def _targets(phases: list[Phase], records: list[Record], wrong: int) -> list[Target]:
    lossless = [phase for phase in phases if phase.name.startswith(LOSSLESS)]
    asked = [record for phase in lossless for record in phase.of(records)]
    failed = sum(record.status != 200 or bool(record.error) for record in asked)
    partial = sum(summary(phase.of(records)).partial for phase in lossless)
    lost = [phase.lost for phase in phases if phase.lost]
    late = sum(
        record.latency > (VECTOR_MS if record.kind == "vector" else IMAGE_MS) / 1e3 + 0.5
        for record in records
    )
    everything, full = summary(records), sum(record.full for record in records)
    return [
        Target("no failed request while one replica, the store or none is lost", failed == 0, str(failed)),
        Target("no partial answer then", partial == 0, str(partial)),
        Target("nothing but answers and 429 at all", everything.failed == 0, str(everything.statuses)),
        Target("every full answer is that of its generation", wrong == 0 < full, f"{wrong} of {full}"),
        Target("every request answered within its deadline (+ 0.5 s)", late == 0, f"{late} late"),
        Target("all came back by itself", not lost, "; ".join(lost) or "yes"),
    ]
