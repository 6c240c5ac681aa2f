"""CPU time and memory of processes, read from /proc (Linux)."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def children(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from children(int(child))


def cpu_seconds() -> float:
    """CPU time so far of this process and of its living children."""
    total = time.process_time()
    for child in children(os.getpid()):
        with suppress(OSError):
            total += (
                sum(
                    int((task / "schedstat").read_text().split()[0])
                    for task in Path(f"/proc/{child}/task").iterdir()
                )
                / 1e9
            )
    return total


def resident_mib(pid: int) -> float:
    """Resident memory of one process, shared pages included; 0 if it is gone."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def _role(pid: int, driver: int) -> str | None:
    """What a process is to a run: the driver, a worker (its children are counted with it), or Ray's own."""
    if pid == driver:
        return "driver"
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return "worker" if command.startswith(b"ray::") else "Ray's own"
    return None


@dataclass(frozen=True)
class Watched:
    """What a command printed as JSON on its last line, its seconds, and the most memory by role, MiB."""

    result: Any
    seconds: float
    peak_mib: dict[str, float]


def watched(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Watched:
    """Runs `python -m module arguments` and looks at the memory of it and its children every 50 ms.

    A worker's memory is its own and its children's; a role's is that of its largest process.
    """
    command = [sys.executable, "-m", module, *arguments]
    begun = time.monotonic()
    peaks: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, env={**os.environ, **(environment or {})}
        )
        while process.poll() is None:
            for role, mib in _memory(process.pid):
                peaks[role] = max(peaks[role], mib)
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        output.seek(0)
        said = output.read().decode().strip()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said[-2000:]}")
    return Watched(json.loads(said.splitlines()[-1]), seconds, dict(peaks))


def _memory(driver: int) -> list[tuple[str, float]]:
    found = [("driver", resident_mib(driver))]
    for pid in set(children(driver)):
        role = _role(pid, driver)
        if role == "worker":
            found.append((role, resident_mib(pid) + sum(map(resident_mib, set(children(pid))))))
        elif role is not None and not _below_a_worker(pid, driver):
            found.append((role, resident_mib(pid)))
    return found


def _below_a_worker(pid: int, driver: int) -> bool:
    while pid not in (driver, 0, 1):
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if _role(pid, driver) == "worker":
            return True
    return False
