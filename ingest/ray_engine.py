"""The Ray engine: Ray is started or joined, the cluster is cut up into workers, and runs are handed out."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ingest.engine import Result, Task, Worker
from ingest.errors import BadInput, Unavailable
from ingest.packages import check_packages
from ingest.ray_run import Plan, RayRun


@contextmanager
def open_ray_engine(
    workers: int | None, gpu: bool | None, address: str | None, max_deaths: int, patience_s: float
) -> Iterator["RayEngine"]:
    """See `ingest.engine.open_engine`."""
    import ray

    check_packages()
    started_here = not ray.is_initialized()
    if started_here:
        _init(address)
    try:
        engine = RayEngine(*_plans(workers, gpu), max_deaths, patience_s)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        if started_here:
            ray.shutdown()


def _init(address: str | None) -> None:
    import ray

    where = address or "local"
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray does not start here"
        raise Unavailable(
            f"{what} ({error}); see /tmp/ray/session_latest/logs, or use the inline engine"
        ) from error
    # Ray prints each death at length on standard output, whatever `log_to_driver` says, and has this one
    # switch against it; the engine tells of deaths itself.
    ray._private.worker._worker_logs_enabled = False


def _plans(workers: int | None, gpu: bool | None) -> tuple[Plan, Plan]:
    """The plan of workers that use processors alone, and of those that want a GPU."""
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
    if gpu and gpus == 0:
        raise BadInput("the cluster has no GPU: leave out the request for GPUs, or add a node that has one")
    if gpu and (workers or 0) > gpus:
        raise BadInput(f"{workers} workers cannot have a GPU each: the cluster has {gpus}; ask for fewer")
    alone = plan(workers, cpus, None)
    if gpu is False or gpus == 0:
        return alone, alone
    return alone, plan(min(workers or gpus, gpus), cpus, gpus)


def plan(workers: int | None, cpus: float, gpus: int | None) -> Plan:
    """Workers x threads = processors; more workers than processors (or GPUs) is the caller's wish.

    Args:
        workers: as asked for, or None for one a processor, or one a GPU.
        cpus: processors of the cluster.
        gpus: GPUs of the cluster, or None if the workers use none.
    """
    cores = max(1, int(cpus))
    count = workers or gpus or cores
    threads = max(1, cores // count)
    # Ray counts processors in ten-thousandths below one, and wholly above
    share = float(threads) if count <= cores else int(10_000 * cores / count) / 10_000
    return Plan(count, threads, share, 0 if gpus is None else 1)


class RayEngine:
    """See `ingest.engine.Engine`."""

    def __init__(self, plan: Plan, gpu_plan: Plan, max_deaths: int, patience_s: float) -> None:
        self.workers = plan.workers
        self._plan, self._gpu_plan = plan, gpu_plan
        self._max_deaths = max_deaths
        self._patience_s = patience_s
        self._runs: list[RayRun] = []

    def map(self, worker: Worker[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        plan = self._gpu_plan if getattr(worker, "wants_gpu", False) else self._plan
        run = RayRun(plan, self._max_deaths, self._patience_s, worker)
        self._runs.append(run)
        try:
            yield from run.results(iter(tasks))
            run.stop_workers()
        finally:
            run.close()
            self._runs.remove(run)

    def close(self) -> None:
        """Kills the workers of runs that were left before their end."""
        for run in self._runs:
            run.close()
