"""Thread counts of the numerical libraries: workers x threads = processors.

Left alone, each of OpenCV, torch, faiss and BLAS in each worker starts a thread for every processor, and
OpenMP's threads spin while they wait. Some fits (PCA, OPQ) give other bytes at other thread counts: those
run inside `fixed_threads`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

_VARIABLES = (
    "OMP_NUM_THREADS",  # torch, faiss
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads, and does not spin while it waits.

    Libraries read it when they load, so it must be set before they are imported.
    """
    return {**dict.fromkeys(_VARIABLES, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}


def set_threads(threads: int) -> None:
    """Sets the thread count of this process: of libraries yet to be loaded, and of those that are.

    Call it before the heavy imports (the wait policy counts only then) and again after them.
    """
    os.environ.update(thread_environment(threads))
    _limit_loaded(threads)


def _limit_loaded(threads: int) -> None:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    threadpool_limits(limits=threads)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(threads)


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """A block that runs at a fixed thread count, whatever the machine; the old counts return afterwards.

    Holds for the libraries that are imported when the block begins.
    """
    from threadpoolctl import threadpool_limits

    before = {name: count for name, count in _counts().items() if name in sys.modules}
    with threadpool_limits(limits=threads):
        _limit_loaded(threads)
        try:
            yield
        finally:
            for name, count in before.items():
                _set_count(name, count)


class _OneBlasThread:
    """How many blocks of `one_blas_thread` are open: the first sets the limit, the last takes it back."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._limits = Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if self._blocks == 0:
                self._limits.enter_context(threadpool_limits(1, "blas"))
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0:
                    self._limits.close()


# A block in which BLAS makes every product in one thread, also where several threads are in such blocks. The
# last bits of a product may depend on the number of threads; and small ones wait longer for a second thread
# than they take (the matching of 300 key points on a busy machine: 5 ms with two, 0.1 ms with one).
one_blas_thread = _OneBlasThread()


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """A block in which torch computes with so many threads on the CPU; None leaves it as it is. Cheap."""
    import torch

    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _counts() -> dict[str, int]:
    """The thread counts of those libraries that keep one of their own and are imported."""
    counts = {}
    if cv2 := sys.modules.get("cv2"):
        counts["cv2"] = int(cv2.getNumThreads())
    if torch := sys.modules.get("torch"):
        counts["torch"] = int(torch.get_num_threads())
    if faiss := sys.modules.get("faiss"):
        counts["faiss"] = int(faiss.omp_get_max_threads())
    return counts


def _set_count(name: str, count: int) -> None:
    library = sys.modules[name]
    setter = {"cv2": "setNumThreads", "torch": "set_num_threads", "faiss": "omp_set_num_threads"}[name]
    getattr(library, setter)(count)
