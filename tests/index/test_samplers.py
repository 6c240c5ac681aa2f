"""What fits read goes by image ids: not by parts, their order, or the times of files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.generation import Generation
from index.recipe import Recipe
from index.samplers import Drawn, in_order
from ingest.gallery import Gallery
from ingest.models import load_model
from ingest.parts import PartSizes, ingest_source
from tests.pipeline.small import build_images, images_of, job_on, rendered, small_recipe
from tests.tiny import memory_store

SCENES = "synthetic:scenes=6,views=3,distractors=6,size=96,seed=5"
LEARNED = {"kind": "learned", "label_pattern": r"/(\w+-\d+)-", "dim": 8}


def recipe(**changes: Any) -> Recipe:
    """A quota of descriptors that most images exceed."""
    stated = small_recipe("ivfadc").model_dump(mode="json") | changes
    stated["encoder"]["codebook"]["sample_descriptors"] = 240
    return Recipe.model_validate(stated)


def photos(folder: Path, images: dict[str, bytes], times: Sequence[int]) -> Path:
    folder.mkdir(parents=True)
    for (name, data), time in zip(images.items(), times, strict=True):
        path = folder / name.replace("/", "-")
        path.write_bytes(data)
        os.utime(path, (time, time))
    return folder


def built(folder: Path, chosen: Recipe, most_images: int) -> tuple[Gallery, Generation]:
    job, source = job_on(memory_store()), images_of(str(folder))
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images))
    return job.gallery, build_images(job, chosen, source)


def models(gallery: Gallery, generation: Generation) -> dict[str, dict[str, np.ndarray]]:
    return {
        kind: dict(load_model(gallery, digest, kind)[1]) for kind, digest in generation.models.fitted.items()
    }


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return rendered(SCENES)


@pytest.mark.parametrize("projection", ["pca", "learned"])
def test_parts_and_times_of_files_do_not_change_models(
    images: dict[str, bytes], tmp_path: Path, projection: str
) -> None:
    chosen = recipe() if projection == "pca" else recipe(projection=LEARNED)
    rng = np.random.default_rng(0)
    found = []
    for at, most_images in enumerate((50, 7)):
        times = rng.integers(10**9, 2 * 10**9, len(images)).tolist()
        found.append(built(photos(tmp_path / str(at) / "photos", images, times), chosen, most_images))
    (_, one), (_, other) = found
    assert set(one.models.fitted) == {"encoder", "projection", "quantizer"}
    assert one.models.fitted == other.models.fitted
    assert len(one.counts) and one.counts == other.counts


def test_images_that_were_touched_come_back_in_the_same_place(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos", images, [10**9] * len(images))
    job, source = job_on(memory_store()), images_of(str(folder))
    ingest_source(job.gallery, source, job.progress, PartSizes(5))
    before = models(job.gallery, build_images(job, recipe(), source))
    for path in sorted(folder.iterdir())[:8]:
        os.utime(path, (1.5 * 10**9, 1.5 * 10**9))
    ingest_source(job.gallery, source, job.progress, PartSizes(5))
    after = models(job.gallery, build_images(job, recipe(), source, refit=True))
    assert before.keys() == after.keys()
    for kind, arrays in before.items():
        for name, array in arrays.items():
            assert np.array_equal(array, after[kind][name]), f"{kind}: {name}"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 10**9), max_size=6, unique=True), min_size=1, max_size=4), st.booleans()
)
def test_rows_are_united_by_image_and_keep_their_order_in_it(parts: list[list[int]], labelled: bool) -> None:
    rng = np.random.default_rng(0)
    seen: set[int] = set()
    drawn, rows = [], []
    for ids in parts:
        own = [image for image in ids if image not in seen]
        seen |= set(own)
        repeated = [image for image in own for _ in range(rng.integers(1, 4))]
        values = rng.integers(0, 255, (len(repeated), 3)).astype(np.uint8)
        labels = tuple(str(image % 3) for image in repeated) if labelled else ()
        drawn.append(Drawn(np.array(repeated, np.int64), values, labels))
        rows += [
            (image, at, value.tolist())
            for at, (image, value) in enumerate(zip(repeated, values, strict=True))
        ]
    united = in_order(drawn)
    expected = sorted(rows, key=lambda row: row[0])
    assert united.image_ids.tolist() == [image for image, _, _ in expected]
    assert united.rows.tolist() == [value for _, _, value in expected]
    assert united.labels == (tuple(str(image % 3) for image, _, _ in expected) if labelled else ())
