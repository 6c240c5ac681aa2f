"""Steps in an evaluation: answers are looked at again as a search looks at them, many queries at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from jaxtyping import Float32, Int64

from index.exact import Collection
from index.expansion import ExpansionSettings, expand_query
from index.generation import Generation
from index.opened import Hits
from index.rerank import Hit
from index.rerank_queries import StoredQuery, look_again_at_all
from index.steps import PairSettings, StepSettings
from index.stored_vectors import StoredVectors
from ingest.feature_reader import Place
from ingest.job import Job

Search = Callable[[Float32[np.ndarray, "q d"]], Hits]


@dataclass
class EvaluationSteps:
    """The steps of an evaluation.

    search: the ranking of a batch of vectors, to the depth of the evaluation.
    ignored: ids that take no place among what steps look at, beside a query's own.
    """

    job: Job
    generation: Generation
    collection: Collection
    steps: tuple[StepSettings, ...]
    search: Search
    ignored: Int64[np.ndarray, " j"] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        self._vectors = StoredVectors(self.job.gallery, self.generation.models.encodings)

    def apply(
        self, places: Int64[np.ndarray, " q"], vectors: Float32[np.ndarray, "q d"], found: Hits
    ) -> list[Int64[np.ndarray, " r"]]:
        """The ids of each query's answers after all steps, best first; its own is left out.

        Args:
            places: of the queries, in the collection.
        """
        own = self.collection.live.image_id[places]
        queries = [
            StoredQuery(self._place(int(own[q])), vectors[q], self._hits(found, q, int(own[q])))
            for q in range(len(places))
        ]
        for expands, some in groupby(self.steps, lambda step: isinstance(step, ExpansionSettings)):
            for group in [[step] for step in some] if expands else [list(some)]:
                queries = self._expanded(queries, group[0], own) if expands else self._pairs(queries, group)
        return [np.array([hit.image_id for hit in query.hits], np.int64) for query in queries]

    def _pairs(self, queries: Sequence[StoredQuery], steps: Sequence[StepSettings]) -> list[StoredQuery]:
        pairs: list[PairSettings] = [step for step in steps if not isinstance(step, ExpansionSettings)]
        hits = look_again_at_all(self.job, self.generation.number, pairs, queries)
        return [replace(query, hits=tuple(each)) for query, each in zip(queries, hits, strict=True)]

    def _expanded(
        self, queries: Sequence[StoredQuery], settings: StepSettings, own: Int64[np.ndarray, " q"]
    ) -> list[StoredQuery]:
        assert isinstance(settings, ExpansionSettings)
        vectors = np.stack([self._expansion(query, settings) for query in queries])
        found = self.search(vectors)
        return [
            replace(query, vector=vectors[q], hits=self._hits(found, q, int(own[q])))
            for q, query in enumerate(queries)
        ]

    def _expansion(self, query: StoredQuery, settings: ExpansionSettings) -> Float32[np.ndarray, " d"]:
        first = query.hits[: settings.neighbours]
        if not first:
            return query.vector
        scores = np.array([hit.similarity for hit in first], np.float32)
        neighbours = self._vectors.read([hit.place for hit in first])
        return expand_query(query.vector, neighbours, scores, settings)

    def _hits(self, found: Hits, q: int, own: int) -> tuple[Hit, ...]:
        ids, scores = found.image_ids[q], found.scores[q]
        kept = (ids >= 0) & (ids != own) & ~np.isin(ids, self.ignored)
        return tuple(
            Hit(image, self._place(image), score, score)
            for image, score in zip(ids[kept].tolist(), scores[kept].tolist(), strict=True)
        )

    def _place(self, image_id: int) -> Place:
        live = self.collection.live
        at = int(np.searchsorted(live.image_id, image_id))
        return Place(self.collection.catalogue.parts[int(live.part[at])].part, int(live.row[at]))
