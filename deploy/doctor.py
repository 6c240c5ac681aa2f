"""What is right and wrong with an environment, each finding with what to do about it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ingest.devices import Probe, ThisMachine, choose_devices, describe
from ingest.errors import ReseenError

State = Literal["ok", "note", "wrong"]

_LEAST_PYTHON = (3, 11)
_LEAST_FREE_BYTES = 2 * 2**30
_LEAST_SHARED_BYTES = 64 * 2**20
_STORES = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `wrong`: Reseen cannot work; `note`: something is missing."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What the checks ask of the machine, so that tests can answer in its place."""

    python: tuple[int, ...] = field(default_factory=lambda: tuple(sys.version_info[:3]))
    prefix: str = field(default_factory=lambda: sys.prefix)
    installed: Callable[[str], str | None] = field(default=lambda name: installed_version(name))
    which: Callable[[str], str | None] = shutil.which
    devices: Probe = field(default_factory=ThisMachine)
    free_bytes: Callable[[Path], int] = field(default=lambda folder: shutil.disk_usage(folder).free)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def examine(gallery: str | None = None, ray: bool = False, here: Surroundings | None = None) -> list[Finding]:
    """Every check, in order; a check that fails in an unforeseen way is itself a finding.

    Args:
        gallery: a store to try by writing to it (and deleting that again).
        ray: whether to start Ray too.
    """
    here = here or Surroundings()
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", lambda: python(here)),
        ("packages", packages),
        ("faiss", lambda: faiss_package(here)),
        ("opencv", lambda: opencv_package(here)),
        ("libraries", libraries),
        ("gpu", lambda: gpu(here)),
        ("devices", lambda: devices(here)),
        ("stores", lambda: stores(here)),
        ("disk", lambda: disk(here)),
        ("shared memory", lambda: shared_memory(here)),
        ("processors", processors),
        ("ray address", lambda: ray_address(here)),
    ]
    if ray:
        checks.append(("ray", ray_starts))
    if gallery is not None:
        checks.append(("gallery", lambda: gallery_store(gallery)))
    return list(_run(checks))


def _run(checks: list[tuple[str, Callable[[], Finding]]]) -> Iterator[Finding]:
    for name, check in checks:
        try:
            yield check()
        except ReseenError as error:
            yield Finding(name, "wrong", "refused", str(error))
        except Exception as error:
            yield Finding(
                name,
                "wrong",
                f"{type(error).__name__}: {error}",
                "install Reseen again: make clean, make test",
            )


def python(here: Surroundings) -> Finding:
    found = f"{'.'.join(map(str, here.python))} in {here.prefix}"
    if here.python[:2] < _LEAST_PYTHON:
        return Finding(
            "python", "wrong", found, f"install Python {'.'.join(map(str, _LEAST_PYTHON))} or newer"
        )
    return Finding("python", "ok", found)


def packages() -> Finding:
    """Whether `import train` finds ours."""
    from ingest.packages import PACKAGES, check_packages

    check_packages()
    return Finding("packages", "ok", f"{', '.join(PACKAGES)} are Reseen's own")


def faiss_package(here: Surroundings) -> Finding:
    found = {name: here.installed(name) for name in ("faiss-cpu", "faiss-gpu")}
    present = [f"{name} {number}" for name, number in found.items() if number]
    if not present:
        return Finding("faiss", "wrong", "not installed", "pip install 'reseen[cpu]' (or [gpu], not both)")
    if len(present) > 1:
        advice = "both are the Python module faiss: pip uninstall both, then install one"
        return Finding("faiss", "wrong", " and ".join(present), advice)
    return Finding("faiss", "ok", present[0])


def opencv_package(here: Surroundings) -> Finding:
    names = (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    )
    present = [f"{name} {here.installed(name)}" for name in names if here.installed(name)]
    if len(present) > 1:
        advice = "they overwrite each other's cv2: pip uninstall all, then install opencv-python-headless"
        return Finding("opencv", "wrong", " and ".join(present), advice)
    import cv2

    if not hasattr(cv2, "SIFT_create"):
        return Finding(
            "opencv", "wrong", f"cv2 {cv2.__version__} has no SIFT", "install opencv-python-headless >= 4.10"
        )
    return Finding("opencv", "ok", present[0] if present else f"cv2 {cv2.__version__}")


def libraries() -> Finding:
    """Whether everything else imports."""
    import fsspec
    import numpy
    import PIL
    import pyarrow
    import ray
    import torch

    names = {"numpy": numpy, "pyarrow": pyarrow, "pillow": PIL, "fsspec": fsspec, "ray": ray, "torch": torch}
    return Finding(
        "libraries", "ok", ", ".join(f"{name} {module.__version__}" for name, module in names.items())
    )


def gpu(here: Surroundings) -> Finding:
    if here.devices.cuda_available():
        return Finding("gpu", "ok", f"{here.devices.device_count()} that torch can use")
    if here.which("nvidia-smi") is not None:
        advice = "to use what nvidia-smi shows, install a build of torch for CUDA that fits the driver"
        return Finding("gpu", "note", "none that torch can use", advice)
    return Finding("gpu", "ok", "none; everything runs on the processors")


def devices(here: Surroundings) -> Finding:
    """What each part will use."""
    return Finding("devices", "ok", describe(choose_devices(probe=here.devices)))


def stores(here: Surroundings) -> Finding:
    have = [extra for extra, package in _STORES.items() if here.installed(package)]
    missing = [extra for extra in _STORES if extra not in have]
    found = ", ".join(["file", *have])
    if not missing:
        return Finding("stores", "ok", found)
    return Finding("stores", "note", found, f"for others: pip install 'reseen[{','.join(missing)}]'")


def disk(here: Surroundings) -> Finding:
    folder = Path(tempfile.gettempdir())
    free = here.free_bytes(folder)
    found = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", "wrong", found, "Ray keeps its session there: free 2 GiB, or set TMPDIR")
    return Finding("disk", "ok", found)


def shared_memory(here: Surroundings) -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system: Ray uses its session folder")
    free = here.free_bytes(folder)
    found = f"{free / 2**20:,.0f} MiB free in {folder}"
    if free < _LEAST_SHARED_BYTES:
        return Finding(
            "shared memory", "note", found, "start the container with --shm-size=1g: Ray falls back to disk"
        )
    return Finding("shared memory", "ok", found)


def processors() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(
        "processors", "ok", f"{count}; Ray starts a worker for each, 0.2 GB before it loads anything"
    )


def ray_address(here: Surroundings) -> Finding:
    address = here.environment.get("RAY_ADDRESS")
    return Finding(
        "ray address", "ok", f"RAY_ADDRESS={address}" if address else "not set: Ray starts on this machine"
    )


def ray_starts() -> Finding:
    from ingest.engine import open_engine

    with ExitStack() as stack:
        engine = stack.enter_context(open_engine("ray", address=os.environ.get("RAY_ADDRESS")))
        return Finding("ray", "ok", f"starts, with {engine.workers} worker(s)")


def gallery_store(url: str) -> Finding:
    """Whether a store honours create-only writes, by the same probe that a new gallery makes."""
    from ingest.store import Store, probe_create_only

    probe_create_only(Store(url))
    return Finding("gallery", "ok", f"{url} can be written, and honours create-only writes")
