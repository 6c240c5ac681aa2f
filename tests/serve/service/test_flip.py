"""New generations without a gap: one generation an answer, whatever is loaded, refused or restarted."""

import asyncio
import random

import pytest

from ingest.errors import Corrupt, ReseenError, Unavailable
from serve.api import SearchResponse
from serve.service.search_service import SearchService
from tests.serve.fake_backend import LISTS, World, best
from tests.serve.made_up_service import (
    Counted,
    ask,
    check,
    generations_in,
    ids,
    query_vector,
    served,
    steady,
    stopped,
)

# -- side by side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "replicas"), [(1, 1), (2, 1), (3, 2)])
def test_twenty_flips_under_steady_questions_fail_none_and_mix_none(groups: int, replicas: int) -> None:
    world, metrics = World(groups, replicas, generations=21), Counted()

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers))
        for number in range(2, 22):
            world.watch.published.append(number)
            await asyncio.sleep(1.5)
            assert service.generation().number == number
        await stopped(asking)
        numbers = [answer.generation for answer in answers]
        assert set(numbers) == set(range(1, 22))
        assert not any(answer.partial for answer in answers)
        assert metrics.counts["flips"] == 20
        assert metrics.gauges["generation"] == 21

    served(world, test, metrics)


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_of_flips_restarts_and_slowness_mixes_generations(seed: int) -> None:
    """Random schedules: replicas die, stop, come back empty and slow down while generations come and go."""
    chance = random.Random(seed)
    groups, replicas = chance.choice([(1, 2), (2, 2), (3, 1), (2, 3)])
    world = World(groups, replicas, generations=30)

    async def trouble() -> None:
        published = 1
        for _ in range(60):
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            replica = chance.choice(world.all)
            match chance.randrange(6):
                case 0:
                    replica.dead = True
                case 1:
                    replica.restart()
                case 2:
                    replica.stopped = not replica.stopped
                case 3:
                    replica.scan_s = chance.choice([0.001, 0.05, 0.5])
                case 4 if published < 30:
                    published += 1
                    if chance.random() < 0.3:
                        chance.choice(world.all).refuses[published] = Corrupt("damaged")
                    world.watch.published.append(published)
                case _:
                    world.watch.away = not world.watch.away
        world.watch.away = False
        for replica in world.all:
            replica.stopped = replica.dead = False
            replica.scan_s = 0.001

    async def one(service: SearchService, number: int, seen: list[int]) -> None:
        try:
            found = await ask(service, number, nprobe=LISTS)
        except ReseenError:
            return  # with a single replica a group there may be nobody to ask
        seen.append(found.generation)
        assert generations_in(found) <= {found.generation}
        missing = set(found.missing_shards)
        there = [at for at in range(4) if f"shard-{found.generation}-{at}" not in missing]
        assert ids(found) == best(found.generation, query_vector(number), 10, there)
        assert found.coverage == pytest.approx(len(there) / 4)
        assert found.partial == (len(there) < 4)

    async def test(service: SearchService) -> None:
        seen: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            troubling = tasks.create_task(trouble())
            number = 0
            while not troubling.done():
                tasks.create_task(one(service, number, seen))
                number += 1
                await asyncio.sleep(chance.uniform(0.0, 0.05))
        assert len(seen) > 50
        await asyncio.sleep(40)
        final = service.generation().number
        assert final == max(n for n in world.watch.published if str(n) not in service.generation().refused)
        check(await ask(service, nprobe=LISTS), 0)
        assert (await service.readiness()).ready
        assert max(replica.most_loads for replica in world.all) == 1, "one load of a replica at a time"

    served(world, test)


def test_the_view_changes_when_all_groups_are_ready_and_not_before() -> None:
    world = World(groups=2, replicas=1, generations=2)

    async def test(service: SearchService) -> None:
        world.all[1].load_s = 5
        world.watch.published.append(2)
        await asyncio.sleep(4)
        assert (world.all[0].loaded, world.all[1].loaded) == ([1, 2], [1])
        check(found := await ask(service, nprobe=LISTS), 0)
        assert found.generation == 1
        await asyncio.sleep(2.5)
        check(found := await ask(service, nprobe=LISTS), 0)
        assert found.generation == 2

    served(world, test)


