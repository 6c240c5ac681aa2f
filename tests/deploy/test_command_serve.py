"""`reseen serve` in one process: what it says, whom it refuses, and how it ends."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.serve_job import check_door
from ingest.store import Store
from tests.drivers import ROOT, end_session
from tests.tiny import build_tiny, ingest, job_on, vectors


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty vectors of four dimensions."""
    folder = tmp_path_factory.mktemp("served") / "gallery"
    job = job_on(Store(str(folder)))
    ingest(job, vectors("source", 30))
    build_tiny(job)
    return folder


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A server takes over the log of its process, which here is the tests'."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def refused(code: int, told: str, *arguments: object) -> None:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert re.search(told, result.stderr), result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("reseen: ")]) == 1


@contextmanager
def serving(gallery: Path, folder: Path, *options: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server as a process of its own, and its address."""
    command = [sys.executable, "-P", "-m", "deploy.cli", "serve", "--gallery", gallery, "--port", 0]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*map(str, command), "--cache", str(folder / "cache"), *map(str, options)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"serving (http://\S+)/ \(generation 1\)", line)
        assert found, line + (folder / "log").read_text()
        yield process, found[1]
    finally:
        end_session(process.pid)
        process.communicate()


def search(url: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", json={"vectors": [[0.5, 0.5, 0.5, 0.5]]}, timeout=20, **options)


def test_it_says_its_address_answers_and_ends_well_on_sigterm(gallery: Path, tmp_path: Path) -> None:
    with serving(gallery, tmp_path, "--groups", 2) as (process, url):
        assert httpx.get(f"{url}/readyz").json()["ready"] is True
        answer = search(url).json()
        assert (answer["generation"], answer["partial"], len(answer["results"])) == (1, False, 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            search(url)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines and all(json.loads(line)["level"] != "error" for line in lines)


def test_with_keys_only_those_who_have_one_are_answered(gallery: Path, tmp_path: Path) -> None:
    from serve.http.key_file import add_key

    _, text = add_key(tmp_path / "keys.json", "test")
    with serving(gallery, tmp_path, "--keys", tmp_path / "keys.json") as (process, url):
        assert search(url).status_code == 401
        assert search(url, headers={"Authorization": f"Bearer {text}"}).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert text not in (tmp_path / "log").read_text()


def test_whoever_lets_others_in_needs_keys(gallery: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        refused(2, r"--host .* lets other machines in, and --keys", "--gallery", gallery, "--host", host)
        check_door(host, Path("keys.json"))


def test_mistakes_are_told_before_anything_is_loaded(gallery: Path, tmp_path: Path) -> None:
    refused(2, "serve needs --gallery")
    refused(2, "there is no gallery", "--gallery", tmp_path / "none", "--port", 0)
    refused(2, "--roll is for servers on Ray", "--gallery", gallery, "--roll")
    refused(2, "there is no .*absent", "--gallery", gallery, "--port", 0, "--keys", tmp_path / "absent")
    refused(2, "there is no file", "--check-config", tmp_path / "absent.yaml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(2, f"cannot listen on 127.0.0.1 port {port}", "--gallery", gallery, "--port", port)


def test_the_shipped_config_is_checked_by_the_command() -> None:
    result = CliRunner().invoke(app, ["serve", "--check-config", str(ROOT / "deploy" / "serve_config.yaml")])
    assert result.exit_code == 0, result.output
    assert "3 applications" in result.stdout
