"""CVNet's second look as a step: from stored pyramids to evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from index.cvnet_settings import CvnetSettings
from index.steps import Evidence, Query
from ingest.compute import Compute
from ingest.cvnet_pyramid import PyramidSettings
from ingest.devices import choose_devices
from ingest.errors import BadInput
from ingest.features import FeatureSettings
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.pyramid_storage import from_stored
from ingest.threads import torch_threads
from ingest.weights import known_digest, weights_loader

if TYPE_CHECKING:
    from index.cvnet import CvnetReranker


@dataclass(frozen=True)
class CvnetStep:
    """See `index.cvnet`."""

    settings: CvnetSettings
    reranker: "CvnetReranker"
    threads: int | None

    @property
    def labels(self) -> frozenset[str]:
        return frozenset([self.settings.reads])

    def score(
        self, query: Query, candidates: Sequence[ImageFeatures], scores: Sequence[float]
    ) -> list[Evidence]:
        """Adds `weight` x the probability that both images are of the same thing."""
        mine, theirs = self._pyramid(query.features), [self._pyramid(each) for each in candidates]
        with torch_threads(self.threads):
            found = self.reranker.scores(mine, theirs)
        return [
            Evidence("cvnet", self.settings.weight * float(score), {"score": float(score)}) for score in found
        ]

    def correspondence(
        self, query: ImageFeatures, candidate: ImageFeatures
    ) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "i j"]]:
        """Where the two images correspond: heat in [0, 1] over each of them."""
        from index.cvnet import correspondence

        with torch_threads(self.threads):
            return correspondence(self._pyramid(query), self._pyramid(candidate))

    def _pyramid(self, features: ImageFeatures) -> list[np.ndarray]:
        return from_stored(features.of(self.settings.reads))


def open_cvnet_step(
    gallery: Gallery, features: FeatureSettings, settings: CvnetSettings, compute: Compute
) -> CvnetStep:
    """Opens the step with the weights that made the gallery's pyramids.

    Raises:
        BadInput: what the step reads is no pyramid, or the weights have no part for pairs.
    """
    from index.cvnet import CvnetReranker, load_learner

    described = features.describe[settings.reads]
    if not isinstance(described, PyramidSettings):
        raise BadInput(
            f"step cvnet compares pyramids, and {settings.reads!r} holds {described.kind}: let it read "
            "features of kind cvnet-pyramid"
        )
    devices = choose_devices("float32", compute.device)
    learner = devices.placed(load_learner(weights_loader(gallery)(known_digest(described.network))))
    return CvnetStep(settings, CvnetReranker(learner, devices.device), compute.threads)
