"""What a request searches with: uploads, images of the gallery and vectors become vectors and features."""

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from index.combine import combine
from index.group import Row
from index.projection import l2_normalised
from index.steps import Query
from ingest.errors import BadInput, NotFound
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected
from serve.api import MOST_QUERIES, Box, QueryInfo, SearchRequest
from serve.backend import Encoder, Reranker
from serve.query import ImageQuery
from serve.refusals import DeadlineExceeded, ImageRejected, PartialRefused
from serve.service.course import Course
from serve.service.fanout import FanOut
from serve.service.together import together

_WEAK = "{} has only {} local features: what matches it may do so by chance; use a larger or sharper image"

_LEAST_NORM, _MOST_NORM = 1e-18, 1e18  # between them squares are numbers in single precision


@dataclass(frozen=True)
class Resolved:
    """One query. `seen`: with features that steps can look at; None where there are none."""

    info: QueryInfo
    vector: Float32[np.ndarray, " d"]
    seen: Query | None = None


@dataclass(frozen=True)
class Wanted:
    """All queries of a request.

    vector: that stands for all. own: images of the gallery among them, like or unlike, which are no answers.
    """

    queries: tuple[Resolved, ...]
    vector: Float32[np.ndarray, " d"]
    own: frozenset[int]

    @property
    def seen(self) -> list[Query]:
        """What steps can look at."""
        return [query.seen for query in self.queries if query.seen is not None]


