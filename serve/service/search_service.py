"""The service: a request in, an answer of one generation out, whatever computes for it.

A request is admitted, gets a deadline, and is pinned to the generation that is served then. Where the
replicas have dropped that generation meanwhile, it begins again with the newer one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self, TypeVar

from index.calibration import Calibration
from index.group import Row
from ingest.errors import NotFound, Unavailable
from ingest.gallery import Gallery
from serve.api import (
    CompareRequest,
    CompareResponse,
    DuplicatesResponse,
    FoundImage,
    GenerationInfo,
    Readiness,
    SearchRequest,
    SearchResponse,
)
from serve.backend import Backend
from serve.metrics import Metrics, NoMetrics
from serve.query import ImageQuery
from serve.refusals import DeadlineExceeded
from serve.service.admission import Gate
from serve.service.batching import Lane
from serve.service.course import Course, GenerationGone
from serve.service.deadline import Deadline
from serve.service.fanout import FanOut
from serve.service.flip import Flip
from serve.service.loading import Loader
from serve.service.pairs import Pairs
from serve.service.peers import Peers
from serve.service.queries import Resolver
from serve.service.searching import Searching, Verdicts
from serve.service.second_looks import SecondLooks
from serve.service.settings import ServiceSettings
from serve.service.state_of import generation_info, readiness
from serve.service.supervise import Supervisor
from serve.service.view import Reading
from serve.service.watch import GalleryWatch, Watch

_LOG = logging.getLogger(__name__)
_BEGINNINGS = 5  # generations do not change so often within one deadline
T = TypeVar("T")


def _clock() -> float:
    """Deadlines are kept by the event loop's timers, so they are counted by its clock."""
    return asyncio.get_running_loop().time()


