"""Hits become the results of an answer: rows, verdicts, near-duplicates, thumbnails' addresses."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from index.calibration import Calibration
from index.group import Row
from index.near_duplicates import groups
from index.rerank import Hit
from index.steps import Evidence
from ingest.errors import Corrupt, NotFound, Unavailable
from serve.answers import printable, result_fields, step_fields
from serve.api import FoundImage, StepEvidence, Verdict
from serve.backend import Reranker
from serve.refusals import Overloaded
from serve.searcher import Result
from serve.service.course import Course
from serve.service.fanout import FanOut
from serve.service.view import View

_POINT_DECIMALS = 2


def found_image(
    view: View, hit: Hit, row: Row, rank: int, calibration: Calibration | None, points: bool
) -> FoundImage:
    """A result as the API gives it. `points`: with those of each step that found some."""
    key = row.key if row.key.isascii() else printable(row.key)
    uri = printable(view.uri(row.source, row.key))
    result = Result(
        hit.image_id, hit.score, uri, row.source, key, row.metadata, rank, hit.similarity, hit.evidence
    )
    verdict = None
    if calibration is not None:
        label, probability = calibration.verdict(hit.score)
        verdict = Verdict(label=label, probability=round(probability, 4))
    fields = result_fields(result)
    fields["image_id"] = str(hit.image_id)
    fields["steps"] = [step_evidence(each, points) for each in hit.evidence]
    return FoundImage(**fields, verdict=verdict, thumbnail=f"/v1/images/{hit.image_id}/thumbnail")


def step_evidence(evidence: Evidence, points: bool) -> StepEvidence:
    """What a step found, as the API gives it."""
    pairs = None
    if points and evidence.points is not None:
        here, there = (_pairs(each) for each in evidence.points)
        pairs = (here, there)
    return StepEvidence(**step_fields(evidence), points=pairs)


def _pairs(points: np.ndarray) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.round(points.astype(np.float64), _POINT_DECIMALS).tolist()]


async def rows_for(
    course: Course, fan_out: FanOut, hits: Sequence[Hit], known: Mapping[int, Row]
) -> dict[int, Row]:
    """The row of each hit; those that did not come with the scan are fetched from their groups.

    A hit whose group does not answer any more has none.
    """
    lacking = [hit for hit in hits if hit.image_id not in known]
    if not lacking:
        return dict(known)
    with course.stage("metadata"):
        there = {course.view.group_of(hit.place.part) for hit in lacking}
        fetched = await fan_out.rows(course, [hit.image_id for hit in lacking], there, course.deadline)
    course.check_gone()
    return {**known, **fetched}


async def fold(
    course: Course, reranker: Reranker, hits: Sequence[Hit], results: Sequence[FoundImage], threshold: float
) -> None:
    """Marks the results that repeat a better one; leaves them as they are where the store does not answer."""
    if len(hits) < 2:
        return
    try:
        with course.stage("read"):
            async with asyncio.timeout_at(course.deadline.at):
                vectors = await reranker.vectors(course.view.number, [hit.place for hit in hits])
    except (Unavailable, TimeoutError, Overloaded, NotFound, Corrupt):
        course.warn("near-duplicates are not marked: the store did not answer")
        return
    for at, first in enumerate(groups(vectors, threshold).tolist()):
        if first != at:
            results[at].duplicate_of = results[first].image_id
