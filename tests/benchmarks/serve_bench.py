"""Search by vector over HTTP against the bare index call: embedded, and on Ray Serve with one and two groups.

    python -m tests.benchmarks.serve_bench GALLERY QUERIES.npy SECONDS

is the process of one embedded turn: the bare call and the server in it, the load in another.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from index.group import ShardGroup, assign_shards, open_group
from index.nearest import search_parameters
from ingest.gallery import Gallery, open_gallery
from ingest.store import Store
from tests.benchmarks.processes import resident_mib
from tests.evaluation.page import table
from tests.serving.ray_server import ray_served
from tests.serving.running_load import running_load

TOP = 10
CLIENTS = (1, 4, 16)
TURNS = 2
SECONDS = 6.0
EMBEDDED_MS, RAY_MS = 2.0, 8.0  # aims: of embedded over the bare call, of Ray over embedded


@dataclass(frozen=True)
class Way:
    """One way of asking, one turn. by_clients: p50, p95, p99 in ms and requests a second."""

    by_clients: dict[int, tuple[float, float, float, float]]
    mib: float


def serve_bench(gallery: Path, queries: Path) -> str:
    """The section of the page."""
    turns: dict[str, list[Way]] = {"embedded": [], "Ray, 1 group": [], "Ray, 2 groups": []}
    bare: list[tuple[float, float]] = []
    for _ in range(TURNS):
        found, way = _embedded(gallery, queries)
        bare.append(found)
        turns["embedded"].append(way)
        turns["Ray, 1 group"].append(_ray(gallery, queries, 1))
        turns["Ray, 2 groups"].append(_ray(gallery, queries, 2))
    return _section(bare, {name: _median(ways) for name, ways in turns.items()})


def _embedded(gallery: Path, queries: Path) -> tuple[tuple[float, float], Way]:
    import subprocess

    command = [sys.executable, "-m", "tests.benchmarks.serve_bench", str(gallery), str(queries), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    by_clients = {int(clients): tuple(figures) for clients, figures in said["by_clients"].items()}
    return (said["bare_ms"], said["bare_rate"]), Way(by_clients, said["mib"])  # type: ignore[arg-type]


def _ray(gallery: Path, queries: Path, groups: int) -> Way:
    with tempfile.TemporaryDirectory(prefix="reseen-serve-") as name:
        folder = Path(name)
        options = ("--ingress-replicas", "1", "--log-level", "warning")
        with ray_served(gallery, folder, groups, 1, *options) as server:
            found = {clients: _load(server.url, queries, folder, clients, SECONDS) for clients in CLIENTS}
            pids = [pid for group in range(groups) for pid in server.group("a", group)]
            return Way(found, max(resident_mib(pid) for pid in pids))


def _load(
    url: str, queries: Path, folder: Path, clients: int, seconds: float
) -> tuple[float, float, float, float]:
    def asked(for_s: float) -> Any:
        out = folder / "load.jsonl"
        options = {"vectors": queries, "clients": clients, "seconds": for_s, "request": {"top": TOP}}
        with running_load(url, out, **options) as load:
            records = load.finish()
        if bad := [record for record in records if record.status != 200]:
            raise RuntimeError(f"{len(bad)} of {len(records)} requests failed: {bad[0]}")
        return records

    asked(1.0)  # what is done once
    records = asked(seconds)
    took = np.array([record.latency for record in records]) * 1e3
    p50, p95, p99 = np.percentile(took, (50, 95, 99))
    return float(p50), float(p95), float(p99), len(records) / seconds


def _median(ways: list[Way]) -> Way:
    by_clients = {
        clients: tuple(median(way.by_clients[clients][at] for way in ways) for at in range(4))
        for clients in CLIENTS
    }
    return Way(by_clients, max(way.mib for way in ways))  # type: ignore[arg-type]


def _section(bare: list[tuple[float, float]], ways: dict[str, Way]) -> str:
    bare_ms, bare_rate = median(ms for ms, _ in bare), median(rate for _, rate in bare)
    rows: list[list[Any]] = [["bare faiss call, one thread", 1, bare_ms, None, None, bare_rate, 1.0, None]]
    for name, way in ways.items():
        for clients, (p50, p95, p99, rate) in way.by_clients.items():
            rows.append([name, clients, p50, p95, p99, rate, rate / bare_rate, way.mib])
    head = [
        "way",
        "clients",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "requests/s",
        "of the bare rate",
        "MiB a replica",
    ]
    one = {name: way.by_clients[1][0] for name, way in ways.items()}
    over, more = one["embedded"] - bare_ms, one["Ray, 1 group"] - one["embedded"]
    two = one["Ray, 2 groups"] - one["embedded"]
    return (
        "## Serving\n\n"
        f"A million 128-D vectors, 4 shards (`vectors-ivfadc`, its own nprobe), top {TOP}, search "
        "by vector over HTTP on loopback: `POST /v1/search` with JSON, answers with keys and metadata. "
        "The load comes from a process of its own on the same 2 cores. Medians of "
        f"{TURNS} turns (embedded, Ray with 1 group, Ray with 2, and again), {SECONDS:g} s for each number "
        "of clients. The bare call is made in the embedded server's process. Ray: one replica of each group, "
        "one ingress. Memory, the most of the turns, is that of the server's process, on Ray of a group's "
        "replica.\n\n"
        + table(head, rows)
        + "\n"
        + f"With one client: embedded is {over:.2f} ms above the bare call (aim: {EMBEDDED_MS:g}), Ray with "
        f"one group {more:.2f} ms above embedded (aim: {RAY_MS:g}), with two groups {two:.2f} ms.\n"
    )


# -- the process of an embedded turn ----------------------------------------------------------------------


def bare_call(group: ShardGroup) -> Callable[[np.ndarray], Any]:
    """The faiss call that answers a query, and nothing else."""
    import faiss

    (segment,) = group.segments
    faiss.omp_set_num_threads(1)
    parameters = search_parameters(segment.index, group.generation.recipe.nprobe, None)
    return lambda query: segment.index.search(query, TOP, params=parameters)


def _bare(group: ShardGroup, queries: np.ndarray, seconds: float) -> tuple[float, float]:
    """p50 in ms, and calls a second."""
    ask, took = bare_call(group), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for row in range(len(queries)):
            begun = time.perf_counter()
            ask(queries[row : row + 1])
            took.append(time.perf_counter() - begun)
    return float(np.median(took)) * 1e3, len(took) / sum(took)


async def _turn(gallery: Gallery, queries: Path, seconds: float) -> dict[str, Any]:
    import uvicorn

    from serve.front import DoorSettings, open_front
    from serve.http.settings import HttpSettings
    from serve.metrics import PrometheusMetrics
    from serve.replicas.embedded import open_embedded

    asking = np.ascontiguousarray(np.load(queries), np.float32)
    door = DoorSettings(http=HttpSettings(rate_per_s=None))
    with (
        tempfile.TemporaryDirectory(prefix="reseen-serve-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        async with open_embedded(gallery) as backend:
            front = open_front(gallery, backend, PrometheusMetrics(), door)
            await front.service.start()
            config = uvicorn.Config(front.app, log_level="warning", access_log=False)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            found = {}
            for clients in CLIENTS:
                found[clients] = await asyncio.to_thread(_load, url, queries, Path(folder), clients, seconds)
            mib = resident_mib(os.getpid())
            group = _served_group(gallery)  # a second copy in memory: not before it is measured
            bare = [await asyncio.to_thread(_bare, group, asking, seconds / 4) for _ in range(2)]
            server.should_exit = True
            await serving
            await front.close()
    return {
        "bare_ms": median(ms for ms, _ in bare),
        "bare_rate": median(rate for _, rate in bare),
        "by_clients": found,
        "mib": mib,
    }


def _served_group(gallery: Gallery) -> ShardGroup:
    from index.generation import read_generation

    generation = read_generation(gallery)
    return open_group(gallery, generation, assign_shards(generation.shards, 1)[0], None)


def main() -> None:
    gallery, queries, seconds = sys.argv[1:]
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_turn(open_gallery(Store(gallery)), Path(queries), float(seconds)))))


if __name__ == "__main__":
    main()