def test_a_request_ends_with_the_generation_that_it_began_with() -> None:
    world = World(groups=2, replicas=1, generations=2)

    async def test(service: SearchService) -> None:
        world.all[0].scan_s = 1.2
        asking = asyncio.create_task(ask(service, 3, nprobe=LISTS))
        await asyncio.sleep(0.1)
        world.watch.published.append(2)
        await asyncio.sleep(1)
        assert service.generation().number == 2
        check(found := await asking, 3)
        assert found.generation == 1

    served(world, test)


def test_a_request_whose_generation_was_dropped_begins_again_with_the_newer_one() -> None:
    world = World(groups=2, replicas=1, generations=2)

    async def test(service: SearchService) -> None:
        world.all[1].scan_s = 1.2
        asking = asyncio.create_task(ask(service, 3, nprobe=LISTS, timeout_ms=10_000))
        await asyncio.sleep(0.1)
        world.watch.published.append(2)
        await asyncio.sleep(1)
        world.all[1].loaded.remove(1)
        check(found := await asking, 3)
        assert found.generation == 2

    served(world, test)


def test_memory_that_is_given_back_is_seen() -> None:
    world, metrics = World(groups=1, replicas=2, generations=2), Counted()

    async def test(service: SearchService) -> None:
        world.watch.published.append(2)
        await asyncio.sleep(3)
        assert metrics.gauges["memory_bytes"] == 4, "one for each generation in each replica"
        world.all[0].loaded.remove(1)
        await asyncio.sleep(1)
        assert metrics.gauges["memory_bytes"] == 3

    served(world, test, metrics)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_replica_that_is_stopped_holds_up_a_flip_only_for_a_while(slow: int) -> None:
    world = World(groups=2, replicas=2, generations=3)

    async def test(service: SearchService) -> None:
        world.replicas[0][slow].load_s = 1000
        for number, patience_s in ((2, 5), (3, 1.5)):  # then it is known to be at it
            world.watch.published.append(number)
            await asyncio.sleep(patience_s)
            assert service.generation().number == number
            check(await ask(service, nprobe=LISTS), 0)

    served(world, test, settle_s=2)


def test_a_replica_that_is_slow_to_load_counts_when_it_has_loaded() -> None:
    """Its twin was begun meanwhile, and could not load it."""
    world = World(groups=1, replicas=2, generations=2)

    async def test(service: SearchService) -> None:
        world.all[0].load_s = 5
        world.all[1].refuses[2] = Unavailable("the store does not answer")
        world.watch.published.append(2)
        await asyncio.sleep(7)
        assert (service.generation().number, world.all[0].loads) == (2, 0)
        check(await ask(service, nprobe=LISTS), 0)

    served(world, test, settle_s=2)


def test_an_old_flip_that_still_waits_for_a_replica_loads_nothing_more() -> None:
    """The second of three replicas takes so long that two newer generations are served by then."""
    world = World(groups=1, replicas=3, generations=4)
    _, slow, last = world.all

    async def test(service: SearchService) -> None:
        slow.load_s = 30
        for number in (2, 3, 4):
            world.watch.published.append(number)
            await asyncio.sleep(5)
            assert service.generation().number == number
        await asyncio.sleep(60)
        assert last.loaded == [3, 4]

    served(world, test, settle_s=1)


def test_what_is_served_is_dropped_last_where_its_successor_was_refused() -> None:
    """Nobody has asked anything: a replica cannot tell which of two generations is the one that is served."""
    world = World(groups=2, replicas=1, generations=3)
    first, second = world.all

    async def test(service: SearchService) -> None:
        second.refuses[2] = Corrupt("damaged")
        world.watch.published.append(2)
        await asyncio.sleep(3)
        assert first.loaded == [1, 2]
        second.load_s = 5
        world.watch.published.append(3)
        await asyncio.sleep(3)
        assert first.loaded == [1, 3]
        check(found := await ask(service, nprobe=LISTS), 0)
        assert found.generation == 1

    served(world, test)


def test_a_store_that_does_not_answer_changes_nothing_and_is_asked_less_often() -> None:
    world = World(generations=2)

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers, 0.1))
        world.watch.away = True
        await asyncio.sleep(60)
        world.watch.published.append(2)
        world.watch.away = False
        await asyncio.sleep(35)
        await stopped(asking)
        assert len(answers) > 900 and not any(answer.partial for answer in answers)
        assert answers[-1].generation == 2

    served(world, test)
