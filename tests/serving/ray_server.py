"""`reseen serve --ray` as a process with a Ray of its own, of which nothing is left at the end."""

import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.drivers import end_session, processes_of
from tests.serving.app import ROOT, Served, started


@dataclass(frozen=True)
class RayServed:
    """A running application. slots: letters of the replicas; command: that started it."""

    served: Served
    folder: Path
    groups: int
    slots: tuple[str, ...]
    command: tuple[str, ...]

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def address(self) -> str:
        """Of its Ray, as the command printed it."""
        found = re.search(r"Ray is at (\S+):? set", self.served.log.read_text("utf-8", "replace"))
        assert found is not None, "the server did not say where its Ray is"
        return found[1].rstrip(":")

    def replicas(self, application: str, deployment: str) -> list[int]:
        """The living processes of a deployment's replicas."""
        return replicas_of(self.served.pid, application, deployment)

    def group(self, slot: str, group: int) -> list[int]:
        """The process of a group's replica in a slot."""
        return self.replicas(f"reseen-{slot}", f"group-{group}")


def replicas_of(session: int, application: str, deployment: str) -> list[int]:
    """The living processes of a deployment's replicas, in a session that started Ray."""
    return titled(session, f"ServeReplica:{application}:{deployment}")


def titled(session: int, name: str) -> list[int]:
    """The living processes of a session with this in their title."""
    return [pid for pid in processes_of(session) if name in _title(pid)]


def _title(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:  # it is gone
        return ""
    return text.partition("\0")[0]


@contextmanager
def ray_served(
    gallery: str | Path, folder: Path, groups: int = 2, replicas: int = 2, *options: str
) -> Iterator[RayServed]:
    """Serves a gallery on a Ray that is started for it; yields when `/readyz` says that it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deploy.cli", "serve", "--ray", "--gallery", str(gallery)]
    command += ["--port", str(port), "--groups", str(groups), "--replicas", str(replicas)]
    command += ["--cache", str(folder / "cache"), "--uploads", str(folder / "uploads"), *options]
    url = f"http://127.0.0.1:{port}"
    slots = tuple("abcdefgh"[:replicas])
    # Not below the folder: the path of a Unix socket has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
        variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": own}
        session = 0
        try:
            with (
                patch.dict("os.environ", {**variables, "PYTHONPATH": str(ROOT)}),
                started(command, url, folder / "server.log", start_new_session=True) as server,
            ):
                session = server.pid
                yield RayServed(server, folder, groups, slots, (*command, "--roll"))
        finally:
            if session:
                end_session(session)


def awaited(holds: Callable[[], bool], seconds: float, every_s: float = 0.1) -> float | None:
    """Seconds until something holds; None if it does not in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if holds():
            return time.monotonic() - begun
        time.sleep(every_s)
    return None
