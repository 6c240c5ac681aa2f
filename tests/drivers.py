"""Python scripts as processes with a Ray of their own, of which nothing is left, whatever becomes of a test.

A driver that is killed, or outlives a test that failed, leaves Ray's processes, and a file that names its
cluster to every `ray.init` on the machine. Here that file lies in a folder of the script's own, the script
leads a session of its own, and at the end every process of that session is killed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
_GONE_S = 20


@contextmanager
def driver(script: str, *arguments: object, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Runs a script in a folder, its output piped as text; kills what is left of it at the end."""
    # Not below tmp_path: the path of a Unix socket has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": own}
        environment |= {"PYTHONPATH": str(ROOT)}  # for `tests`, which is not installed
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(script), *map(str, arguments)],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end_session(process.pid)
            process.communicate()


def end_session(session: int) -> None:
    """Kills the processes of a session until none is left: one may have started another just before."""
    deadline = time.monotonic() + _GONE_S
    while found := processes_of(session):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {found} of a test's script cannot be killed")
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it is gone
                state, _, _, its = (process / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(its) == session and state != "Z":
                    found.append(int(process.name))
    return found
