"""Generations that cannot be served, starts, and flips without room for two: what is served goes on."""

import asyncio

import pytest

from ingest.errors import BadInput, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from serve.api import SearchResponse
from serve.service.search_service import SearchService
from tests.serve.fake_backend import LISTS, World
from tests.serve.made_up_service import (
    Counted,
    ask,
    check,
    served,
    service_of,
    steady,
    stopped,
)
from tests.serve.virtual_time import run_virtually

NO_ROOM = OverBudget("both do not fit")


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Corrupt("damaged"), NotFound("collected"), BadInput("too new")])
def test_a_generation_that_cannot_be_loaded_is_refused_and_the_next_one_is_taken(error: ReseenError) -> None:
    world, metrics = World(groups=2, replicas=2, generations=3), Counted()

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers))
        for replica in world.replicas[1]:
            replica.refuses[2] = error
        world.watch.published.append(2)
        await asyncio.sleep(5)
        info = service.generation()
        assert (info.number, info.newest) == (1, 2)
        assert info.refused == {"2": str(error)}
        assert metrics.counts["refused_generations"] == 1, "it is tried once"
        assert (await service.readiness()).ready
        world.watch.published.append(3)
        await asyncio.sleep(2)
        assert service.generation().number == 3
        await stopped(asking)
        assert {answer.generation for answer in answers} == {1, 3}
        assert not any(answer.partial for answer in answers)

    served(world, test, metrics)


def test_a_replica_that_is_away_is_no_reason_to_refuse() -> None:
    world = World(groups=2, replicas=1, generations=2)

    async def test(service: SearchService) -> None:
        world.all[1].refuses[2] = Unavailable("the store does not answer")
        world.watch.published.append(2)
        await asyncio.sleep(10)
        assert (service.generation().number, service.generation().refused) == (1, {})
        del world.all[1].refuses[2]
        await asyncio.sleep(31)
        assert service.generation().number == 2

    served(world, test)


def test_a_replica_with_other_shards_than_its_groups_is_not_believed() -> None:
    world, other = World(groups=2, replicas=1), World(groups=4, replicas=1)
    world.replicas[1][0] = other.replicas[1][0]

    async def start() -> None:
        with pytest.raises(BadInput, match="same number of groups"):
            async with service_of(world):
                pass

    run_virtually(start())


# -- the start --------------------------------------------------------------------------------------------


def test_a_start_falls_back_to_the_newest_generation_that_can_be_loaded() -> None:
    world = World(generations=4)
    world.watch.published[:] = [1, 2, 3, 4]
    for replica in world.replicas[1]:
        replica.refuses = {3: Corrupt("damaged"), 4: Corrupt("damaged")}

    async def test(service: SearchService) -> None:
        info = service.generation()
        assert (info.number, info.newest, sorted(info.refused)) == (2, 4, ["3", "4"])
        check(await ask(service, nprobe=LISTS), 0)

    served(world, test)


def test_a_start_waits_for_replicas_and_store_and_gives_up_in_the_end() -> None:
    world = World()
    for replica in world.all:
        replica.dead = True

    async def start() -> None:
        service = service_of(world, start_timeout_s=30)
        assert not (await service.readiness()).ready
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(10)
        for replica in world.all:
            replica.dead = False
        await starting
        check(await ask(service, nprobe=LISTS), 0)
        await service.close()

    run_virtually(start())
    world = World()
    world.watch.away = True

    async def give_up() -> None:
        with pytest.raises(Unavailable, match="within 30 s"):
            await service_of(world, start_timeout_s=30).start()

    run_virtually(give_up())


def test_a_gallery_without_generations_is_told() -> None:
    world = World()
    world.watch.published.clear()

    async def start() -> None:
        with pytest.raises(NotFound):
            await service_of(world).start()

    run_virtually(start())


# -- slot by slot -----------------------------------------------------------------------------------------


def without_room(groups: int, replicas: int) -> World:
    world = World(groups, replicas, generations=3)
    for replica in world.all:
        replica.beside = NO_ROOM
        replica.most = 1
    return world


@pytest.mark.parametrize("groups", [1, 2])
def test_without_room_for_two_generations_replicas_take_turns_and_no_answer_is_partial(groups: int) -> None:
    world = without_room(groups, 2)

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers))
        for number in (2, 3):
            world.watch.published.append(number)
            await asyncio.sleep(5)
            assert [replica.loaded for replica in world.all] == [[number]] * len(world.all)
        await stopped(asking)
        assert {answer.generation for answer in answers} == {1, 2, 3}
        assert not any(answer.partial for answer in answers)

    served(world, test)


