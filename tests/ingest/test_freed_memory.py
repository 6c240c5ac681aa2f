"""Freed memory is kept: using large blocks a second time faults in no pages."""

import resource
import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
import numpy as np
from ingest.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    for _ in range(4):
        blocks = [np.ones(16 * 2**20, np.uint8) for _ in range(6)]
        del blocks
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")
def test_what_was_freed_is_used_again_without_page_faults() -> None:
    pages = 16 * 2**20 // resource.getpagesize()
    assert _faults("keep") < pages / 10
    assert _faults("leave") > pages  # what it is against: freed pages go back and are faulted in anew