class SearchService:
    """Answers searches in the newest generation of a gallery. An async context manager; for one event loop.

    Args:
        calibrations: what scores mean; where none fits, results have no verdict.
        watch: instead of `gallery`, where generations come from.
    """

    def __init__(
        self,
        gallery: Gallery,
        backend: Backend,
        metrics: Metrics | None = None,
        settings: ServiceSettings | None = None,
        calibrations: Sequence[Calibration] = (),
        watch: Watch | None = None,
    ) -> None:
        self.metrics: Metrics = metrics or NoMetrics()
        self.settings = settings or ServiceSettings()
        self._encoder = backend.encoder
        self._running: list[asyncio.Task[None]] = []
        self._verdicts = Verdicts(calibrations)
        self._connect(backend, watch or GalleryWatch(gallery))

    def _connect(self, backend: Backend, watch: Watch) -> None:
        settings, metrics, reranker = self.settings, self.metrics, backend.reranker
        self._groups = [
            Peers(group, replicas, _clock, settings, metrics) for group, replicas in enumerate(backend.groups)
        ]
        loader = Loader(settings, metrics)
        self._flip = Flip(watch, self._groups, loader, settings, metrics, self._warm)
        self._supervisor = Supervisor(self._flip, self._groups, loader, _clock, settings, metrics)
        self._fan_out = fan_out = FanOut([Lane(peers, _clock, settings) for peers in self._groups])
        resolver = Resolver(fan_out, backend.encoder, reranker, settings.weak_features)
        looks = SecondLooks(fan_out, reranker, settings.scan_share, settings.step_share)
        self._searching = Searching(
            fan_out, resolver, looks, reranker, self._verdicts, settings.near_duplicates
        )
        self._pairs = Pairs(fan_out, resolver, looks, reranker, self._verdicts)
        self._cheap = Gate("vector", settings.vector_concurrency, settings.vector_queue, _clock, metrics)
        self._dear = Gate("image", settings.image_concurrency, settings.image_queue, _clock, metrics)

    # -- life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the first generation; from then on newer ones are followed.

        Raises:
            NotFound, Corrupt, BadInput, OverBudget: no generation could be loaded.
            Unavailable: the gallery or the replicas did not answer for too long.
        """
        try:
            await self._flip.start()
        except BaseException:
            self._flip.close()
            raise
        work = (self._flip.run(), self._supervisor.run())
        self._running = [asyncio.get_running_loop().create_task(each) for each in work]

    async def _warm(self, reading: Reading) -> None:
        """Readies the encoder; one that is away does not hold up a generation."""
        if reading.generation.recipe.features is None:
            return
        try:
            async with asyncio.timeout(self.settings.settle_s):  # it goes on after that
                await self._encoder.warm(reading.number)
        except (Unavailable, TimeoutError) as error:
            why = str(error) or "it takes long"
            _LOG.warning("the encoder is not ready for generation %d: %s", reading.number, why)

    async def close(self) -> None:
        """Ends all work; requests under way are cancelled with their tasks by whoever runs them."""
        if not self._running:
            return
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        self._supervisor.close()
        self._flip.close()
        self._fan_out.close()
        await asyncio.gather(*running, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- requests -----------------------------------------------------------------------------------------

    async def search(
        self, request: SearchRequest, images: Sequence[ImageQuery], request_id: str
    ) -> SearchResponse:
        """The answer to a search.

        Args:
            images: the request's uploads, in its order.

        Raises:
            BadInput, ImageRejected: the request, or an image of it, cannot be used.
            NotFound: there is no such image.
            Overloaded: come back later. DeadlineExceeded: there was no answer in time.
            PartialRefused: only part could be had, and the request wants all.
            NotReady, Unavailable: nothing can be searched, or what is stored cannot be read, now.
        """
        began = _clock()
        dear = bool(images) or self._looks_again(request)

        async def answer(course: Course) -> SearchResponse:
            return await self._searching.search(course, request, images, request_id)

        found = await self._admitted(answer, dear, request.timeout_ms)
        found.took_ms = round(1e3 * (_clock() - began), 3)
        if found.missing_shards:
            self.metrics.count("partial", why="shards")
        if found.skipped_steps:
            self.metrics.count("partial", why="steps")
        return found

    async def image(self, image_id: int) -> FoundImage:
        """An image of the gallery; `NotFound` if there is no such."""
        return await self._admitted(lambda course: self._pairs.image(course, image_id), dear=False)

    async def row(self, image_id: int) -> Row:
        """Place, key and metadata of an image; `NotFound` if there is no such."""
        return await self._admitted(lambda course: self._pairs.row(course, image_id), dear=False)

    async def duplicates(
        self, image_id: int, threshold: float | None = None, top: int = 100
    ) -> DuplicatesResponse:
        """The images that repeat one: whose stored vectors are so similar, at most `top`."""
        least = self.settings.near_duplicates if threshold is None else threshold
        return await self._admitted(
            lambda course: self._pairs.duplicates(course, image_id, least, top), dear=False
        )

    async def compare(
        self, request: CompareRequest, image: ImageQuery | None, request_id: str
    ) -> CompareResponse:
        """The closest look at a query image and one of the gallery. `image`: the request's upload."""
        return await self._admitted(
            lambda course: self._pairs.compare(course, request, image, request_id), dear=True
        )

    async def _admitted(
        self, work: Callable[[Course], Awaitable[T]], dear: bool, timeout_ms: int | None = None
    ) -> T:
        """Work within the limits of its kind and its deadline, begun again where its generation is gone."""
        settings = self.settings
        default = settings.image_timeout_ms if dear else settings.vector_timeout_ms
        timeout = (timeout_ms or default) / 1e3
        kept = min(settings.answer_share * timeout, settings.answer_most_s)
        deadline = Deadline(_clock() + timeout - kept, _clock)
        async with (self._dear if dear else self._cheap).admitted(deadline):
            return await self._pinned(work, deadline)

    async def _pinned(self, work: Callable[[Course], Awaitable[T]], deadline: Deadline) -> T:
        for _ in range(_BEGINNINGS):
            view = self._flip.view
            course = Course(view, deadline, self.metrics, partial(self._serves_newer, view.number))
            try:
                if deadline.over:
                    break
                return await work(course)
            except GenerationGone:
                continue
            except NotFound:
                if not course.newer():
                    raise
            except TimeoutError:
                break
        raise DeadlineExceeded("there was no answer before the deadline: allow more time (timeout_ms)")

    def _serves_newer(self, number: int) -> bool:
        return self._flip.number > number

    def _looks_again(self, request: SearchRequest) -> bool:
        """Whether a search without uploads is as dear as one with them."""
        recipe_steps = self._flip.view.generation.recipe.steps
        return bool(request.image_ids) and request.rerank != "none" and bool(request.rerank or recipe_steps)

    # -- state --------------------------------------------------------------------------------------------

    def generation(self) -> GenerationInfo:
        """What is served, and what stands in the way of a newer generation; `NotReady` before the first."""
        return generation_info(self._flip, self._groups, self._verdicts)

    async def readiness(self) -> Readiness:
        """Whether every shard of the served generation answers: by the last look at every replica."""
        if not self._running:
            return Readiness(ready=False, detail="the first generation is not loaded yet")
        return readiness(self._flip, self._groups)
