"""A gallery of scenes to serve, what is asked of it, and what a `Searcher` answers to the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from index.recipe import Recipe
from index.step_choice import chosen_steps
from ingest.job import Job
from ingest.store import Store
from serve.answers import result_fields
from serve.api import FoundImage, SearchRequest
from serve.query import ImageQuery
from serve.searcher import Answer, Searcher
from tests.pipeline.small import rendered
from tests.scenes import SCENES, scene_gallery, scene_recipe


def served_recipe(**changes: Any) -> Recipe:
    """Inverted lists of which a search reads some, a second look, and five shards."""
    stated = {
        "quantizer": {"kind": "ivfadc", "lists": 4, "nprobe": 2, "code_bytes": 8},
        "steps": [{"kind": "geometry", "depth": 6}],
        "shard_rows": 5,
    }
    return scene_recipe(**(stated | changes))


@dataclass(frozen=True)
class Served:
    """A gallery, and the files of its images by key."""

    job: Job
    files: Mapping[str, bytes]

    def query(self, number: int) -> ImageQuery:
        key = list(self.files)[number]
        return ImageQuery(self.files[key], None, key)


def served_gallery(where: Store | str) -> Served:
    return Served(scene_gallery(where, served_recipe()), rendered(SCENES))


def searched(searcher: Searcher, request: SearchRequest, image: ImageQuery | None) -> list[dict[str, Any]]:
    """What the command finds: by an image, or else by the image id or the vector of the request."""
    import numpy as np

    steps = chosen_steps(searcher.opened.generation.recipe, request.rerank, request.depth)
    answer: Answer
    if image is not None:
        (answer,) = searcher.search_images([image], request.top, request.nprobe, steps)
    elif request.image_ids:
        answer = searcher.similar_to(int(request.image_ids[0]), request.top, request.nprobe, steps)
    else:
        vectors = np.array(request.vectors, np.float32)
        (answer,) = searcher.search_vectors(vectors, request.top, request.nprobe)
    return [{**result_fields(found), "image_id": str(found.image_id)} for found in answer.results]


def compared(results: list[FoundImage]) -> list[dict[str, Any]]:
    """The results of a service with what a command's results have too."""
    shown = {"rank", "image_id", "score", "similarity", "uri", "source", "key", "metadata"}
    return [
        {
            **found.model_dump(include=shown),
            "steps": [step.model_dump(exclude={"points"}, exclude_none=True) for step in found.steps],
        }
        for found in results
    ]