class Resolver:
    """Resolves what requests name. For one event loop."""

    def __init__(self, fan_out: FanOut, encoder: Encoder, reranker: Reranker, weak_features: int) -> None:
        self._fan_out, self._encoder, self._reranker = fan_out, encoder, reranker
        self._weak_features = weak_features

    async def wanted(
        self, course: Course, request: SearchRequest, images: Sequence[ImageQuery], labels: Collection[str]
    ) -> Wanted:
        """What a request searches with.

        Args:
            images: its uploads.
            labels: of features that steps will read.

        Raises:
            BadInput: nothing or too much to search with, a vector of another dimension, a box that is none.
            ImageRejected: an upload cannot be used. NotFound: there is no such image.
            Unavailable: what is stored of an image cannot be read.
        """
        like, unlike = _ids(request.image_ids), _ids(request.unlike_ids)
        self._check(request, images)
        vectors = [_checked_vector(each, course.view.dim) for each in request.vectors]
        rows = await self.located(course, [*like, *unlike])
        queries = await together(
            [
                *(self.upload(course, image, request.box, labels) for image in images),
                *(self.stored(course, rows[image], labels) for image in like),
            ]
        )
        queries += [
            Resolved(QueryInfo(kind="vector", name=str(at)), vector) for at, vector in enumerate(vectors)
        ]
        vector = queries[0].vector
        if len(queries) > 1 or unlike:
            against = await self._vectors(course, [rows[image] for image in unlike])
            vector = combine(np.stack([query.vector for query in queries]), against)
        return Wanted(tuple(queries), vector, frozenset([*like, *unlike]))

    @staticmethod
    def _check(request: SearchRequest, images: Sequence[ImageQuery]) -> None:
        count = len(images) + len(request.image_ids) + len(request.vectors)
        if count == 0:
            raise BadInput("there is nothing to search with: give uploads, image_ids or vectors")
        if count > MOST_QUERIES:
            raise BadInput(f"{count} queries are more than {MOST_QUERIES}: give fewer of the same thing")
        if request.box is not None:
            check_box(request.box)
            if len(images) != 1 or count != 1:
                raise BadInput("a box goes with exactly one upload and no other query: leave one of them out")

    async def located(self, course: Course, ids: Sequence[int]) -> dict[int, Row]:
        """The rows of some images.

        Raises:
            NotFound: the generation has no such image.
            PartialRefused: it may be in a shard that does not answer.
            DeadlineExceeded: nor did it in time.
        """
        if not ids:
            return {}
        groups = range(len(course.view.shares))
        found = await self._fan_out.rows(course, list(dict.fromkeys(ids)), groups, course.deadline)
        course.check_gone()
        for image in ids:
            if image not in found:
                if course.late:
                    raise DeadlineExceeded(
                        f"image {image} was not found before the deadline: allow more time (timeout_ms)"
                    )
                if course.missing:
                    raise PartialRefused(course.coverage, course.missing_shards)
                raise NotFound(f"generation {course.view.number} has no image {image}")
        course.missing.clear()  # all that was asked for is there; searching asks them again
        return found

    async def upload(
        self, course: Course, image: ImageQuery, box: Box | None, labels: Collection[str]
    ) -> Resolved:
        """An image that was sent along; `ImageRejected` if it cannot be used."""
        if box is not None:
            image = replace(image, box=box)
        async with asyncio.timeout_at(course.deadline.at):
            found = await self._encoder.encode(course.view.number, image, labels)
        if isinstance(found, Rejected):
            raise ImageRejected(image.name, found)
        for stage, seconds in found.seconds.items():
            course.took(stage, seconds)
        course.warn(found.warning)
        info = self._info("upload", image.name, found.query.features)
        if info.weak:
            course.warn(_WEAK.format(image.name or "the image", _local(found.query.features)))
        return Resolved(info, found.query.vector, found.query)

    async def stored(self, course: Course, row: Row, labels: Collection[str]) -> Resolved:
        """An image of the gallery, by what is stored of it; without features where those cannot be had."""
        name, number = str(row.image_id), course.view.number
        with course.stage("read"):
            async with asyncio.timeout_at(course.deadline.at):
                found = await self._reranker.stored(number, row.place, labels)
                if isinstance(found, Rejected):
                    (vector,) = await self._reranker.vectors(number, [row.place])
                    course.warn(f"image {name} has no features to look at ({found.reason}): {found.detail}")
                    return Resolved(QueryInfo(kind="image", name=name), vector)
        return Resolved(self._info("image", name, found.features), found.vector, found)

    async def _vectors(self, course: Course, rows: Sequence[Row]) -> Float32[np.ndarray, "n d"] | None:
        if not rows:
            return None
        with course.stage("read"):
            async with asyncio.timeout_at(course.deadline.at):
                return await self._reranker.vectors(course.view.number, [row.place for row in rows])

    def _info(self, kind: str, name: str, features: ImageFeatures) -> QueryInfo:
        local = _local(features)
        return QueryInfo(
            kind="upload" if kind == "upload" else "image",
            name=name,
            width=features.width or None,
            height=features.height or None,
            features={
                label: len(arrays["descriptors"])
                for label, arrays in sorted(features.by_label.items())
                if "descriptors" in arrays
            },
            weak=None if local is None else local < self._weak_features,
        )


def check_box(box: Box) -> None:
    """`BadInput` unless it spans something."""
    x0, y0, x1, y1 = box
    if not (all(map(math.isfinite, box)) and x0 < x1 and y0 < y1):
        raise BadInput("the box is empty: give x0 < x1 and y0 < y1 in pixels, (0, 0) at the top left")


def _ids(given: Sequence[str]) -> list[int]:
    """Each once, in their order."""
    return list(dict.fromkeys(map(int, given)))


def _checked_vector(given: Sequence[float], dim: int) -> Float32[np.ndarray, " d"]:
    if dim and len(given) != dim:
        raise BadInput(f"a query vector has {len(given)} dimensions, and the gallery's have {dim}")
    if not _LEAST_NORM <= math.hypot(*given) <= _MOST_NORM:
        raise BadInput("a query vector is zero, too large, or has components that are no numbers")
    normalised: np.ndarray = l2_normalised(np.array([given], np.float32))[0]
    return normalised


def _local(features: ImageFeatures) -> int | None:
    """How many local features there are; None where none were looked for."""
    counts = [len(arrays["keypoints"]) for arrays in features.by_label.values() if "keypoints" in arrays]
    return max(counts) if counts else None
