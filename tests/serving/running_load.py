"""A load in a process of its own, so that it shares no event loop with what it measures."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.records import Record, read_records

ROOT = Path(__file__).parents[2]


@dataclass
class RunningLoad:
    """`out`: the records, a JSON line each, at most a quarter of a second late."""

    process: "subprocess.Popen[str]"
    out: Path

    def records(self) -> list[Record]:
        """Those so far, in the order in which they were answered."""
        return read_records(self.out) if self.out.exists() else []

    def finish(self, timeout_s: float = 600.0) -> list[Record]:
        """Waits for the end, and returns all records."""
        said, errors = self.process.communicate(timeout=timeout_s)
        if self.process.returncode:
            raise RuntimeError(f"the load ended with {self.process.returncode}: {errors[-2000:]}\n{said}")
        return self.records()

    def stop(self, timeout_s: float = 60.0) -> list[Record]:
        """Sends no further requests, waits for those under way, and returns all records."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish(timeout_s)


@contextmanager
def running_load(url: str, out: Path, **options: Any) -> Iterator[RunningLoad]:
    """Starts `python -m tests.serving.load` with its options by name; kills what is left of it at the end.

    Args:
        options: `rate=20`, `image=[file]`, `request={"top": 5}`.
    """
    words = ["--url", url, "--out", str(out)]
    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            text = json.dumps(each) if isinstance(each, dict) else str(each)
            words += [f"--{name.replace('_', '-')}", text]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.load", *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield RunningLoad(process, out)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
