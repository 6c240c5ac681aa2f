"""`reseen serve` in a process of its own: started, waited for, ended."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_READY_S = 180.0
_END_S = 40.0
_SAID = re.compile(r"^serving (http://\S+?)/? \(generation", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A running server. log: what it wrote to standard output and error."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def served(gallery: str | Path, folder: Path, *words: object, port: int = 0) -> Iterator[Served]:
    """Serves a gallery from its newest generation; yields when `/readyz` says that it is ready.

    Args:
        folder: for the cache, uploads and the log.
        words: options of `reseen serve`, such as `"--groups", 2, "--keys", file`.
        port: 0: any that is free.
    """
    command = [sys.executable, "-m", "deploy.cli", "serve", "--gallery", str(gallery), "--port", str(port)]
    command += ["--cache", str(folder / "cache"), *map(str, words)]
    with started(command, None, folder / "server.log") as server:
        yield server


@contextmanager
def started(command: list[str], url: str | None, log: Path, **options: Any) -> Iterator[Served]:
    """Any command that will answer at a URL: waits until it is ready, ends it by SIGTERM, or kills it.

    Args:
        url: None: the one that the command says.
        log: gets what the command writes; emptied first.
        options: of `subprocess.Popen`.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, **options
        )
    try:
        yield wait_ready(process, url, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(
    process: "subprocess.Popen[bytes]", url: str | None, log: Path, timeout_s: float = _READY_S
) -> Served:
    """Waits until `/readyz` answers 200; `RuntimeError` with the end of the log if it never does."""
    deadline = time.monotonic() + timeout_s
    said = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        told = _SAID.search(log.read_text("utf-8", "replace")) if url is None else None
        found = told[1] if told else url
        if found is not None:
            status, said = asked(f"{found}/readyz")
            if status == 200:
                return Served(found, process, log)
        time.sleep(0.05)
    tail = log.read_text("utf-8", "replace")[-4000:]
    raise RuntimeError(
        f"the server is not ready (exit code {process.poll()}); it says {said}; its log:\n{tail}"
    )


def asked(url: str) -> tuple[int, str]:
    """Status and body of a GET; status 0 if nobody answers. Never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return response.status, response.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")
    except OSError as error:
        return 0, str(error)
