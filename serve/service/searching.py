"""One search in one generation, from a request to its answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from index.calibration import Calibration, find_calibration
from index.filters import Filter, check_filter, parse_filter
from index.steps import StepSettings
from serve.api import FoundImage, SearchRequest, SearchResponse
from serve.backend import Reranker
from serve.query import ImageQuery
from serve.refusals import PartialRefused
from serve.service.course import Course
from serve.service.fanout import FanOut
from serve.service.queries import Resolver, Wanted
from serve.service.responding import fold, found_image, rows_for
from serve.service.second_looks import Found, Search, SecondLooks
from serve.service.step_plan import depth_of, labels_of, plan_steps
from serve.service.view import View

_VERDICTS_KEPT = 64


class Verdicts:
    """Finds the calibration of a way of scoring; those looked for before are remembered."""

    def __init__(self, calibrations: Sequence[Calibration]) -> None:
        self._calibrations = calibrations
        self._found: dict[tuple[int, tuple[StepSettings, ...]], Calibration | None] = {}

    def of(self, view: View, steps: tuple[StepSettings, ...]) -> Calibration | None:
        key = (view.number, steps)
        if key not in self._found:
            if len(self._found) >= _VERDICTS_KEPT:
                self._found.clear()
            self._found[key] = find_calibration(self._calibrations, view.generation.recipe, steps)
        return self._found[key]


class Searching:
    """Searches. For one event loop."""

    def __init__(
        self,
        fan_out: FanOut,
        resolver: Resolver,
        looks: SecondLooks,
        reranker: Reranker,
        verdicts: Verdicts,
        near_duplicates: float,
    ) -> None:
        self._fan_out, self._resolver, self._looks = fan_out, resolver, looks
        self._reranker, self._verdicts, self._near_duplicates = reranker, verdicts, near_duplicates

    async def search(
        self, course: Course, request: SearchRequest, images: Sequence[ImageQuery], request_id: str
    ) -> SearchResponse:
        """The answer to a request; all of it from `course.view`.

        Raises:
            What `Resolver.wanted` and `SecondLooks.search` raise.
            BadInput: a filter or a step that is none.
            PartialRefused: not all could be had, and the request wants all.
        """
        view = course.view
        where = checked_filter(request.where, view)
        vectors_only = not images and not request.image_ids
        steps = plan_steps(view.generation.recipe, request.rerank, request.depth, vectors_only)
        wanted = await self._resolver.wanted(course, request, images, labels_of(steps))
        if not wanted.seen and not vectors_only:
            steps = ()  # there are images, and nothing of them that a step could look at
        search = _search(request, wanted, steps, where)
        found = await self._looks.search(course, search, wanted.vector)
        results = await self._results(course, request, found)
        if course.partial and not request.allow_partial:
            raise PartialRefused(course.coverage, course.missing_shards, course.skipped)
        return _response(course, request, wanted, results, request_id)

    async def _results(self, course: Course, request: SearchRequest, found: Found) -> list[FoundImage]:
        hits = found.hits[: request.top]
        rows = await rows_for(course, self._fan_out, hits, found.rows)
        hits = [hit for hit in hits if hit.image_id in rows]
        calibration = self._verdicts.of(course.view, found.done)
        with course.stage("metadata"):
            results = [
                found_image(course.view, hit, rows[hit.image_id], rank, calibration, request.explain)
                for rank, hit in enumerate(hits, start=1)
            ]
        if request.fold:
            await fold(course, self._reranker, hits, results, self._near_duplicates)
        return results


def checked_filter(where: str | Mapping[str, Any] | None, view: View) -> Filter | None:
    """A request's filter; `BadInput` unless it fits the columns of the generation."""
    parsed = parse_filter(where)
    if parsed is not None:
        check_filter(parsed, view.columns)
    return parsed


def _search(
    request: SearchRequest, wanted: Wanted, steps: tuple[StepSettings, ...], where: Filter | None
) -> Search:
    return Search(
        seen=wanted.seen,
        steps=steps,
        top=request.top,
        depth=max(request.top, depth_of(steps)),
        nprobe=request.nprobe,
        where=where,
        out=wanted.own.union(map(int, request.exclude_ids)),
    )


def _response(
    course: Course, request: SearchRequest, wanted: Wanted, results: list[FoundImage], request_id: str
) -> SearchResponse:
    """The answer. `took_ms` is for whoever knows when the request came."""
    timings = {stage: round(1e3 * seconds, 3) for stage, seconds in course.seconds.items()}
    return SearchResponse(
        generation=course.view.number,
        queries=[query.info for query in wanted.queries],
        results=results,
        partial=course.partial,
        coverage=course.coverage,
        missing_shards=course.missing_shards,
        skipped_steps=course.skipped,
        warnings=course.warnings,
        request_id=request_id,
        took_ms=0.0,
        timings_ms=timings if request.explain else {},
    )
