"""A Ray head as an operator starts one, with token authentication, and Ray's own commands against it."""

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.ray_environment import RAY_SERVE_ENVIRONMENT
from tests.drivers import ROOT, end_session
from tests.serving.ray_server import replicas_of, titled

_START_S = 60.0
_STARTED = re.compile(r"ray start --address='([^']+)'")
_PORTS = (
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
)


@dataclass(frozen=True)
class RayHead:
    """A running head. address: for `RAY_ADDRESS`; dashboard: URL of its REST API."""

    session: int
    address: str
    dashboard: str
    environment: dict[str, str]
    token: str

    def applications(self) -> dict[str, Any]:
        """What Serve's REST API says of each application, by name."""
        reply = httpx.get(
            f"{self.dashboard}/api/serve/applications/",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
        )
        found: dict[str, Any] = reply.raise_for_status().json()["applications"]
        return found

    def replicas(self, application: str, deployment: str) -> list[int]:
        """The living processes of a deployment's replicas."""
        return replicas_of(self.session, application, deployment)

    def serve(self) -> list[int]:
        """The living processes of Serve itself: its controller and proxies."""
        return [*titled(self.session, "ray::ServeController"), *titled(self.session, "ray::ProxyActor")]

    def command(self, *words: object) -> str:
        """What a command beside this interpreter (`serve`, `ray`, `reseen`) says; it must end well."""
        name, *rest = map(str, words)
        done = subprocess.run(
            [Path(sys.executable).with_name(name), *rest],
            env=self.environment | {"RAY_DASHBOARD_ADDRESS": self.dashboard, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextmanager
def ray_head(folder: Path, cpus: int = 8) -> Iterator[RayHead]:
    """Starts a head with its dashboard on loopback, in a session of its own, of which nothing is left."""
    # Not below the folder: the path of a Unix socket has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
        token = folder / "token"
        token.touch(mode=0o600)
        secret = secrets.token_hex(32)
        token.write_text(secret)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= RAY_SERVE_ENVIRONMENT
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": own}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        ports = _free_ports()
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0"]
        command += ["--dashboard-host=127.0.0.1", f"--num-cpus={cpus}", f"--temp-dir={own}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        log = folder / "head.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
            yield RayHead(process.pid, _address(process, log), dashboard, environment, secret)
        finally:
            end_session(process.pid)
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:  # all open at once, so that no two are the same
        held = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in _PORTS}
        return {name: each.getsockname()[1] for name, each in held.items()}


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := _STARTED.search(log.read_text("utf-8", "replace")):
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"Ray did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
