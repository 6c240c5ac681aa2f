"""Single steps against plain numpy, and what is refused before any pair is looked at."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from index.cvnet_settings import CvnetSettings
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.projection import Projection
from index.recipe import Recipe
from index.region_scores import RegionStepSettings
from index.steps import STEP_KINDS, GeometryStep, Query, RegionStep, looks_at, open_pair_step
from ingest.compute import Compute
from ingest.errors import BadInput
from ingest.gallery import create_gallery
from ingest.image_features import ImageFeatures
from tests.tiny import memory_store

NETWORK = {"name": "resnet18", "weights": "seed:0"}
DESCRIBE = {
    "local": {"kind": "sift"},
    "global": {"kind": "cnn-global", "network": NETWORK},
    "pyramid": {"kind": "cvnet-pyramid", "network": {"name": "cvnet-r50", "weights": "seed:0"}},
}
VLAD = {"kind": "vlad"}
POOLED = {"kind": "pooled"}


def recipe(**changes: Any) -> Recipe:
    stated = {"name": "t", "features": {"describe": DESCRIBE}, "encoder": VLAD, "quantizer": {"kind": "flat"}}
    return Recipe.model_validate(stated | changes)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# -- geometry ---------------------------------------------------------------------------------------------


def _local(keypoints: np.ndarray, descriptors: np.ndarray) -> dict[str, np.ndarray]:
    return {"keypoints": keypoints.astype(np.float32), "descriptors": descriptors}


def _mapped(model: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = np.column_stack([points, np.ones(len(points))]) @ model.T
    return mapped[:, :2] / mapped[:, 2:]


def test_geometry_adds_for_each_inlier_and_names_the_points_in_both_originals() -> None:
    rng = np.random.default_rng(0)
    model = np.array([[1.1, 0.1, 40.0], [-0.08, 0.95, 25.0], [1e-4, 5e-5, 1.0]])
    here = rng.uniform(0, 400, (60, 2))
    there = _mapped(model, here)
    there[40:] = rng.uniform(0, 400, (20, 2))  # matches that nothing makes agree
    descriptors = rng.integers(0, 200, (60, 128)).astype(np.uint8)
    order = rng.permutation(60)
    query = Query(np.ones(1, np.float32), ImageFeatures(400, 400, 1.0, {"sift": _local(here, descriptors)}))
    candidate = ImageFeatures(500, 500, 1.0, {"sift": _local(there[order], descriptors[order])})
    settings = GeometrySettings(reads="sift", weight=0.02, cap=35)
    step = GeometryStep(settings)
    (found,) = step.score(query, [candidate], [0.3])
    assert step.labels == {"sift"}
    assert found.kind == "geometry"
    assert found.figures == {"matches": 60.0, "inliers": 40.0}
    assert found.added == pytest.approx(0.02 * 35)
    assert found.points is not None and found.box is None
    a, b = found.points
    assert a.shape == b.shape == (40, 2)
    np.testing.assert_allclose(_mapped(model, a), b, atol=0.01)
    assert {tuple(point) for point in a} == {tuple(point) for point in here[:40].astype(np.float32)}


def test_geometry_finds_nothing_in_strangers_and_in_images_without_key_points() -> None:
    rng = np.random.default_rng(1)
    strangers = [
        _local(rng.uniform(0, 400, (n, 2)), rng.integers(0, 200, (n, 128)).astype(np.uint8))
        for n in (50, 50, 0)
    ]
    query, *candidates = (ImageFeatures(400, 400, 1.0, {"local": each}) for each in strangers)
    found = GeometryStep(GeometrySettings()).score(
        Query(np.ones(1, np.float32), query), candidates, [0.5, 0.5]
    )
    for each in found:
        assert (each.added, each.figures["inliers"]) == (0.0, 0.0)
        assert each.points is not None and [points.shape for points in each.points] == [(0, 2), (0, 2)]


def test_geometry_measures_in_pixels_of_the_images_as_they_were_described() -> None:
    """Points 6 pixels off are within the threshold where the image was described at a quarter of its size."""
    rng = np.random.default_rng(2)
    here = rng.uniform(0, 1600, (40, 2))
    angle = rng.uniform(0, 2 * np.pi, 40)
    off = here + 6 * np.column_stack([np.cos(angle), np.sin(angle)])
    descriptors = rng.integers(0, 200, (40, 128)).astype(np.uint8)
    inliers = {}
    for scale in (1.0, 4.0):
        image = ImageFeatures(1600, 1600, scale, {"local": _local(here, descriptors)})
        other = ImageFeatures(1600, 1600, scale, {"local": _local(off, descriptors)})
        (found,) = GeometryStep(GeometrySettings()).score(
            Query(np.ones(1, np.float32), image), [other], [0.0]
        )
        inliers[scale] = found.figures["inliers"]
    assert inliers[4.0] == 40
    assert inliers[1.0] < 20


# -- regions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projected", [False, True])
def test_regions_bring_a_score_up_to_that_of_the_best_region_and_never_down(projected: bool) -> None:
    rng = np.random.default_rng(3)
    projection = None
    if projected:
        mean, matrix = rng.standard_normal(12) * 0.1, rng.standard_normal((6, 12))
        projection = Projection(mean.astype(np.float32), matrix.astype(np.float32), 6)
    vector = unit(rng.standard_normal(6 if projected else 12)).astype(np.float32)
    images = []
    for _ in range(5):
        regions = 3 * rng.standard_normal((9, 12)).astype(np.float32)
        boxes = rng.uniform(0, 100, (9, 4)).astype(np.float32)
        images.append(ImageFeatures(100, 100, 1.0, {"cnn": {"descriptors": regions, "boxes": boxes}}))
    naive = []
    for image in images:
        rows = unit(image.of("cnn")["descriptors"].astype(np.float64))
        if projection is not None:
            rows = unit((rows - projection.mean) @ projection.matrix.T)
        naive.append(rows @ vector)
    scores = [float(products[0]) for products in naive]
    scores[4] = 0.999  # an estimate above what any region scores
    step = RegionStep(RegionStepSettings(reads="cnn"), projection)
    found = step.score(Query(vector, images[0]), images, scores)
    assert step.labels == {"cnn"}
    for each, products, score, image in zip(found, naive, scores, images, strict=True):
        row = int(products.argmax())
        assert score + each.added == pytest.approx(max(products[row], score), abs=1e-6)
        assert each.figures["region"] == row
        assert each.figures["score"] == pytest.approx(products[row], abs=1e-6)
        assert each.box == tuple(map(float, image.of("cnn")["boxes"][row]))
    assert found[4].added == 0.0
    assert max(each.added for each in found) > 0.1
    assert step.score(Query(vector, images[0]), [], []) == []


# -- opening ----------------------------------------------------------------------------------------------


def opened(settings: Any, **changes: Any) -> Any:
    generation = SimpleNamespace(
        recipe=recipe(**changes), models=SimpleNamespace(encoder="digest", projection=None)
    )
    gallery = create_gallery(memory_store())
    return open_pair_step(gallery, generation, settings, Compute())  # type: ignore[arg-type]


def test_geometry_opens_on_local_features() -> None:
    assert opened(GeometrySettings(depth=3)) == GeometryStep(GeometrySettings(depth=3))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (GeometrySettings(reads="points"), "'points', and recipe 't' describes only: global, local, pyramid"),
        (RegionStepSettings(reads="none"), "describes only"),
        (CvnetSettings(reads="none"), "describes only"),
        (GeometrySettings(reads="global"), "key points, and 'global' holds cnn-global"),
        (GeometrySettings(reads="pyramid"), "key points, and 'pyramid' holds cvnet-pyramid"),
        (CvnetSettings(reads="local"), "pyramids, and 'local' holds sift"),
        (CvnetSettings(reads="global"), "pyramids, and 'global' holds cnn-global"),
        (RegionStepSettings(reads="global"), "the encoder must be `pooled` and read 'global'"),
        (RegionStepSettings(reads="local"), "the encoder must be `pooled` and read 'local'"),
    ],
)
def test_a_step_that_cannot_read_what_is_there_is_refused(settings: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        opened(settings)


def test_regions_are_refused_where_several_encoders_make_the_vector() -> None:
    fused = {"kind": "fused", "parts": [{"encoder": POOLED}, {"encoder": VLAD}]}
    with pytest.raises(BadInput, match="must be `pooled`"):
        opened(RegionStepSettings(), encoder=fused)


def test_ready_made_vectors_have_nothing_to_look_at() -> None:
    with pytest.raises(BadInput, match="describes only: ready-made vectors"):
        opened(GeometrySettings(), features=None, encoder=None)


# -- recipes ----------------------------------------------------------------------------------------------


def test_steps_in_a_recipe_read_what_it_describes() -> None:
    steps = [{"kind": kind} for kind in STEP_KINDS]
    made = recipe(steps=steps, encoder=POOLED)
    assert [step.kind for step in made.steps] == list(STEP_KINDS)
    assert [looks_at(step) for step in made.steps] == [30, 100, 100, 10]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"steps": [{"kind": "expand"}, {"kind": "geometry", "reads": "x"}]},
            "geometry reads the features x",
        ),
        ({"steps": [{"kind": "cvnet", "reads": "y"}]}, "features.describe has only: global, local, pyramid"),
        ({"encoder": {"kind": "pooled", "reads": "z"}}, "pooled reads the features z"),
        ({"steps": [{"kind": "regions"}]}, "let the encoder be pooled and read global too"),
        ({"steps": [{"kind": "diffusion"}]}, "diffusion"),
        ({"steps": [{"kind": "geometry", "deep": 3}]}, "deep"),
        (
            {"features": None, "encoder": None, "steps": [{"kind": "expand"}, {"kind": "geometry"}]},
            "step geometry looks at features, and ready-made vectors have none",
        ),
    ],
)
def test_a_recipe_whose_steps_cannot_work_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        recipe(**changes)


def test_ready_made_vectors_may_be_expanded() -> None:
    made = recipe(features=None, encoder=None, steps=[{"kind": "expand"}])
    assert made.steps == (ExpansionSettings(),)


def test_steps_are_no_part_of_what_a_recipe_computes() -> None:
    plain = {"describe": {"local": {"kind": "sift"}}}
    assert recipe(features=plain).digest == recipe(features=plain, steps=[{"kind": "geometry"}]).digest
