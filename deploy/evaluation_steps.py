"""Steps in an evaluation: answers are looked at again as a search looks at them, many queries at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from jaxtyping import Float32, Int64

from index.exact import Collection
from index.expansion import ExpansionSettings
from index.generation import Generation
from index.opened import Hits
from index.rerank import Hit, expanded
from index.rerank_queries import StoredQuery, look_again_at_all
from index.steps import PairSettings, StepSettings, looks_at
from index.stored_vectors import StoredVectors
from ingest.feature_reader import Place
from ingest.job import Job

Search = Callable[[Float32[np.ndarray, "q d"]], Hits]
Answers = tuple[np.ndarray, np.ndarray]  # ids and scores, best first


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
    ) -> list[Answers]:
        """Each query's answers after all steps, best first; its own image is left out.

        Args:
            places: of the queries, in the collection.
        """
        own = self.collection.live.image_id[places]
        answers = self._answers(found, own)
        queries = [
            StoredQuery(self._place(int(own[q])), vectors[q], self._hits(answers[q]))
            for q in range(len(places))
        ]
        for expands, some in groupby(self.steps, lambda step: isinstance(step, ExpansionSettings)):
            for group in [[step] for step in some] if expands else [list(some)]:
                if expands:
                    queries, answers = self._expanded(queries, group[0], own)
                else:
                    queries = self._pairs(queries, group)
        return [_with_the_rest(query.hits, *rest) for query, rest in zip(queries, answers, strict=True)]

    def _pairs(self, queries: Sequence[StoredQuery], steps: Sequence[StepSettings]) -> list[StoredQuery]:
        pairs: list[PairSettings] = [step for step in steps if not isinstance(step, ExpansionSettings)]
        hits = look_again_at_all(self.job, self.generation.number, pairs, queries)
        return [replace(query, hits=tuple(each)) for query, each in zip(queries, hits, strict=True)]

    def _expanded(
        self, queries: Sequence[StoredQuery], settings: StepSettings, own: Int64[np.ndarray, " q"]
    ) -> tuple[list[StoredQuery], list[Answers]]:
        assert isinstance(settings, ExpansionSettings)
        vectors = np.stack(
            [expanded(query.vector, query.hits, settings, self._vectors.read) for query in queries]
        )
        answers = self._answers(self.search(vectors), own)
        again = [
            replace(query, vector=vectors[q], hits=self._hits(answers[q])) for q, query in enumerate(queries)
        ]
        return again, answers

    def _answers(self, found: Hits, own: Int64[np.ndarray, " q"]) -> list[Answers]:
        """What was found for each query, without itself and what is ignored."""
        answers = []
        for ids, scores, itself in zip(found.image_ids, found.scores, own, strict=True):
            kept = (ids >= 0) & (ids != itself) & ~np.isin(ids, self.ignored)
            answers.append((ids[kept], scores[kept]))
        return answers

    def _hits(self, answers: Answers) -> tuple[Hit, ...]:
        """Those that steps may look at: steps only add to scores, so the others stay behind, in order."""
        ids, scores = (array[: max(map(looks_at, self.steps))].tolist() for array in answers)
        return tuple(
            Hit(image, self._place(image), score, score) for image, score in zip(ids, scores, strict=True)
        )

    def _place(self, image_id: int) -> Place:
        live = self.collection.live
        at = int(np.searchsorted(live.image_id, image_id))
        return Place(self.collection.catalogue.parts[int(live.part[at])].part, int(live.row[at]))


def _with_the_rest(
    hits: Sequence[Hit], ids: Int64[np.ndarray, " r"], scores: Float32[np.ndarray, " r"]
) -> Answers:
    """What steps looked at, then the answers behind it."""
    return (
        np.append(np.array([hit.image_id for hit in hits], np.int64), ids[len(hits) :]),
        np.append(np.array([hit.score for hit in hits], np.float64), scores[len(hits) :]),
    )
