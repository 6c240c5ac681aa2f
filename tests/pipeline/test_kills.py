"""Workers and nodes that die while images are ingested through Ray: the same bytes as if none had."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ingest.engine import open_engine
from ingest.sources import Listed, Skipped, Source
from ingest.store import Store
from tests.drivers import driver
from tests.pipeline.small import (
    RECIPES,
    assert_same_gallery,
    build_images,
    contents,
    images_of,
    ingest,
    job_on,
    small_recipe,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EVERY_S = 5.0
RECIPE = small_recipe()


@dataclass(frozen=True)
class Slowly:
    """A source whose reads take their time on any machine, so that there is somebody to kill."""

    source: Source
    takes_s: float

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def url(self) -> str:
        return self.source.url

    def listing(self) -> Iterator[Listed | Skipped]:
        return self.source.listing()

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        time.sleep(self.takes_s)
        return self.source.read(key, max_bytes)

    def uri(self, key: str) -> str:
        return self.source.uri(key)


@pytest.fixture(autouse=True)
def _slowly_by_value() -> None:
    """A worker need not be able to import this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("which", "views", "takes_s", "kills"),
    # On two workers 15 s at least, killed at 0, 5, 10; and 6 s, killed at 0 and 5, and then left in peace: a
    # worker with a network takes seconds to start.
    [("sift", 100, 0.015, range(3, 1000)), ("cnn", 16, 0.04, range(2, 3))],
    ids=["sift", "cnn"],
)
def test_a_worker_killed_every_five_seconds_changes_nothing(
    ray_cluster: Any, tmp_path: Path, which: str, views: int, takes_s: float, kills: range
) -> None:
    """2,000 images by SIFT, 320 by a network too, listed and described."""
    recipe = RECIPES[which]()
    town = images_of(f"town=synthetic:scenes=20,views={views},distractors=0,size=64,seed=5")
    calm = job_on(str(tmp_path / "calm"))
    ingest(calm, town, recipe, most_images=40)
    with _killing(kills[-1]) as killed, open_engine("ray", 2) as engine:
        stormy = job_on(str(tmp_path / "stormy"), engine)
        ingest(stormy, Slowly(town, takes_s), recipe, most_images=40)
    assert len(killed) in kills
    assert_same_gallery(calm.gallery.store, stormy.gallery.store)
    assert len([path for path in contents(stormy.gallery.store) if path.startswith("parts/")]) == views // 2


@contextmanager
def _killing(most: int) -> Iterator[list[int]]:
    """Kills a worker of this process's cluster that is at a task, at once and then every five seconds."""
    killed: list[int] = []
    done = threading.Event()

    def kill_now_and_then() -> None:
        while not done.is_set() and len(killed) < most:
            at_work = [pid for pid in _workers_of(os.getpid()) if pid not in killed]
            if not at_work:
                done.wait(0.02)
                continue
            os.kill(at_work[0], signal.SIGKILL)
            killed.append(at_work[0])
            done.wait(EVERY_S)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        yield killed
    finally:
        done.set()
        killer.join()


def _workers_of(driver: int) -> list[int]:
    """Process ids of the Ray workers below a driver that run a task now (Ray names them so)."""
    parents, workers = {}, []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                name = (process / "cmdline").read_bytes()
                parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(process.name)] = parent
            if name.startswith(b"ray::ReseenWorker.run"):
                workers.append(int(process.name))
    return [pid for pid in workers if driver in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found


NODE_LOSS = """
    import sys
    from ray.cluster_utils import Cluster
    from ingest.catalogue import read_catalogue
    from ingest.engine import open_engine
    from ingest.extract import extract
    from ingest.features import ExtractWorker
    from tests.pipeline.small import build_images, images_of, ingest, job_on, small_recipe

    url, source = sys.argv[1:]
    source, recipe = images_of(source), small_recipe()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()

    class Losing:
        '''An engine that loses a node when the third part is described.'''
        def __init__(self, engine):
            self.engine, self.workers, self.parts = engine, engine.workers, 0
        def map(self, worker, tasks):
            for result in self.engine.map(worker, tasks):
                if isinstance(worker, ExtractWorker):
                    self.parts += 1
                    if self.parts == 3:
                        cluster.remove_node(nodes.pop(), allow_graceful=False)
                yield result

    with open_engine("ray", address=cluster.address) as engine:
        assert engine.workers == 3, engine.workers
        losing = Losing(engine)
        job = job_on(url, losing)
        ingest(job, source, recipe, most_images=10)
        assert losing.parts == 24 and len(nodes) == 1
        build_images(job, recipe, source)
    cluster.shutdown()
"""


def test_one_of_three_nodes_lost_changes_nothing(tmp_path: Path) -> None:
    text = "town=synthetic:scenes=4,views=60,distractors=0,size=64,seed=6"
    calm = job_on(str(tmp_path / "calm"))
    ingest(calm, images_of(text), RECIPE, most_images=10)
    build_images(calm, RECIPE, images_of(text))
    with driver(NODE_LOSS, tmp_path / "stormy", text, folder=Path(__file__).parents[2]) as process:
        _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-4000:]
    assert_same_gallery(calm.gallery.store, Store(str(tmp_path / "stormy")))