def test_without_room_and_with_single_replicas_answers_are_partial_meanwhile_and_never_empty() -> None:
    world = without_room(4, 1)

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers))
        world.watch.published.append(2)
        await asyncio.sleep(5)
        await stopped(asking)
        assert min(answer.coverage for answer in answers) >= 0.25
        assert answers[-1].generation == 2 and answers[-1].coverage == 1.0

    served(world, test)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_generation_that_fails_slot_by_slot_gives_its_slots_back(replicas: int) -> None:
    world = without_room(2, replicas)

    async def test(service: SearchService) -> None:
        for replica in world.replicas[1]:
            replica.refuses[2] = Corrupt("damaged")
        world.watch.published.append(2)
        await asyncio.sleep(10)
        assert (service.generation().number, list(service.generation().refused)) == (1, ["2"])
        assert [replica.loaded for replica in world.all] == [[1]] * len(world.all)
        check(await ask(service, nprobe=LISTS), 0)

    served(world, test)


def test_a_generation_that_fits_nowhere_is_refused() -> None:
    world = without_room(2, 1)

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.refuses[2] = OverBudget("too large even alone")
        world.watch.published.append(2)
        await asyncio.sleep(10)
        assert service.generation().refused == {"2": "too large even alone"}
        check(await ask(service, nprobe=LISTS), 0)

    served(world, test)


def test_a_replica_that_is_away_while_slots_change_costs_no_more_than_its_own_part() -> None:
    """Two of three groups have given up the old generation when the third does not answer."""
    world = without_room(3, 1)

    async def test(service: SearchService) -> None:
        answers: list[SearchResponse] = []
        asking = asyncio.create_task(steady(service, answers))
        world.all[2].dead = True
        await asyncio.sleep(1)
        world.watch.published.append(2)
        await asyncio.sleep(20)
        assert answers[-1].coverage == 0.75, "shards 0, 3 and 1 of the groups 0 and 1"
        world.all[2].restart()
        await asyncio.sleep(40)
        await stopped(asking)
        assert min(answer.coverage for answer in answers) >= 0.25
        numbers = [answer.generation for answer in answers]
        assert numbers == sorted(numbers), "nobody sees an older generation after a newer one"
        assert (answers[-1].generation, answers[-1].coverage) == (2, 1.0)

    served(world, test)


def test_a_group_that_comes_back_after_the_flip_brings_its_columns() -> None:
    world, metrics = without_room(3, 1), Counted()
    world.all[2].columns["year"] = "integer"

    async def test(service: SearchService) -> None:
        world.all[2].dead = True
        await asyncio.sleep(1)
        world.watch.published.append(2)
        await asyncio.sleep(20)
        assert "year" not in service.generation().columns
        world.watch.away = True  # what replicas tell is enough
        world.all[2].restart()
        await asyncio.sleep(40)
        assert service.generation().columns["year"] == "integer"
        found = await ask(service, where="year >= 1990", nprobe=LISTS)
        assert (found.generation, found.coverage) == (2, 1.0)
        assert metrics.counts["flips"] == 1, "the same generation again is no flip"

    served(world, test, metrics)


def test_replicas_that_die_as_slots_change_do_not_leave_the_service_with_nothing() -> None:
    """One group of three has the new generation, when the others fail before anybody knew them to be down."""
    world = World(3, 1, generations=2, shards=3)
    for replica in world.all:
        replica.beside, replica.most = NO_ROOM, 1
    first, second, third = world.all

    async def test(service: SearchService) -> None:
        world.watch.published.append(2)
        while second.loaded:
            await asyncio.sleep(0.01)
        second.dead = third.dead = True
        await asyncio.sleep(0.15)
        assert service.generation().number == 1, "the load has failed, and no look has"
        await asyncio.sleep(20)
        assert first.loaded == [2]
        found = await ask(service, nprobe=LISTS)
        assert (found.generation, found.coverage) == (2, pytest.approx(1 / 3))
        second.restart()
        third.restart()
        await asyncio.sleep(40)
        found = await ask(service, nprobe=LISTS)
        assert (found.generation, found.coverage) == (2, 1.0)

    served(world, test)
