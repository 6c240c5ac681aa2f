"""The steps of a search, opened for one generation and folded in order over the hits of a query."""

from collections.abc import Sequence

import numpy as np

from index.cvnet_step import CvnetStep
from index.expansion import ExpansionSettings, expand_query
from index.opened import Hits, OpenGeneration
from index.rerank import Hit, Read, look_again
from index.steps import PairStep, Query, StepSettings, looks_at, open_pair_step
from index.stored_vectors import StoredVectors
from ingest.compute import Compute
from ingest.feature_reader import Place
from ingest.gallery import Gallery
from ingest.outcomes import Rejected


class Steps:
    """Opened steps; may be shared by threads.

    Attributes:
        labels: of the features that pair steps read, of queries and candidates.
        depth: how many hits a search must fetch for them.
    """

    def __init__(
        self,
        gallery: Gallery,
        opened: OpenGeneration,
        settings: Sequence[StepSettings],
        read: Read,
        compute: Compute,
    ) -> None:
        self._opened, self._read = opened, read
        self._vectors = StoredVectors(gallery, opened.generation.models.encodings)
        self._steps: list[tuple[StepSettings, PairStep | None]] = [
            (each, None)
            if isinstance(each, ExpansionSettings)
            else (each, open_pair_step(gallery, opened.generation, each, compute))
            for each in settings
        ]

    @property
    def labels(self) -> frozenset[str]:
        return frozenset().union(*(step.labels for _, step in self._steps if step is not None))

    @property
    def depth(self) -> int:
        return max((looks_at(settings) for settings, _ in self._steps), default=0)

    def apply(
        self, query: Query, hits: Sequence[Hit], nprobe: int | None = None, own: int | None = None
    ) -> list[Hit]:
        """The hits after all steps, best first.

        Args:
            own: id of the image that is the query, if the gallery has it and its hits are without it: no
                step brings it back.
        """
        found = list(hits)
        for settings, step in self._steps:
            if isinstance(settings, ExpansionSettings):
                query, found = self._expanded(query, found, settings, nprobe, own)
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

    def _expanded(
        self,
        query: Query,
        hits: Sequence[Hit],
        settings: ExpansionSettings,
        nprobe: int | None,
        own: int | None,
    ) -> tuple[Query, list[Hit]]:
        """The expanded query, and what the index answers to it: as many hits as there were."""
        first = hits[: settings.neighbours]
        if not first:
            return query, list(hits)
        neighbours = self._vectors.read([hit.place for hit in first])
        scores = np.array([hit.similarity for hit in first], np.float32)
        expanded = Query(expand_query(query.vector, neighbours, scores, settings), query.features)
        found = self._opened.search(expanded.vector[None], len(hits) + (own is not None), nprobe)
        others = [hit for hit in hits_of(self._opened, found)[0] if hit.image_id != own]
        return expanded, others[: len(hits)]


def hits_of(opened: OpenGeneration, found: Hits) -> list[list[Hit]]:
    """The answers of an index as hits, for each query."""
    places = {
        int(image): Place(*opened.locate(int(image))) for image in np.unique(found.image_ids) if image >= 0
    }
    return [
        [
            Hit(image, places[image], score, score)
            for image, score in zip(ids, scores, strict=True)
            if image >= 0
        ]
        for ids, scores in zip(found.image_ids.tolist(), found.scores.tolist(), strict=True)
    ]
