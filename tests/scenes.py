"""A gallery of rendered scenes with a weak index, so that looking again has something to mend."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from index.build import build
from index.recipe import Recipe
from ingest.engine import Engine
from ingest.job import Job
from ingest.parts import PartSizes, ingest_source
from ingest.scenes import Kind, Shot, camera_of
from ingest.store import Store
from tests.pipeline.small import images_of, job_on

SIZE, SEED = 240, 3
SCENES = f"synthetic:scenes=6,views=3,distractors=6,size={SIZE},seed={SEED}"
LABELS = r"/((?:facade|object)-\d+)/"
IMAGES = 24


def scene_recipe(**changes: Any) -> Recipe:
    """SIFT in images of 200 pixels, so five sixths of the original, and vectors of 16 dimensions."""
    stated = {
        "name": "scenes",
        "features": {
            "decode": {"longest_side": 200},
            "describe": {"local": {"kind": "sift", "max_keypoints": 400}},
        },
        "encoder": {"kind": "vlad", "codebook": {"words": 8, "sample_descriptors": 4000}},
        "projection": {"kind": "pca", "dim": 16},
        "quantizer": {"kind": "flat"},
        "gate": {"recall": 0.0, "queries": 8},
    }
    return Recipe.model_validate(stated | changes)


def scene_gallery(where: Store | str, recipe: Recipe, engine: Engine | None = None) -> Job:
    """Lists the scenes in parts of five images, and builds."""
    job, source = job_on(where, engine), images_of(SCENES)
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=5))
    build(job, recipe, {source.name: source})
    return job


def label_of(key: str) -> str | None:
    scene = key.split("/")[0]
    return None if scene.startswith("distractor") else scene


def front_between(one: str, other: str) -> np.ndarray:
    """(3, 3), the homography from one view to another that the front of a scene's box obeys, in pixels."""
    return _front_to_view(other) @ np.linalg.inv(_front_to_view(one))


def _front_to_view(key: str) -> np.ndarray:
    """From (x, y, 1) in metres on the front, z = 0, to pixels; the first pixel's centre is (0, 0)."""
    kinds: Mapping[str, Kind] = {"facade": "facade", "object": "object", "distractor": "distractor"}
    scene, view = key.removesuffix(".bmp").split("/view-")
    kind, number = scene.split("-")
    camera = camera_of(Shot(SEED, kinds[kind], int(number), int(view), SIZE))
    right, down, forward = map(np.array, (camera.right, camera.down, camera.forward))
    project = np.stack(
        [
            camera.focal * right + (camera.width - 1) / 2 * forward,
            camera.focal * down + (camera.height - 1) / 2 * forward,
            forward,
        ]
    )
    return project @ np.column_stack([(1, 0, 0), (0, 1, 0), -np.array(camera.position)])


def mapped(model: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved = np.column_stack([points, np.ones(len(points))]) @ model.T
    return moved[:, :2] / moved[:, 2:]
