"""Several encoders as one: fusion by score, by concatenation, and in a gallery by SIFT and a network."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from index.build import build
from index.codebook import Codebook
from index.encodings import load_vectoriser, vectorise
from index.fused import Fused, FusedSettings, Vectoriser, encoders_in, load_encoder, projected, save_encoder
from index.generation import Generation
from index.pooled import Pooled, PooledSettings
from index.projection import Projection
from index.recipe import Recipe
from index.vlad import Vlad, VladSettings
from ingest.catalogue import read_catalogue, read_part
from ingest.compute import Compute
from ingest.features import read_features
from ingest.gallery import create_gallery
from ingest.image_features import ImageFeatures
from ingest.job import Job
from ingest.parts import PartSizes, ingest_source
from serve.query import ImageQuery
from serve.searcher import open_searcher
from tests.pipeline.small import Album, rendered, stored_vectors
from tests.tiny import job_on, memory_store

RNG = np.random.default_rng(0)
CENTROIDS = np.abs(RNG.standard_normal((4, 128))).astype(np.float32)
VLAD = Vlad(Codebook(CENTROIDS / np.linalg.norm(CENTROIDS, axis=1, keepdims=True), 4), VladSettings())
POOLED = Pooled(24, PooledSettings(reads="cnn"))
PCA = Projection(
    (0.05 * RNG.standard_normal(512)).astype(np.float32),
    RNG.standard_normal((16, 512)).astype(np.float32),
    16,
)

Arrays = Mapping[str, Mapping[str, np.ndarray]]


def drawn(seed: int, points: int = 30) -> dict[str, dict[str, np.ndarray]]:
    """Features of an image: SIFT under `local`, a pooled descriptor under `cnn`."""
    rng = np.random.default_rng(seed)
    return {
        "local": {"descriptors": rng.integers(0, 256, (points, 128), dtype=np.uint8)},
        "cnn": {"descriptors": rng.standard_normal((1, 24)).astype(np.float32)},
    }


def fused(*weights: float, projection: Projection | None = None) -> Fused:
    return Fused((Vectoriser(VLAD, projection), Vectoriser(POOLED)), weights)


# -- the law ----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 1000), st.booleans())
def test_the_score_is_the_weighted_mean_of_the_scores_of_the_parts(
    first: float, second: float, seed: int, with_projection: bool
) -> None:
    joint = fused(first, second, projection=PCA if with_projection else None)
    one, other = drawn(seed), drawn(seed + 1)
    scores = [float(part.encode(one) @ part.encode(other)) for part in joint.parts]
    expected = (first * scores[0] + second * scores[1]) / (first + second)
    assert float(joint.encode(one) @ joint.encode(other)) == pytest.approx(expected, abs=1e-6)
    assert joint.encode(one).shape == (joint.dim,)
    assert np.linalg.norm(joint.encode(one)) == pytest.approx(1, abs=1e-6)


def test_weights_move_the_score_from_one_part_to_the_other() -> None:
    one, other = drawn(1), drawn(2)
    vlads, pools = (float(part.encode(one) @ part.encode(other)) for part in fused(1, 1).parts)
    found = [float(fused(w, 1).encode(one) @ fused(w, 1).encode(other)) for w in (1e-6, 1.0, 1e6)]
    assert found == pytest.approx([pools, (vlads + pools) / 2, vlads], abs=1e-5)
    assert abs(vlads - pools) > 0.1


@pytest.mark.parametrize("projection", [None, PCA])
def test_where_a_part_found_nothing_the_others_count_for_it(projection: Projection | None) -> None:
    joint = fused(3.0, 1.0, projection=projection)
    empty, full = drawn(1, points=0), drawn(2)
    found = joint.encode(empty)
    assert not found[: joint.parts[0].dim].any()
    np.testing.assert_allclose(found[joint.parts[0].dim :], POOLED.encode(empty["cnn"]), atol=1e-6)
    cosine = float(POOLED.encode(empty["cnn"]) @ POOLED.encode(full["cnn"]))
    # Of the other image the pooled part is but a share, sqrt(1 / (3 + 1)).
    assert float(found @ joint.encode(full)) == pytest.approx(cosine / 2, abs=1e-6)


def test_two_images_in_which_nothing_was_found_are_not_alike() -> None:
    empty = [ImageFeatures(9, 9, 1.0, drawn(seed, points=0)) for seed in (1, 2)]
    vectors = vectorise(Vectoriser(VLAD), PCA, [*empty, ImageFeatures(9, 9, 1.0, drawn(3))])
    assert not vectors[:2].any()
    assert np.linalg.norm(vectors[2]) == pytest.approx(1, abs=1e-6)
    assert not Vectoriser(VLAD, PCA).encode(empty[0].by_label).any()


def test_a_projection_of_zeros_is_zeros_and_of_anything_else_what_it_was() -> None:
    rows = RNG.standard_normal((3, 512)).astype(np.float32)
    rows[1] = 0
    found = projected(PCA, rows)
    assert not found[1].any()
    assert np.array_equal(found[[0, 2]], PCA.apply(rows)[[0, 2]])


# -- as a value -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder", [Vectoriser(VLAD), Vectoriser(VLAD, PCA), fused(2.0, 0.5, projection=PCA)]
)
def test_saved_and_loaded_it_gives_the_same_vectors(encoder: Vectoriser | Fused) -> None:
    gallery = create_gallery(memory_store())
    digest = save_encoder(gallery, encoder, {"catalogue": 1})
    again = load_encoder(gallery, digest)
    assert type(again) is type(encoder)
    assert (again.dim, again.labels, again.notes) == (encoder.dim, encoder.labels, encoder.notes)
    for seed in range(3):
        assert np.array_equal(again.encode(drawn(seed)), encoder.encode(drawn(seed)))
    assert save_encoder(gallery, again, {"catalogue": 1}) == digest


def test_other_weights_are_another_model() -> None:
    gallery = create_gallery(memory_store())
    digests = {save_encoder(gallery, fused(*weights), {}) for weights in ((1, 1), (1, 2), (2, 1))}
    assert len(digests) == 3


def test_notes_of_all_parts_come_along() -> None:
    noted = Projection(PCA.mean, PCA.matrix, 16, ("fewer components",))
    assert fused(1, 1, projection=noted).notes == ("fewer components",)


def test_settings_say_what_is_read_and_refuse_what_is_no_fusion() -> None:
    parts: list[dict[str, Any]] = [
        {"encoder": {"kind": "vlad"}, "projection": {"kind": "pca", "dim": 4}, "weight": 2.0},
        {"encoder": {"kind": "pooled", "reads": "cnn"}},
    ]
    made = FusedSettings.model_validate({"parts": parts})
    assert [encoder.reads for encoder in encoders_in(made)] == ["local", "cnn"]
    assert [part.weight for part in made.parts] == [2.0, 1.0]
    for wrong in (
        {"parts": parts[:1]},
        {"parts": [parts[0], parts[1] | {"weight": 0}]},
        {"parts": [made, made]},
    ):
        with pytest.raises(ValidationError):
            FusedSettings.model_validate(wrong)


# -- in a gallery -----------------------------------------------------------------------------------------

FLAT = "flat.bmp"  # nothing for SIFT


@dataclass(frozen=True)
class Town:
    """A gallery of pictures, one of which is without key points, described by SIFT and by a network."""

    job: Job
    source: Album


@pytest.fixture(scope="module")
def town() -> Town:
    files = rendered("synthetic:scenes=4,views=2,distractors=3,size=96,seed=5")
    flat = io.BytesIO()
    Image.new("RGB", (96, 72), (90, 120, 150)).save(flat, "BMP")
    source = Album("town", {**files, FLAT: flat.getvalue()})
    job = job_on(memory_store())
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=5))
    return Town(job, source)


def _recipe(projection: dict[str, Any] | None) -> Recipe:
    vlad = {"kind": "vlad", "codebook": {"words": 4, "sample_descriptors": 2000}}
    parts = [
        {"encoder": vlad, "projection": {"kind": "pca", "dim": 6}, "weight": 2.0},
        {"encoder": {"kind": "pooled", "reads": "cnn"}, "weight": 0.5},
    ]
    describe = {
        "local": {"kind": "sift", "max_keypoints": 80},
        "cnn": {"kind": "cnn-global", "network": {"name": "efficientnet-lite0"}},
    }
    return Recipe.model_validate(
        {
            "name": "fused",
            "features": {"describe": describe},
            "encoder": {"kind": "fused", "parts": parts},
            "projection": projection,
            "quantizer": {"kind": "flat"},
            "gate": {"recall": 0.0},
        }
    )


def _built(town: Town, projection: dict[str, Any] | None) -> Generation:
    return build(town.job, _recipe(projection), {town.source.name: town.source})


def _images(town: Town, generation: Generation) -> dict[int, ImageFeatures]:
    """What is stored of each image, by id."""
    gallery, found = town.job.gallery, {}
    assert generation.models.features is not None
    for part in read_catalogue(gallery).parts:
        ids = read_part(gallery, part, ["image_id"])["image_id"].to_pylist()
        for row, image in read_features(gallery, generation.models.features, part.part):
            found[ids[row]] = image
    return found


def test_one_part_reads_sift_and_one_a_network_and_their_scores_are_mixed(town: Town) -> None:
    generation = _built(town, None)
    encoder, projection = load_vectoriser(town.job.gallery, generation.models.encoder or "", None)
    assert isinstance(encoder, Fused) and projection is None
    ids, vectors = stored_vectors(town.job.gallery, generation.number)
    assert len(ids) == 12 and vectors.shape[1] == 6 + 320
    images = _images(town, generation)
    assert sum(not len(image.of("local")["descriptors"]) for image in images.values()) == 1
    by_part = [np.stack([part.encode(images[int(each)].by_label) for each in ids]) for part in encoder.parts]
    mixed = 2.0 * by_part[0] @ by_part[0].T + 0.5 * by_part[1] @ by_part[1].T
    there = 2.0 * by_part[0].any(axis=1) + 0.5
    np.testing.assert_allclose(vectors @ vectors.T, mixed / np.sqrt(np.outer(there, there)), atol=2e-6)


def test_a_joint_projection_is_fitted_on_the_joint_vectors(town: Town) -> None:
    """Principal component analysis of the joint vectors, plainly, up to signs."""
    before = _built(town, None)
    joint = stored_vectors(town.job.gallery, before.number)[1].astype(np.float64)
    generation = _built(town, {"kind": "pca", "dim": 5, "whiten": False})
    _, vectors = stored_vectors(town.job.gallery, generation.number)
    centred = joint - joint.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = centred @ directions.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert vectors.shape == (12, 5)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


def test_a_query_is_encoded_as_the_gallery_was(town: Town) -> None:
    generation = _built(town, {"kind": "pca", "dim": 5, "whiten": False})
    files = dict(town.source.images)
    with open_searcher(town.job.gallery, generation.number, compute=Compute(threads=1)) as searcher:
        answers = searcher.search_images([ImageQuery(data, None, key) for key, data in files.items()], 1)
    for answer in answers:
        assert answer.results[0].key == answer.query
        assert answer.results[0].score == pytest.approx(1, abs=1e-5)
