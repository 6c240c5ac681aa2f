"""The same photographs give the same models: wherever they lie, whenever written, however cut into parts."""

import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import index.build
from index.fit import SAMPLING
from index.generation import read_generation
from index.recipe import Recipe
from ingest.engine import open_engine
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.models import load_model
from tests.pipeline.small import (
    Album,
    build_images,
    cnn_recipe,
    contents,
    images_of,
    ingest,
    job_on,
    rendered,
    small_recipe,
    stored_vectors,
)
from tests.tiny import memory_store

# 264 images: 256 train the codes of ivfadc.
TOWN = "synthetic:scenes=12,views=20,distractors=24,size=64,seed=3"
LEARNED = {"kind": "learned", "dim": 16, "label_pattern": r"/((?:facade|object)-\d+)/"}
RECIPES = {
    "sift": small_recipe("ivfadc"),
    "learned": Recipe.model_validate({**small_recipe("ivfadc").model_dump(), "projection": LEARNED}),
    "cnn": cnn_recipe("ivfadc"),
}


@pytest.fixture(scope="module")
def town() -> Mapping[str, bytes]:
    return rendered(TOWN)


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def whole(town: Mapping[str, bytes], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """The town in parts of two hundred images, built in this process."""
    job = job_on(memory_store())
    _build(job, recipe, _written(tmp_path_factory.mktemp("one"), town, 1_000_000_000), 200)
    return job.gallery


def _written(folder: Path, images: Mapping[str, bytes], time: int) -> Path:
    """A folder `town` with the images as files, written a second after the other from some time on."""
    for at, (key, data) in zip(count(time), images.items(), strict=False):
        path = folder / "town" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (at, at))
    return folder / "town"


def _build(job: Job, recipe: Recipe, folder: Path, most_images: int) -> None:
    source = images_of(str(folder))
    ingest(job, source, recipe, most_images)
    build_images(job, recipe, source)


def _assert_same_models(one: Gallery, other: Gallery) -> None:
    """Every model is byte-identical, and so is every vector; no part is."""
    assert not _below("parts", one).keys() & _below("parts", other).keys()
    assert _below("models", one) == _below("models", other)
    for mine, theirs in zip(stored_vectors(one), stored_vectors(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _below(folder: str, gallery: Gallery) -> dict[str, str]:
    return {path: sha256 for path, sha256 in contents(gallery.store).items() if path.startswith(folder)}


@pytest.mark.parametrize("most_images", [200, 37])
def test_models_do_not_depend_on_times_of_change_nor_on_parts(
    town: Mapping[str, bytes], recipe: Recipe, whole: Gallery, tmp_path: Path, most_images: int
) -> None:
    job = job_on(memory_store())
    _build(job, recipe, _written(tmp_path, town, 1_500_000_000), most_images)
    _assert_same_models(whole, job.gallery)


def test_images_that_come_again_change_no_model(
    town: Mapping[str, bytes], recipe: Recipe, whole: Gallery, tmp_path: Path
) -> None:
    """Files that were touched are listed anew, in parts behind all others."""
    folder, job = _written(tmp_path, town, 1_700_000_000), job_on(memory_store())
    ingest(job, images_of(str(folder)), recipe, 100)
    for key in list(town)[::3]:
        os.utime(folder / key, (1_800_000_000, 1_800_000_000))
    _build(job, recipe, folder, 100)
    one, other = _arrays(whole), _arrays(job.gallery)
    assert one.keys() == other.keys() >= {"encoder", "quantizer"}
    for kind, arrays in one.items():
        assert arrays.keys() == other[kind].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[kind][name], f"{kind} {name}")
    for mine, theirs in zip(stored_vectors(whole), stored_vectors(job.gallery), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _arrays(gallery: Gallery) -> dict[str, Mapping[str, np.ndarray]]:
    """What was fitted, by the kind of model; headers state the catalogue, which is another."""
    fitted = read_generation(gallery).models.fitted
    return {kind: load_model(gallery, digest, kind)[1] for kind, digest in fitted.items()}


@pytest.fixture
def two_workers(ray_cluster: Any) -> Iterator[Any]:
    with open_engine("ray", 2) as engine:
        yield engine


@pytest.mark.ray
def test_models_do_not_depend_on_who_reads_which_part(
    town: Mapping[str, bytes], recipe: Recipe, whole: Gallery, tmp_path: Path, two_workers: Any
) -> None:
    job = job_on(str(tmp_path / "gallery"), two_workers)
    _build(job, recipe, _written(tmp_path, town, 1_600_000_000), 60)
    _assert_same_models(whole, job.gallery)


@pytest.mark.parametrize(("sampling", "refitted"), [(SAMPLING, 0), (SAMPLING + 1, 2)])
def test_what_an_unfinished_build_fitted_is_taken_up_unless_samples_are_drawn_otherwise(
    town: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, sampling: int, refitted: int
) -> None:
    job, recipe = job_on(memory_store()), small_recipe("flat")
    album = Album("town", dict(list(town.items())[:12]))
    ingest(job, album, recipe)
    with monkeypatch.context() as broken:
        broken.setattr(index.build, "encode", _out_of_disk)
        with pytest.raises(OSError, match="no space"):
            build_images(job, recipe, album)
    fitted: list[str] = []
    for kind in ("encoder", "projection"):
        monkeypatch.setattr(index.build, f"fit_gallery_{kind}", _noted(fitted, f"fit_gallery_{kind}"))
    monkeypatch.setattr(index.build, "SAMPLING", sampling)
    build_images(job, recipe, album)
    assert len(fitted) == refitted


def _out_of_disk(*_: Any) -> Any:
    raise OSError("no space")


def _noted(calls: list[str], name: str) -> Any:
    fit = getattr(index.build, name)

    def noting(*arguments: Any) -> Any:
        calls.append(name)
        return fit(*arguments)

    return noting
