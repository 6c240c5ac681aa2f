"""The same photographs give the same models: wherever they lie, whenever written, however cut into parts."""

import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.recipe import Recipe
from ingest.engine import open_engine
from ingest.gallery import Gallery
from ingest.job import Job
from tests.pipeline.small import (
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


@pytest.mark.parametrize("most_images", [200, 1, 37])
def test_models_do_not_depend_on_times_of_change_nor_on_parts(
    town: Mapping[str, bytes], recipe: Recipe, whole: Gallery, tmp_path: Path, most_images: int
) -> None:
    job = job_on(memory_store())
    _build(job, recipe, _written(tmp_path, town, 1_500_000_000), most_images)
    _assert_same_models(whole, job.gallery)


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
