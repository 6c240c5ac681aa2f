"""Single images of a generation: their rows, what repeats them, and a close look at one beside a query."""

import asyncio

import numpy as np

from index.expansion import ExpansionSettings
from index.group import Row
from index.rerank import Hit
from ingest.errors import BadInput
from ingest.outcomes import Rejected
from serve.api import CompareRequest, CompareResponse, DuplicatesResponse, FoundImage, Heat
from serve.backend import Comparison, Reranker
from serve.query import ImageQuery
from serve.refusals import ImageRejected, PartialRefused
from serve.service.course import Course
from serve.service.fanout import FanOut
from serve.service.queries import Resolved, Resolver, check_box
from serve.service.responding import found_image, rows_for, step_evidence
from serve.service.searching import Verdicts
from serve.service.second_looks import Search, SecondLooks
from serve.service.step_plan import labels_of, plan_steps

_HEAT_DECIMALS = 3


class Pairs:
    """For one event loop."""

    def __init__(
        self,
        fan_out: FanOut,
        resolver: Resolver,
        looks: SecondLooks,
        reranker: Reranker,
        verdicts: Verdicts,
    ) -> None:
        self._fan_out, self._resolver, self._looks = fan_out, resolver, looks
        self._reranker, self._verdicts = reranker, verdicts

    async def row(self, course: Course, image_id: int) -> Row:
        """`NotFound` if there is no such image; `PartialRefused` if it may be where nobody answers."""
        return (await self._resolver.located(course, [image_id]))[image_id]

    async def image(self, course: Course, image_id: int) -> FoundImage:
        row = await self.row(course, image_id)
        return found_image(course.view, Hit(image_id, row.place, 1.0, 1.0), row, 0, None, points=False)

    async def duplicates(
        self, course: Course, image_id: int, threshold: float, top: int
    ) -> DuplicatesResponse:
        """The images whose stored vectors are so similar, the most similar first, among the `top` that the
        index finds.

        Raises:
            NotFound, PartialRefused: as `row`; part of the answer is none.
        """
        row = await self.row(course, image_id)
        own = await self._resolver.stored(course, row, ())
        search = Search((), (), top, top, None, None, frozenset([image_id]))
        found = await self._looks.search(course, search, own.vector)
        hits = await self._exact(course, own, found.hits)
        near = [hit for hit in hits if hit.similarity >= threshold]
        rows = await rows_for(course, self._fan_out, near, found.rows)
        if course.partial:
            raise PartialRefused(course.coverage, course.missing_shards, course.skipped)
        results = [
            found_image(course.view, hit, rows[hit.image_id], rank, None, points=False)
            for rank, hit in enumerate(near, start=1)
        ]
        return DuplicatesResponse(
            generation=course.view.number, image_id=str(image_id), threshold=threshold, duplicates=results
        )

    async def _exact(self, course: Course, own: Resolved, hits: list[Hit]) -> list[Hit]:
        """The hits by the similarity of what is stored, instead of what the index estimates."""
        if not hits:
            return []
        with course.stage("read"):
            async with asyncio.timeout_at(course.deadline.at):
                vectors = await self._reranker.vectors(course.view.number, [hit.place for hit in hits])
        products = np.clip(vectors @ own.vector, -1, 1).tolist()
        exact = [
            Hit(hit.image_id, hit.place, product, product)
            for hit, product in zip(hits, products, strict=True)
        ]
        return sorted(exact, key=lambda hit: (-hit.score, hit.image_id))

    async def compare(
        self, course: Course, request: CompareRequest, image: ImageQuery | None, request_id: str
    ) -> CompareResponse:
        """The closest look at a query image and one of the gallery.

        Raises:
            BadInput: not exactly one query, or a box without an upload, or ready-made vectors.
            ImageRejected: either image cannot be looked at. NotFound: there is no such image.
        """
        if (image is None) == (request.query_id is None):
            raise BadInput("give one query to compare with: upload or query_id")
        if request.box is not None:
            check_box(request.box)
            if image is None:
                raise BadInput("a box goes with an upload: leave it out, or upload the image")
        recipe = course.view.generation.recipe
        planned = plan_steps(recipe, request.rerank, None, vectors_only=False)
        steps = tuple(step for step in planned if not isinstance(step, ExpansionSettings))
        ids = [int(each) for each in (request.image_id, request.query_id) if each is not None]
        rows = await self._resolver.located(course, ids)
        query = (
            await self._resolver.upload(course, image, request.box, labels_of(steps))
            if image is not None
            else await self._resolver.stored(course, rows[ids[1]], labels_of(steps))
        )
        if query.seen is None:
            raise BadInput(f"image {query.info.name} has no features to compare: choose another")
        row = rows[ids[0]]
        with course.stage("rerank"):
            async with asyncio.timeout_at(course.deadline.at):
                found = await self._reranker.compare(course.view.number, steps, query.seen, row.place)
        if isinstance(found, Rejected):
            raise ImageRejected(f"image {row.image_id}", found)
        score = found.similarity + sum(each.added for each in found.evidence)
        hit = Hit(row.image_id, row.place, found.similarity, score, found.evidence)
        verdict = self._verdicts.of(course.view, steps)
        result = found_image(course.view, hit, row, 0, verdict, points=True)
        return _response(course, query, result, found, request_id)


def _response(
    course: Course, query: Resolved, result: FoundImage, found: Comparison, request_id: str
) -> CompareResponse:
    heat = None
    if found.heat is not None:
        here, there = (np.round(each.astype(np.float64), _HEAT_DECIMALS).tolist() for each in found.heat)
        heat = Heat(query=here, image=there)
    return CompareResponse(
        generation=course.view.number,
        image=result,
        query=query.info,
        width=found.width,
        height=found.height,
        steps=[step_evidence(each, points=True) for each in found.evidence],
        homography=None if found.homography is None else found.homography.tolist(),
        heat=heat,
        request_id=request_id,
    )
