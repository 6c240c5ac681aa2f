"""The doctor: each thing that can be wrong with an environment is found, named and answered with advice."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import doctor
from deploy.cli import app
from deploy.doctor import Finding, Surroundings
from ingest.errors import BadInput


@dataclass(frozen=True)
class Machine:
    """A machine with so many GPUs."""

    gpus: int = 0

    def cuda_available(self) -> bool:
        return self.gpus > 0

    def device_count(self) -> int:
        return self.gpus

    def bf16(self) -> bool:
        return True


GOOD = Surroundings(
    python=(3, 12, 1),
    prefix="/venv",
    installed={
        "faiss-cpu": "1.15.1",
        "opencv-python-headless": "5.0",
        "s3fs": "1",
        "gcsfs": "1",
        "adlfs": "1",
    }.get,
    which=lambda name: None,
    devices=Machine(),
    free_bytes=lambda folder: 100 * 2**30,
    environment={},
)


def states(here: Surroundings) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(here=here)}


def test_a_good_environment_has_nothing_wrong() -> None:
    assert {finding.state for finding in states(GOOD).values()} == {"ok"}


BROKEN = {
    "an old Python": (replace(GOOD, python=(3, 10, 9)), "python", "wrong", "3.11"),
    "no faiss": (replace(GOOD, installed={}.get), "faiss", "wrong", r"reseen\[cpu\]"),
    "two faiss": (
        replace(GOOD, installed={"faiss-cpu": "1", "faiss-gpu": "1"}.get),
        "faiss",
        "wrong",
        "uninstall both",
    ),
    "two OpenCVs": (
        replace(GOOD, installed={"opencv-python": "5", "opencv-python-headless": "5"}.get),
        "opencv",
        "wrong",
        "uninstall all",
    ),
    "a GPU that torch cannot use": (
        replace(GOOD, which=lambda name: f"/usr/bin/{name}"),
        "gpu",
        "note",
        "build of torch for CUDA",
    ),
    "a full disk": (replace(GOOD, free_bytes=lambda folder: 2**20), "disk", "wrong", "TMPDIR"),
    "no object stores": (replace(GOOD, installed={"faiss-cpu": "1"}.get), "stores", "note", "s3,gcs,azure"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named_with_advice(case: str) -> None:
    import re

    here, name, state, advice = BROKEN[case]
    finding = states(here)[name]
    assert finding.state == state
    assert re.search(advice, finding.advice)


def test_it_says_what_device_each_part_will_use() -> None:
    found = states(replace(GOOD, devices=Machine(gpus=2)))
    assert found["gpu"].found == "2 that torch can use"
    assert found["devices"].found.startswith("networks on one of 2 GPUs a worker in float16")
    assert "search on the CPU" in found["devices"].found
    assert states(GOOD)["devices"].found.startswith("networks on the CPU in float32")


def test_a_check_that_breaks_is_a_finding_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Finding:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "opencv_package", broken)
    found = states(GOOD)
    assert found["opencv"].state == "wrong"
    assert "libGL" in found["opencv"].found
    assert found["disk"].state == "ok"


def test_a_store_is_tried_and_left_empty(tmp_path: Path) -> None:
    found = doctor.examine(str(tmp_path / "gallery"), here=GOOD)[-1]
    assert (found.name, found.state) == ("gallery", "ok")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_store_that_overwrites_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(store: object) -> None:
        raise BadInput("this store does not honour create-only writes")

    monkeypatch.setattr("ingest.store.probe_create_only", refuse)
    found = doctor.examine(str(tmp_path), here=GOOD)[-1]
    assert (found.state, found.advice) == ("wrong", "this store does not honour create-only writes")


@pytest.mark.parametrize(("here", "code"), [(GOOD, 0), (BROKEN["no faiss"][0], 1)], ids=["good", "broken"])
def test_the_command_says_it_all_and_ends_with_1_if_something_is_wrong(
    here: Surroundings, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "Surroundings", lambda: here)
    arguments = ["doctor", "--gallery", str(tmp_path / "gallery")]
    said = CliRunner().invoke(app, [*arguments, "--json"])
    assert said.exit_code == code
    value = json.loads(said.stdout)
    assert value["ok"] == (code == 0)
    assert [check["name"] for check in value["checks"]][-1] == "gallery"
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == code
    assert ("pip install" in told.stdout) == (code == 1)
