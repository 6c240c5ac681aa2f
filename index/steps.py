"""Steps by name: what is done with the answers to a query before they are given, each its own settings.

Two sorts: a step that looks again at query and candidate, pair by pair (geometry, cvnet, regions), adds to
their scores and says why; a step that asks anew (expand) replaces the answers. A recipe lists them, and they
are folded in order over the hits.

To add a pair step: a settings model with `kind`, `reads` and `depth`, a class with `score`, a line in the
union and in `_OPENERS`, and what it can read in `index.recipe`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from index.cvnet_settings import CvnetSettings
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings, verify
from index.pooled import PooledSettings
from index.projection import Projection
from index.region_scores import RegionStepSettings, best_regions
from ingest.cnn_global import GlobalSettings
from ingest.compute import Compute
from ingest.cvnet_pyramid import PyramidSettings
from ingest.errors import BadInput
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.threads import one_blas_thread

if TYPE_CHECKING:
    from index.generation import Generation

StepSettings = Annotated[
    ExpansionSettings | RegionStepSettings | GeometrySettings | CvnetSettings, Field(discriminator="kind")
]
PairSettings = RegionStepSettings | GeometrySettings | CvnetSettings


def looks_at(settings: StepSettings) -> int:
    """How many of the first answers a step reads."""
    return settings.neighbours if isinstance(settings, ExpansionSettings) else settings.depth


@dataclass(frozen=True)
class Query:
    """A query as pair steps see it: its vector, and what was found in its image."""

    vector: Float32[np.ndarray, " d"]
    features: ImageFeatures


@dataclass(frozen=True)
class Evidence:
    """What a step found in a pair.

    kind: of the step. added: to the score; what it was made of is in `figures`, by name.
    points: corresponding points (m, 2) of query and candidate, (x, y) in pixels of their originals; None from
        steps that find none.
    box: x0, y0, x1, y1, the part of the candidate that counted, in pixels of its original.
    model: (3, 3), from query to candidate in pixels of the originals, on columns (x, y, 1); None where
        nothing was fitted.
    """

    kind: str
    added: float
    figures: Mapping[str, float] = field(default_factory=dict)
    points: tuple[np.ndarray, np.ndarray] | None = None
    box: tuple[float, float, float, float] | None = None
    model: np.ndarray | None = None


class PairStep(Protocol):
    """An opened pair step. `labels`: of the features that it reads. Safe to call from several threads."""

    @property
    def labels(self) -> frozenset[str]: ...

    def score(
        self, query: Query, candidates: Sequence[ImageFeatures], scores: Sequence[float]
    ) -> list[Evidence]:
        """Looks at the query and each candidate; `scores` are what each has so far."""


@dataclass(frozen=True)
class GeometryStep:
    """See `index.geometry`."""

    settings: GeometrySettings

    @property
    def labels(self) -> frozenset[str]:
        return frozenset([self.settings.reads])

    def score(
        self, query: Query, candidates: Sequence[ImageFeatures], scores: Sequence[float]
    ) -> list[Evidence]:
        with one_blas_thread():
            return [self._pair(query.features, candidate) for candidate in candidates]

    def _pair(self, query: ImageFeatures, candidate: ImageFeatures) -> Evidence:
        mine, theirs = query.of(self.settings.reads), candidate.of(self.settings.reads)
        found = verify(mine, theirs, self.settings, query.scale, candidate.scale)
        points = (mine["keypoints"][found.inliers[:, 0]], theirs["keypoints"][found.inliers[:, 1]])
        figures = {"matches": float(found.matches), "inliers": float(len(found.inliers))}
        return Evidence("geometry", found.added, figures, points, model=found.model)


@dataclass(frozen=True)
class RegionStep:
    """See `index.region_scores`."""

    settings: RegionStepSettings
    projection: Projection | None

    @property
    def labels(self) -> frozenset[str]:
        return frozenset([self.settings.reads])

    def score(
        self, query: Query, candidates: Sequence[ImageFeatures], scores: Sequence[float]
    ) -> list[Evidence]:
        """Adds what the best region scores above the whole image: the sum is the best region's score."""
        arrays = [candidate.of(self.settings.reads) for candidate in candidates]
        with one_blas_thread():
            best = best_regions(query.vector, [each["descriptors"] for each in arrays], self.projection)
        evidence = []
        for each, found, score in zip(arrays, best, scores, strict=True):
            x0, y0, x1, y1 = map(float, each["boxes"][found.row])
            figures = {"region": float(found.row), "score": found.score}
            added = max(0.0, found.score - score)
            evidence.append(Evidence("regions", added, figures, box=(x0, y0, x1, y1)))
        return evidence


def open_pair_step(
    gallery: Gallery, generation: "Generation", settings: PairSettings, compute: Compute
) -> PairStep:
    """Opens a pair step for a generation: its weights and models are loaded.

    Raises:
        BadInput: the generation's recipe does not describe what the step reads.
    """
    features = generation.recipe.features
    there = {} if features is None else features.describe
    if settings.reads not in there:
        raise BadInput(
            f"step {settings.kind} reads the features {settings.reads!r}, and recipe "
            f"{generation.recipe.name!r} describes only: {', '.join(sorted(there)) or 'ready-made vectors'}; "
            "choose another step, or build with a recipe that describes them"
        )
    return _OPENERS[settings.kind](gallery, generation, settings, compute)


def _open_geometry(gallery: Gallery, generation: "Generation", settings: Any, compute: Compute) -> PairStep:
    assert generation.recipe.features is not None
    described = generation.recipe.features.describe[settings.reads]
    if isinstance(described, GlobalSettings | PyramidSettings):
        raise BadInput(
            f"step geometry compares key points, and {settings.reads!r} holds {described.kind}: let it read "
            "local features (sift, cnn-columns, cnn-patches)"
        )
    return GeometryStep(settings)


def _open_regions(gallery: Gallery, generation: "Generation", settings: Any, compute: Compute) -> PairStep:
    from index.encodings import load_vectoriser

    models, encoder = generation.models, generation.recipe.encoder
    pooled = isinstance(encoder, PooledSettings) and encoder.reads == settings.reads
    if models.encoder is None or not pooled:
        raise BadInput(
            f"step regions compares regions with the query's vector, so the encoder must be `pooled` and "
            f"read {settings.reads!r}; recipe {generation.recipe.name!r} has another"
        )
    return RegionStep(settings, load_vectoriser(gallery, models.encoder, models.projection)[1])


def _open_cvnet(gallery: Gallery, generation: "Generation", settings: Any, compute: Compute) -> PairStep:
    from index.cvnet_step import open_cvnet_step

    assert generation.recipe.features is not None
    return open_cvnet_step(gallery, generation.recipe.features, settings, compute)


_OPENERS: dict[str, Callable[[Gallery, "Generation", Any, Compute], PairStep]] = {
    "geometry": _open_geometry,
    "regions": _open_regions,
    "cvnet": _open_cvnet,
}

STEP_KINDS = (*_OPENERS, "expand")
