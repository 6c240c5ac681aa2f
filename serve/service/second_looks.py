"""A search over a service: a scan, and steps folded in order over its hits, as `serve.steps` does.

A step that cannot be done in time, or whose features the store does not give now, is left out and named; the
answer is then what the other steps make of it.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from index.expansion import ExpansionSettings
from index.filters import Filter
from index.group import Row
from index.rerank import Hit, hits_of, ranked_hits
from index.steps import PairSettings, Query, StepSettings
from ingest.errors import Corrupt, NotFound, Unavailable
from ingest.image_features import ImageFeatures
from serve.backend import Reranker
from serve.refusals import DeadlineExceeded, NotReady, Overloaded
from serve.service.course import Course, GenerationGone
from serve.service.deadline import Deadline
from serve.service.fanout import Ask, FanOut
from serve.service.together import together

_LOG = logging.getLogger(__name__)
_NOTHING_SEEN = ImageFeatures(0, 0, 1.0, {})


@dataclass(frozen=True)
class Search:
    """How to search.

    seen: the query images that pair steps look with.
    top: hits that are wanted in the end. depth: of the first scan.
    nprobe, where: as `serve.service.fanout.Ask` has them. out: images that are no answers.
    """

    seen: Sequence[Query]
    steps: tuple[StepSettings, ...]
    top: int
    depth: int
    nprobe: int | None
    where: Filter | None
    out: frozenset[int]


@dataclass(frozen=True)
class Found:
    """Hits, best first, and the rows that came with them, by image. `done`: steps that were done."""

    hits: list[Hit]
    rows: dict[int, Row]
    done: tuple[StepSettings, ...] = ()


class SecondLooks:
    """Scans, and folds steps over the hits. For one event loop."""

    def __init__(self, fan_out: FanOut, reranker: Reranker, scan_share: float, step_share: float) -> None:
        self._fan_out, self._reranker = fan_out, reranker
        self._scan_share, self._step_share = scan_share, step_share

    async def search(self, course: Course, search: Search, vector: Float32[np.ndarray, " d"]) -> Found:
        """What is found by a vector, after all steps.

        Raises:
            GenerationGone: begin again. NotReady, DeadlineExceeded: no group answers (in time).
        """
        scan_until = course.deadline.part(self._scan_share) if search.steps else course.deadline
        found = await self._scan(course, search, vector, search.depth, scan_until)
        if found is None:
            raise _no_answer(course)
        done: list[StepSettings] = []
        for settings in search.steps:
            before = set(course.missing)
            try:
                until = course.deadline.part(self._step_share)
                async with asyncio.timeout_at(until.at):
                    if isinstance(settings, ExpansionSettings):
                        vector, found = await self._expanded(course, settings, search, vector, found, until)
                    else:
                        with course.stage("rerank"):
                            hits = await self._looked(course, settings, search, vector, found.hits)
                        found = replace(found, hits=hits)
                done.append(settings)
            except (Unavailable, TimeoutError, Overloaded, NotFound, Corrupt) as error:
                if isinstance(error, NotFound) and course.newer():
                    raise GenerationGone from error
                _LOG.info("step %s is left out: %s", settings.kind, str(error) or "no time was left")
                course.missing = before  # the hits are those from before the step
                course.skip(settings.kind)
        return replace(found, done=tuple(done))

    async def _scan(
        self,
        course: Course,
        search: Search,
        vector: Float32[np.ndarray, " d"],
        wanted: int,
        deadline: Deadline,
    ) -> Found | None:
        """The best `wanted` hits; None if no group answers."""
        most = max(1, course.view.generation.counts["live"])
        k = min(wanted + len(search.out), most)
        detail = search.top + len(search.out)  # of others that steps bring up, the rows are fetched then
        merged = await self._fan_out.scan(
            course, Ask(vector, k, search.nprobe, search.where, detail), deadline
        )
        course.check_gone()
        if merged is None:
            return None
        hits = [hit for hit in hits_of(merged) if hit.image_id not in search.out]
        return Found(hits[:wanted], {row.image_id: row for row in merged.rows})

    async def _expanded(
        self,
        course: Course,
        settings: ExpansionSettings,
        search: Search,
        vector: Float32[np.ndarray, " d"],
        found: Found,
        until: Deadline,
    ) -> tuple[Float32[np.ndarray, " d"], Found]:
        """The query mixed with its nearest results, and what is found by it: as many hits as there were."""
        first = found.hits[: settings.neighbours]
        if not first:
            return vector, found
        features = search.seen[0].features if search.seen else _NOTHING_SEEN
        with course.stage("rerank"):
            expanded = await self._reranker.expand(
                course.view.number, settings, Query(vector, replace(features, by_label={})), first
            )
        again = await self._scan(course, search, expanded.vector, len(found.hits), until)
        if again is None:
            raise Unavailable("no group of shards answered the expanded query")
        return expanded.vector, again

    async def _looked(
        self,
        course: Course,
        settings: PairSettings,
        search: Search,
        vector: Float32[np.ndarray, " d"],
        hits: list[Hit],
    ) -> list[Hit]:
        """The hits after each query image has looked at them: of several looks at one, the best counts."""
        first, rest = hits[: settings.depth], hits[settings.depth :]
        if not first or not search.seen:
            return hits
        looks = await together(
            [
                self._reranker.look(course.view.number, settings, replace(query, vector=vector), first)
                for query in search.seen
            ]
        )
        best = {hit.image_id: hit for hit in looks[0]}
        for looked in looks[1:]:
            for hit in looked:
                if hit.score > best[hit.image_id].score:
                    best[hit.image_id] = hit
        return ranked_hits([*best.values(), *rest])


def _no_answer(course: Course) -> Exception:
    if course.late:
        return DeadlineExceeded("no shard answered before the deadline: allow more time (timeout_ms)")
    why = "; ".join(f"group {group}: {reason}" for group, reason in sorted(course.why.items()))
    return NotReady(f"no group of shards answers ({why}): try again soon")
