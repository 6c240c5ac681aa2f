import os
import subprocess
import sys

import cv2
import faiss
import numpy  # noqa: F401  (its BLAS is what is counted)
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ingest.threads import fixed_threads, one_blas_thread, set_threads, thread_environment

COUNTS = """
import sys
from ingest.threads import set_threads
if sys.argv[1] == "before":
    set_threads(1)
import cv2, faiss, numpy
if sys.argv[1] == "after":
    set_threads(1)
from threadpoolctl import threadpool_info
print(cv2.getNumThreads(), faiss.omp_get_max_threads(), *{pool["num_threads"] for pool in threadpool_info()})
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_counts_hold_for_libraries_loaded_before_and_after(when: str) -> None:
    """In a process of its own, because what a library reads while it loads cannot be read again."""
    environment = {**os.environ, **thread_environment(2)}
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, when], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1"]


def test_waiting_threads_do_not_spin() -> None:
    assert thread_environment(3)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


def test_set_threads_writes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the child processes of a worker."""
    before = (cv2.getNumThreads(), faiss.omp_get_max_threads())
    for name, value in thread_environment(2).items():
        monkeypatch.setenv(name, value)  # so that it is put back
    with fixed_threads(1):
        set_threads(1)
        assert {name: os.environ[name] for name in thread_environment(1)} == thread_environment(1)
    assert (cv2.getNumThreads(), faiss.omp_get_max_threads()) == before


def test_fixed_threads_holds_inside_and_returns_afterwards() -> None:
    before = (cv2.getNumThreads(), faiss.omp_get_max_threads())
    with pytest.raises(KeyError), fixed_threads(3):
        assert (cv2.getNumThreads(), faiss.omp_get_max_threads()) == (3, 3)
        raise KeyError
    assert (cv2.getNumThreads(), faiss.omp_get_max_threads()) == before


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_one_thread_while_any_block_is_open_and_as_many_as_before_afterwards() -> None:
    """Blocks of two threads that overlap, the first of which ends first."""
    with threadpool_limits(3, "blas"):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert _blas_threads() == {1}
        first.__exit__(None, None, None)
        assert _blas_threads() == {1}, "the second is still open"
        second.__exit__(None, None, None)
        assert _blas_threads() == {3}
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert _blas_threads() == {3}
