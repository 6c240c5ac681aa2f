"""Equal work gives equal bytes, whoever does it and wherever; equal galleries give equal answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index.recipe import Recipe
from ingest.compute import Compute
from ingest.engine import open_engine
from ingest.job import Job
from ingest.store import Store
from tests.pipeline.small import (
    RECIPES,
    Ranked,
    answers,
    assert_same_answers,
    assert_same_gallery,
    build_images,
    contents,
    images_of,
    ingest,
    job_on,
    stored_vectors,
)

# 264 images: 256 train the codes of ivfadc. Many views of few scenes, because a scene costs most.
TOWN = "town=synthetic:scenes=12,views=20,distractors=24,size=64,seed=3"
SUBURB = "suburb=synthetic:scenes=4,views=15,distractors=0,size=64,seed=4"


def _run(job: Job, recipe: Recipe) -> None:
    town = images_of(TOWN)
    ingest(job, town, recipe)
    build_images(job, recipe, town)


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]("ivfadc", shard_rows=100)


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one process makes of the town."""
    job = job_on(str(tmp_path_factory.mktemp("equal") / "gallery"))
    _run(job, recipe)
    return job.gallery.store


def test_a_second_run_gives_the_same_bytes(undisturbed: Store, recipe: Recipe, tmp_path: Path) -> None:
    """Whatever number of threads torch has elsewhere, and however many images it is given at once."""
    job = job_on(str(tmp_path / "gallery"))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _run(replace(job, compute=Compute(window=5, decoders=2)), recipe)
    finally:
        torch.set_num_threads(before)
    assert_same_gallery(undisturbed, job.gallery.store)
    assert len([path for path in contents(undisturbed) if path.startswith("shards/")]) == 2 * 3


def test_a_run_on_a_finished_gallery_adds_nothing(undisturbed: Store, recipe: Recipe) -> None:
    before = contents(undisturbed)
    _run(job_on(undisturbed), recipe)
    assert contents(undisturbed) == before


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_gives_the_same_bytes(
    undisturbed: Store, recipe: Recipe, tmp_path: Path, ray_cluster: Any, workers: int
) -> None:
    with open_engine("ray", workers) as engine:
        job = job_on(str(tmp_path / "gallery"), engine)
        _run(job, recipe)
    assert_same_gallery(undisturbed, job.gallery.store)


@pytest.mark.s3
def test_s3_gives_the_same_bytes(undisturbed: Store, recipe: Recipe, s3: Any) -> None:
    job = job_on(f"s3://{s3.bucket()}/gallery")
    _run(job, recipe)
    assert_same_gallery(undisturbed, job.gallery.store)


@pytest.mark.parametrize(("kind", "which"), [("flat", "sift"), ("ivfadc", "sift"), ("flat", "cnn")])
def test_shards_and_steps_do_not_change_answers(kind: str, which: str, tmp_path: Path) -> None:
    """One step or two, one shard or several: the models are carried, so the answers must be too."""
    town, suburb = images_of(TOWN), images_of(SUBURB)
    job, recipe = job_on(str(tmp_path / "gallery")), RECIPES[which](kind)
    ingest(job, town, recipe)
    build_images(job, recipe, town, suburb)
    ingest(job, suburb, recipe)
    in_steps = build_images(job, recipe, town, suburb)
    rebuilt = build_images(job, recipe, town, suburb, rebuild=True)
    cut_up = build_images(job, RECIPES[which](kind, shard_rows=90), town, suburb, rebuild=True)
    assert [len(generation.shards) for generation in (in_steps, rebuilt, cut_up)] == [2, 1, 4]
    assert in_steps.models == rebuilt.models == cut_up.models
    ids, queries = stored_vectors(job.gallery)
    assert len(ids) == cut_up.counts["live"] == 324
    first, second, third = (answers(job.gallery, queries, 10, number) for number in (2, 3, 4))
    assert_same_answers(first, second)
    assert_same_answers(second, third)
    if kind == "flat":
        _assert_exact(third, ids, queries)


def _assert_exact(found: Ranked, ids: np.ndarray, queries: np.ndarray) -> None:
    """Ten lines of numpy say the same."""
    scores = np.clip(queries @ queries.T, -1, 1)
    order = np.array([np.lexsort((ids, -row))[: found.ids.shape[1]] for row in scores])
    assert_same_answers(found, Ranked(np.take_along_axis(scores, order, axis=1), ids[order]))


def test_the_rule_of_equal_answers_notices() -> None:
    one = Ranked(np.array([[0.9, 0.5, 0.3]], np.float32), np.array([[1, 2, 3]]))
    assert_same_answers(one, Ranked(one.scores, np.array([[1, 2, 4]])))  # a tie at the cut
    for other in (
        Ranked(one.scores + np.float32(1e-5), one.ids),
        Ranked(one.scores, np.array([[1, 4, 3]])),
        Ranked(one.scores, np.array([[2, 1, 3]])),
        Ranked(one.scores, np.array([[1, 2, 2]])),
    ):
        with pytest.raises(AssertionError):
            assert_same_answers(one, other)
