"""Workers that die, nodes that leave, runs that are cut short: each result once, or one clear error."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ingest.engine import open_engine
from ingest.errors import BadInput, OverBudget, Unavailable
from tests.drivers import driver, processes_of

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _workers_by_value(request: pytest.FixtureRequest) -> None:
    """This file cannot be imported in a worker, so its classes travel whole."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Slow:
    """Takes a while over each task, and leaves its process id in a file named after the task."""

    folder: Path
    takes_s: float
    deadly: int | None = None  # the task that kills its worker
    deadly_start: bool = False
    slow_first: bool = False  # takes long over each task the first time it is run

    def start(self) -> Callable[[int], int]:
        if self.deadly_start:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.run

    def run(self, task: int) -> int:
        first = not (self.folder / str(task)).exists()
        with (self.folder / str(task)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if task == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 if first and self.slow_first else self.takes_s)
        return task


def pids(folder: Path) -> list[int]:
    """The process ids that ran tasks, in no order; a line may be half written."""
    lines = [line for file in folder.iterdir() for line in file.read_text().splitlines(keepends=True)]
    return [int(line) for line in lines if line.endswith("\n")]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], Any], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def test_a_task_survives_its_worker(ray_cluster: Any, tmp_path: Path) -> None:
    """The worker is killed in the middle of a task that would not end by itself."""

    def kill_first() -> None:
        wait_for(lambda: pids(tmp_path))
        os.kill(pids(tmp_path)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with open_engine("ray", 1) as engine:
        results = list(engine.map(Slow(tmp_path, 0.0, slow_first=True), [7]))
    killer.join()
    assert results == [7]
    assert len(set(pids(tmp_path))) == 2


def test_every_task_survives_repeated_kills(ray_cluster: Any, tmp_path: Path) -> None:
    killed: set[int] = set()
    done = threading.Event()

    def kill_now_and_then() -> None:
        while not done.wait(1.0):
            for pid in pids(tmp_path)[::-1]:
                if pid not in killed and alive(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                    break

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        with open_engine("ray", 2) as engine:
            results = Counter(engine.map(Slow(tmp_path, 0.2), range(40)))
    finally:
        done.set()
        killer.join()
    assert results == Counter(range(40))
    assert len(killed) >= 3


def test_a_task_that_kills_its_workers_is_named(ray_cluster: Any, tmp_path: Path) -> None:
    """The other tasks are not held up, and not blamed."""
    results = []
    with (
        open_engine("ray", 2, max_deaths=3) as engine,
        pytest.raises(OverBudget, match=r"^5 was tried 3 times .* memory"),
    ):
        for result in engine.map(Slow(tmp_path, 0.01, deadly=5), range(30)):
            results.append(result)
    assert (tmp_path / "5").read_text().count("\n") == 3
    assert set(range(5)) <= set(results)
    assert 5 not in results
    assert len(results) == len(set(results))


def test_workers_that_cannot_start_end_the_run(ray_cluster: Any, tmp_path: Path) -> None:
    with (
        open_engine("ray", 2, max_deaths=3) as engine,
        pytest.raises(Unavailable, match="no worker could start: 3 in a row"),
    ):
        list(engine.map(Slow(tmp_path, 0.0, deadly_start=True), range(30)))


def test_an_early_close_frees_the_workers(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    with open_engine("ray", 2) as engine:
        with closing(engine.map(Slow(tmp_path, 0.0), iter(int, 1))) as results:  # type: ignore[type-var]
            next(results)
        wait_for(lambda: not any(alive(pid) for pid in pids(tmp_path)))
        wait_for(lambda: ray.available_resources().get("CPU") == 2)
        assert sorted(engine.map(Slow(tmp_path, 0.0), range(4))) == list(range(4))


def test_leaving_the_engine_frees_workers_of_a_run_left_open(ray_cluster: Any, tmp_path: Path) -> None:
    with open_engine("ray", 1) as engine:
        results = engine.map(Slow(tmp_path, 0.0), range(10))
        next(results)
    wait_for(lambda: not any(alive(pid) for pid in pids(tmp_path)))
    del results


def test_no_room_is_said(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    class Occupant:
        def here(self) -> None: ...

    occupant = ray.remote(Occupant).options(num_cpus=2).remote()
    ray.get(occupant.here.remote())
    try:
        with (
            open_engine("ray", 2, patience_s=1.0) as engine,
            pytest.raises(Unavailable, match="each needs 1 CPU, and the cluster has 0 of 2 CPU free"),
        ):
            list(engine.map(Slow(tmp_path, 0.0), range(3)))
    finally:
        ray.kill(occupant)
        wait_for(lambda: ray.available_resources().get("CPU") == 2)


# -- drivers in processes of their own ------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


INTERRUPTED = """
    import os, subprocess, sys, time
    from pathlib import Path
    from ingest.engine import open_engine

    class Worker:
        def __init__(self, folder):
            self.folder = folder
        def start(self):
            child = subprocess.Popen(["sleep", "600"])
            def run(task):
                (self.folder / str(task)).write_text(f"{os.getpid()}\\n{child.pid}\\n")
                time.sleep(600)
            return run

    with open_engine("ray", 2) as engine:
        list(engine.map(Worker(Path(sys.argv[1])), range(9)))
"""


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, work: Path) -> None:
    with driver(INTERRUPTED, work, folder=tmp_path) as process:
        wait_for(lambda: len(pids(work)) == 4, 60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors.splitlines()[-1]
        wait_for(lambda: not any(alive(pid) for pid in pids(work)))


HANGING = """
    import sys, time
    from pathlib import Path
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    (Path(sys.argv[1]) / "writing").write_text(cluster.address)
    (Path(sys.argv[1]) / "writing").rename(Path(sys.argv[1]) / "ready")
    time.sleep(600)
"""


def test_a_driver_of_a_test_leaves_nothing_behind(tmp_path: Path, work: Path) -> None:
    """Neither processes nor the file by which every `ray.init` on this machine would join its cluster."""
    told = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    with driver(HANGING, work, folder=tmp_path) as process:
        wait_for((work / "ready").exists, 60)
        assert len(processes_of(process.pid)) > 3
        assert not told.exists() or told.read_text() != (work / "ready").read_text()
    assert processes_of(process.pid) == []


NODE_LOSS = """
    import os, sys, time
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from ingest.engine import open_engine

    class Worker:
        def __init__(self, folder):
            self.folder = folder
        def start(self):
            import ray
            node = ray.get_runtime_context().get_node_id()
            def run(task):
                (self.folder / f"{task}-{node}").write_text(f"{os.getpid()}\\n")
                time.sleep(0.3)
                return task, node, b"large results lie on the node that made them" * 10_000
            return run

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    before, after = set(), set()
    results = []
    with open_engine("ray", address=cluster.address) as engine:
        assert engine.workers == 3, engine.workers
        for task, node, data in engine.map(Worker(Path(sys.argv[1])), range(24)):
            results.append(task)
            (before if nodes else after).add(node)
            if nodes and len(before) == 3:
                lost = nodes.pop().node_id
                gone = [node for node in cluster.worker_nodes if node.node_id == lost]
                cluster.remove_node(gone[0], allow_graceful=False)
                nodes = []
    print(sorted(results) == list(range(24)), len(before), len(after - {lost}))
    cluster.shutdown()
"""


def test_a_run_survives_the_loss_of_a_node(tmp_path: Path, work: Path) -> None:
    with driver(NODE_LOSS, work, folder=tmp_path) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.split() == ["True", "3", "2"]  # and nothing of Ray's own


STRAY = """
    import sys
    sys.path.insert(0, "")
    from ray import cloudpickle
    actor = cloudpickle.loads(sys.stdin.buffer.read())()
    print(*actor.start(b"", 1))
"""


def test_a_worker_that_finds_another_ingest_says_so(tmp_path: Path) -> None:
    """Ray puts the driver's folder in front of its workers' path, though the driver itself is clean."""
    from ray import cloudpickle

    from ingest.ray_run import actor_class

    (tmp_path / "ingest.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(STRAY)],
        input=cloudpickle.dumps(actor_class()),
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    kind, message = done.stdout.decode().split(maxsplit=1)
    assert kind == "foreign"
    assert f"rename {tmp_path / 'ingest.py'}" in message


def test_what_such_a_worker_says_is_the_callers_mistake(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        def place(self) -> None: ...

        def start(self, worker: bytes, threads: int) -> tuple[str, str]:
            return "foreign", "rename it"

    monkeypatch.setattr("ingest.ray_run.actor_class", lambda: Elsewhere)
    with open_engine("ray", 1) as engine, pytest.raises(BadInput, match="rename it"):
        list(engine.map(Slow(tmp_path, 0.0), range(3)))
