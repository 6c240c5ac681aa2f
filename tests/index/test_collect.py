"""Garbage collection keeps what is newest, pinned or young, and nothing else; leases end, and are renewed."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from index.build import BuildOptions
from index.collect import collect
from index.pins import Pin, Renewing, live_pins, read_pins
from ingest.errors import Unavailable
from ingest.job import Job
from ingest.progress import SilentProgress
from ingest.store import Backend, Store
from tests.tiny import RECIPE, build_tiny, exists, ingest, job_on, vectors

CUTS = (2, 3, 4, 6, 100)  # rows of a shard, in each generation others


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five generations of twelve images, each cut up in its own way."""
    folder = tmp_path_factory.mktemp("made")
    job = job_on(Store(str(folder)))
    for name in "abcdef":
        ingest(job, vectors(name, 2))
    for rows in CUTS:
        build_tiny(job, BuildOptions(rebuild=True), RECIPE.model_copy(update={"shard_rows": rows}))
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path) -> Job:
    return job_on(Store(str(shutil.copytree(made, tmp_path / "gallery"))))


def whole(job: Job) -> list[int]:
    """The generations that can be opened."""
    return [number for number in job.gallery.generations.numbers() if exists(job.gallery, number)]


def age(job: Job, hours: float) -> None:
    """As if everything that is there had been written some hours ago."""
    for path in Path(job.gallery.store.url).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600 * hours,) * 2)


def paths(job: Job) -> list[str]:
    return [info.path for info in job.gallery.store.listing("")]


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_the_newest_are_kept_and_no_others(job: Job, keep: int) -> None:
    collect(job.gallery, keep=keep, grace_s=0)
    assert whole(job) == [1, 2, 3, 4, 5][-keep:]
    assert job.gallery.generations.numbers() == [1, 2, 3, 4, 5], "their records stay"


def test_a_pinned_generation_stays_until_its_pin_is_released(job: Job) -> None:
    pin = Pin(job.gallery, "build", 3600.0)
    pin.keep(generations=[2])
    collect(job.gallery, keep=1, grace_s=0)
    assert whole(job) == [2, 5]
    pin.release()
    collect(job.gallery, keep=1, grace_s=0)
    assert whole(job) == [5]


def test_a_pinned_folder_stays(job: Job) -> None:
    shard = next(path for path in paths(job) if path.endswith("index.faiss"))
    folder = shard.removesuffix("index.faiss")
    Pin(job.gallery, "build", 3600.0, prefixes={folder}).save()
    collect(job.gallery, keep=1, grace_s=0)
    assert [path for path in paths(job) if path.startswith(folder)] == [shard, f"{folder}rows.parquet"]


def test_a_pin_whose_lease_has_ended_holds_nothing_and_goes_after_the_grace_period(job: Job) -> None:
    pin = Pin(job.gallery, "build", -10.0, generations={1})
    pin.save()
    assert (list(live_pins(job.gallery)), list(read_pins(job.gallery))) == ([], [pin.path])
    age(job, 2)
    collect(job.gallery, keep=5, grace_s=3600)
    assert pin.path in paths(job)
    collect(job.gallery, keep=1, grace_s=0)
    assert whole(job) == [5]
    assert pin.path not in paths(job)


def test_what_is_young_is_kept_whatever_names_it(job: Job) -> None:
    job.gallery.store.create("shards/orphan/index.faiss", b"somebody is about to name it")
    report = collect(job.gallery, keep=1, grace_s=3600)
    assert whole(job) == [1, 2, 3, 4, 5]
    assert report.removed.total() == 0 < report.kept_young
    age(job, 2)
    report = collect(job.gallery, keep=1, grace_s=3600)
    assert whole(job) == [5]
    assert report.removed["shards"] > 1
    assert not [path for path in paths(job) if "orphan" in path]


class _SlowToRemoveManifests:
    """Notes which manifests are still there whenever something else is removed."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.left: list[set[str]] = []

    def remove(self, path: str) -> None:
        if path.startswith("manifests/"):
            time.sleep(0.05)
        elif not path.startswith("pins/"):
            self.left.append({info.path for info in self.inner.walk("manifests")})
        self.inner.remove(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_generation_is_gone_before_anything_that_it_names(job: Job) -> None:
    """Whenever a collection is stopped, a generation that still has its lists is whole."""
    store = job.gallery.store
    slow = _SlowToRemoveManifests(store.backend)
    collect(job_on(Store(store.url, backend=slow)).gallery, keep=1, grace_s=0)  # type: ignore[arg-type]
    kept = {info.path for info in store.listing("manifests")}
    assert slow.left and all(left == kept for left in slow.left)


def test_a_dry_run_counts_what_a_run_removes_and_removes_nothing(job: Job) -> None:
    before = paths(job)
    counted = collect(job.gallery, keep=2, grace_s=0, dry_run=True)
    assert paths(job) == before
    removed = collect(job.gallery, keep=2, grace_s=0)
    assert (counted.removed, counted.removed_bytes) == (removed.removed, removed.removed_bytes)
    assert len(before) - len(paths(job)) == removed.removed.total() > 10


def test_a_collection_whose_lease_ran_out_removes_nothing_more(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds believe by then that it is over, and adopt what it may be about to remove."""
    before = paths(job)
    monkeypatch.setattr("index.collect.COLLECT_LEASE_S", 3600.0)  # half of it was over when it began
    with pytest.raises(Unavailable, match=r"ran out.*run it again"):
        collect(job.gallery, keep=1, grace_s=0)
    assert paths(job) == before


def test_progress_renews_the_lease_of_a_build(job: Job) -> None:
    pin = Pin(job.gallery, "build", 3600.0)
    pin.save()
    for soon in (3590, 10):  # seconds that are left
        pin.expires = time.time() + soon
        with Renewing(SilentProgress(), pin).stage("describe", 1) as stage:
            stage.advance(1)
        renewed = pin.expires > time.time() + 3595
        assert renewed == (soon == 10)
    assert read_pins(job.gallery)[pin.path]["expires"] == int(pin.expires)
