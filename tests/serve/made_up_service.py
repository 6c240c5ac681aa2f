"""A service over a made-up backend, and questions to it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from index.projection import l2_normalised
from ingest.gallery import Gallery
from ingest.store import Store
from serve.api import SearchRequest, SearchResponse
from serve.metrics import NoMetrics
from serve.service.search_service import SearchService
from serve.service.settings import ServiceSettings
from tests.serve.fake_backend import DIM, LISTS, World, best
from tests.serve.virtual_time import run_virtually

Test = Callable[[SearchService], Awaitable[None]]


class Counted:
    """Metrics that remember what was counted: the total by name, and by name and labels."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self._checked = NoMetrics()

    def observe(self, stage: str, seconds: float) -> None:
        self._checked.observe(stage, seconds)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        self._checked.count(name, by, **labels)
        self.counts[name] += int(by)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._checked.gauge(name, value, **labels)
        self.gauges[name] = value

    def text(self) -> None:
        return None


NO_GALLERY = Gallery(Store("memory://nothing"), "none")


def service_of(world: World, metrics: Counted | None = None, **settings: Any) -> SearchService:
    """A service over a made-up world, not started."""
    wanted = ServiceSettings(**settings)
    return SearchService(NO_GALLERY, world.backend, metrics, wanted, watch=world.watch)


def query_vector(seed: int) -> np.ndarray:
    """(4,) float32, L2-normalised."""
    drawn = np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32)
    vector: np.ndarray = l2_normalised(drawn)[0]
    return vector


async def ask(service: SearchService, seed: int = 0, **options: Any) -> SearchResponse:
    """A search by a vector that follows from a seed."""
    request = SearchRequest(vectors=[query_vector(seed).tolist()], **options)
    return await service.search(request, [], f"request-{seed}")


def ids(response: SearchResponse) -> list[int]:
    return [int(found.image_id) for found in response.results]


def served(world: World, test: Test, metrics: Counted | None = None, **settings: Any) -> None:
    """Runs a test with a started service, by a clock that jumps."""

    async def run() -> None:
        async with service_of(world, metrics, **{"poll_s": 0.5, **settings}) as service:
            await test(service)

    run_virtually(run())


def generations_in(response: SearchResponse) -> set[int]:
    return {found.metadata["generation"] for found in response.results}


def check(response: SearchResponse, seed: int) -> None:
    """An answer is of the generation that it names, and whole."""
    assert generations_in(response) == {response.generation}
    assert ids(response) == best(response.generation, query_vector(seed), 10, range(4))
    assert response.coverage == 1.0


async def steady(service: SearchService, answers: list[SearchResponse], every_s: float = 0.03) -> None:
    """Asks for ever; a request that fails ends it with its error."""
    async with asyncio.TaskGroup() as tasks:
        for seed in range(10**6):
            tasks.create_task(_one(service, seed, answers))
            await asyncio.sleep(every_s)


async def _one(service: SearchService, seed: int, answers: list[SearchResponse]) -> None:
    found = await ask(service, seed, nprobe=LISTS)
    answers.append(found)
    if not found.partial:
        check(found, seed)
    assert generations_in(found) <= {found.generation}


async def stopped(task: "asyncio.Task[None]") -> None:
    """Ends steady questions; raises what any of them met."""
    if not task.done():
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
