"""Whatever fails, is slow or is given up: answers are honest, in time, and nothing is left behind."""

import asyncio
import random
from typing import Any

import pytest

from ingest.errors import Corrupt, ReseenError, Unavailable
from serve.api import SearchRequest, SearchResponse
from serve.service.search_service import SearchService
from tests.serve.fake_backend import LISTS, FakeReplica, World, image_of
from tests.serve.made_up_service import ask, check, generations_in, served

REQUESTS = 500
GENERATIONS = 8


class Disorder:
    """A world whose replicas fail in every way, until it is `over`; all by chance, from a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        groups, replicas = self.chance.choice([(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
        self.world = World(groups, replicas, GENERATIONS)
        self.over = False
        for replica in self.world.all:
            replica.scan = self._scan(replica)  # type: ignore[method-assign]

    def _scan(self, replica: FakeReplica) -> Any:
        async def scan(generation: int, batch: bytes) -> bytes:
            match 0 if self.over else self.chance.randrange(20):
                case 1:
                    raise Unavailable("not now")
                case 2:
                    raise RuntimeError("a bug")
                case 3:
                    return b"no answer at all"
                case 4:
                    await asyncio.sleep(self.chance.choice([0.1, 1.0, 5.0]))
            return await FakeReplica.scan(replica, generation, batch)

        return scan

    async def run(self) -> None:
        """Makes trouble for ever."""
        chance, watch = self.chance, self.world.watch
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.5))
            replica = chance.choice(self.world.all)
            match chance.randrange(7):
                case 0:
                    replica.dead = True
                case 1:
                    replica.restart()
                case 2:
                    replica.stopped = not replica.stopped
                case 3:
                    replica.scan_s = chance.choice([0.001, 0.02, 0.2])
                case 4 if watch.published[-1] < GENERATIONS:
                    watch.published.append(watch.published[-1] + 1)
                    if chance.random() < 0.3:
                        replica.refuses[watch.published[-1]] = Corrupt("damaged")
                case 5:
                    self.world.images.delay_s = chance.choice([0.0, 0.05, 2.0])
                case _:
                    self.world.images.away = chance.random() < 0.3

    def end(self) -> None:
        self.over, self.world.images.away = True, False
        for replica in self.world.all:
            replica.stopped = replica.dead = False
            replica.scan_s = 0.001

    async def request(self, service: SearchService, number: int) -> None:
        """One of any kind; it is answered, or refused by an error of the tree."""
        chance = self.chance
        image = image_of(chance.randrange(4), chance.randrange(11))
        match chance.randrange(4):
            case 0:
                work: Any = service.duplicates(image, 0.5)
            case 1:
                work = service.image(image)
            case 2:
                ids: dict[str, Any] = {"image_ids": [image], "unlike_ids": [7], "exclude_ids": [1, 2]}
                work = self._search(service, None, **ids)
            case _:
                work = self._search(service, number)
        try:
            await work
        except ReseenError:
            return

    async def _search(self, service: SearchService, seed: int | None, **named: Any) -> None:
        chance, loop = self.chance, asyncio.get_running_loop()
        named |= {
            "timeout_ms": chance.choice([1, 20, 100, 500, 2000]),
            "nprobe": chance.choice([1, 2, LISTS]),
            "top": chance.choice([1, 20, 1000]),
            "rerank": chance.choice(["none", "expand", "expand,expand"]),
            "allow_partial": chance.random() < 0.7,
            "fold": chance.random() < 0.2,
        }
        since = loop.time()
        try:
            if seed is None:
                request = SearchRequest.model_validate(named)
                found = await service.search(request, [], "request")
            else:
                found = await ask(service, seed, **named)
        finally:
            assert loop.time() - since <= named["timeout_ms"] / 1e3 + 1e-9
        honest(found, named["allow_partial"])


def honest(found: SearchResponse, allow_partial: bool) -> None:
    """No result is of another generation, or of a shard that is said to be missing."""
    assert generations_in(found) <= {found.generation}
    shards = {f"shard-{found.generation}-{int(each.image_id) // 1000}" for each in found.results}
    assert not shards & set(found.missing_shards)
    assert found.coverage == pytest.approx(1 - len(found.missing_shards) / 4)
    assert found.partial == bool(found.missing_shards or found.skipped_steps)
    assert allow_partial or not found.partial


@pytest.mark.parametrize("seed", range(6))
def test_any_disorder_ends_and_leaves_nothing(seed: int) -> None:
    disorder = Disorder(seed)

    async def test(service: SearchService) -> None:
        chance = disorder.chance
        trouble = asyncio.create_task(disorder.run())
        asked: list[asyncio.Task[None]] = []
        for number in range(REQUESTS):
            asked.append(asyncio.create_task(disorder.request(service, number)))
            await asyncio.sleep(chance.expovariate(60))
            if chance.random() < 0.2:
                chance.choice(asked[-5:]).cancel()
        trouble.cancel()
        disorder.end()
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        await asyncio.sleep(60)
        for lane in service._fan_out.lanes:
            assert lane.idle and not lane._pending
            assert not any(peer.in_flight or peer.waits or peer.down for peer in lane.peers.all)
        for gate in (service._cheap, service._dear):
            assert (gate.running, gate.waiting) == (0, 0)
        assert (await service.readiness()).ready
        check(await ask(service, 5, nprobe=LISTS), 5)

    served(disorder.world, test, vector_concurrency=8, vector_queue=16)
