"""The steps of a search, opened for one generation and folded in order over the hits of a query."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from index.cvnet_step import CvnetStep
from index.expansion import ExpansionSettings
from index.generation import Generation
from index.rerank import Hit, Read, expanded, look_again
from index.steps import PairStep, Query, StepSettings, looks_at, open_pair_step
from index.stored_vectors import StoredVectors
from ingest.compute import Compute
from ingest.feature_reader import Place
from ingest.gallery import Gallery
from ingest.outcomes import Rejected

Search = Callable[[Float32[np.ndarray, " d"], int], list[Hit]]


class Steps:
    """Opened steps; may be shared by threads.

    Attributes:
        labels: of the features that pair steps read, of queries and candidates.
        depth: how many hits a search must fetch for them.
    """

    def __init__(
        self,
        gallery: Gallery,
        generation: Generation,
        settings: Sequence[StepSettings],
        read: Read,
        compute: Compute,
    ) -> None:
        self._read = read
        self._vectors = StoredVectors(gallery, generation.models.encodings)
        self._steps: list[tuple[StepSettings, PairStep | None]] = [
            (each, None)
            if isinstance(each, ExpansionSettings)
            else (each, open_pair_step(gallery, generation, each, compute))
            for each in settings
        ]

    @property
    def labels(self) -> frozenset[str]:
        return frozenset().union(*(step.labels for _, step in self._steps if step is not None))

    @property
    def depth(self) -> int:
        return max((looks_at(settings) for settings, _ in self._steps), default=0)

    def apply(self, query: Query, hits: Sequence[Hit], search: Search, own: int | None = None) -> list[Hit]:
        """The hits after all steps, best first.

        Args:
            search: what gave the hits: so many for a vector, best first.
            own: id of the image that is the query, if the gallery has it and its hits are without it: no
                step brings it back.
        """
        found = list(hits)
        for settings, step in self._steps:
            if isinstance(settings, ExpansionSettings):
                vector = expanded(query.vector, found, settings, self._vectors.read)
                query = Query(vector, query.features)
                wanted = len(found)
                again = search(query.vector, wanted + (own is not None)) if found else []
                found = [hit for hit in again if hit.image_id != own][:wanted]
            elif step is not None:
                found = look_again(step, settings.depth, query, found, self._read)
        return found

    def correspondence(self, query: Query, place: Place) -> tuple[np.ndarray, np.ndarray] | None:
        """See `Searcher.correspondence`."""
        for _, step in reversed(self._steps):
            if isinstance(step, CvnetStep):
                (features,) = self._read([place], step.labels)
                if not isinstance(features, Rejected):
                    return step.correspondence(query.features, features)
        return None
