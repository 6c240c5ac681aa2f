"""Admission: bounds that hold, refusals that come at once, and nothing left of those who went away."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from serve.api import SearchRequest
from serve.metrics import NoMetrics
from serve.refusals import Overloaded
from serve.service.admission import Gate
from serve.service.deadline import Deadline
from serve.service.search_service import SearchService
from tests.serve.fake_backend import World
from tests.serve.made_up_service import Counted, ask, service_of
from tests.serve.virtual_time import run_virtually


def now() -> float:
    return asyncio.get_running_loop().time()


def within(seconds: float) -> Deadline:
    return Deadline(now() + seconds, now)


async def stay(gate: Gate, seconds: float, patience: float = 1000.0) -> float:
    """Enters, stays for a while; when it was let in."""
    async with gate.admitted(within(patience)):
        entered = now()
        await asyncio.sleep(seconds)
    return entered


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def awaited() -> None:
        await test()

    run_virtually(awaited())


def test_so_many_are_inside_the_next_wait_in_turn_and_the_rest_are_refused() -> None:
    async def test() -> None:
        gate = Gate("vector", 2, 3, now, NoMetrics())
        waiting = [asyncio.create_task(stay(gate, 1.0)) for _ in range(7)]
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (2, 3)
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert done[:5] == [0, 0, 1, 1, 2]
        assert all(isinstance(each, Overloaded) for each in done[5:])
        assert (gate.running, gate.waiting) == (0, 0)

    run(test)


def test_who_could_not_be_answered_in_time_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def test() -> None:
        gate = Gate("vector", 1, 10, now, NoMetrics())
        for _ in range(20):
            await stay(gate, 2.0)
        began = now()
        first = asyncio.create_task(stay(gate, 2.0))
        second = asyncio.create_task(stay(gate, 2.0, patience=5.0))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await stay(gate, 2.0, patience=6.3)  # two before it, and 2 s for itself
        assert now() == began
        assert refused.value.retry_after_s == pytest.approx(4.0, rel=0.2)
        assert await first == began and await second == began + 2

    run(test)


def test_who_waited_in_vain_is_refused_at_its_deadline() -> None:
    async def test() -> None:
        gate = Gate("vector", 1, 10, now, NoMetrics())
        for _ in range(20):
            await stay(gate, 1.0)
        began = now()
        slow = asyncio.create_task(stay(gate, 60.0))  # nobody could know
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await stay(gate, 1.0, patience=5.0)
        assert now() == pytest.approx(began + 5.0)
        assert gate.waiting == 0
        await slow

    run(test)


def test_who_goes_away_leaves_the_queue() -> None:
    async def test() -> None:
        gate = Gate("vector", 1, 2, now, NoMetrics())
        inside = asyncio.create_task(stay(gate, 1.0))
        gone, patient = (asyncio.create_task(stay(gate, 1.0)) for _ in range(2))
        await asyncio.sleep(0.5)
        gone.cancel()
        await asyncio.sleep(0)
        assert gate.waiting == 1
        last = asyncio.create_task(stay(gate, 1.0))
        assert [await inside, await patient, await last] == [0.0, 1.0, 2.0]

    run(test)


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_goes_over_the_bounds_or_loses_a_place(seed: int) -> None:
    chance = random.Random(seed)

    async def test() -> None:
        gate = Gate("vector", 3, 5, now, NoMetrics())
        tasks: list[asyncio.Task[float]] = []
        for _ in range(300):
            tasks.append(asyncio.create_task(stay(gate, chance.choice([0, 0.1, 1]), chance.uniform(0, 5))))
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
            await asyncio.sleep(chance.choice([0, 0, 0.1, 0.5]))
            assert gate.running <= 3 and gate.waiting <= 5
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert (gate.running, gate.waiting) == (0, 0)
        assert all(isinstance(each, float | Overloaded | asyncio.CancelledError) for each in done)
        assert await stay(gate, 1.0, 100.0) == now() - 1.0, "every place is free again"

    run(test)


def test_a_place_that_comes_with_the_cancellation_is_given_on() -> None:
    async def test() -> None:
        gate = Gate("vector", 1, 5, now, NoMetrics())
        await gate.enter(within(10))
        second, third = (asyncio.create_task(stay(gate, 1.0)) for _ in range(2))
        await asyncio.sleep(1.0)
        gate.leave()
        second.cancel()
        assert await third == 1.0
        assert second.cancelled() and gate.running == 0

    run(test)


def test_who_cannot_be_answered_in_time_any_more_is_sent_away_when_a_place_is_free() -> None:
    async def test() -> None:
        gate = Gate("vector", 2, 5, now, NoMetrics())
        for _ in range(20):
            await asyncio.gather(stay(gate, 0.1), stay(gate, 0.1))
        began = now()
        inside = [asyncio.create_task(stay(gate, seconds)) for seconds in (4.0, 8.0)]  # nobody could know
        await asyncio.sleep(0)
        hurried = asyncio.create_task(stay(gate, 0.1, patience=4.5))
        patient = asyncio.create_task(stay(gate, 0.1, patience=100.0))
        with pytest.raises(Overloaded):
            await hurried
        assert now() == pytest.approx(began + 4.0)
        assert await patient == pytest.approx(began + 4.0), "who has time takes the place"
        await asyncio.gather(*inside)

    run(test)


# -- in a service -----------------------------------------------------------------------------------------


def test_an_overload_is_refused_in_part_and_what_is_admitted_is_answered_in_time() -> None:
    """Five times more than can be scanned, for a minute; a second later all is as before."""
    world, metrics = World(groups=1, replicas=1), Counted()

    async def one(service: SearchService, seed: int, outcomes: list[object]) -> None:
        began = now()
        try:
            await ask(service, seed, nprobe=8)
            outcomes.append(now() - began)
        except Overloaded as error:
            outcomes.append(error)

    async def test() -> None:
        async with service_of(world, metrics, batch_most=1, batches_in_flight=1) as service:
            world.all[0].scan_s = 0.05  # 20 a second
            outcomes: list[object] = []
            async with asyncio.TaskGroup() as tasks:
                for seed in range(100 * 60):
                    tasks.create_task(one(service, seed, outcomes))
                    await asyncio.sleep(1 / 100)
                    assert service._cheap.running <= 32 and service._cheap.waiting <= 128
            answered = [each for each in outcomes if isinstance(each, float)]
            assert len(outcomes) == 6_000
            assert max(answered) < 2.0
            assert len(answered) > 0.9 * 20 * 60, "refusing does not idle the replica"
            assert metrics.counts["shed"] == 6_000 - len(answered)
            await asyncio.sleep(1)
            began = now()
            await ask(service, nprobe=8)
            assert now() - began == pytest.approx(0.05)

    run(test)


def test_dear_searches_do_not_hold_up_cheap_ones() -> None:
    world = World(groups=1, replicas=1)

    async def test() -> None:
        async with service_of(world, image_concurrency=1, image_queue=0) as service:
            world.images.delay_s = 5.0
            request = {"image_ids": ["1"], "rerank": "expand", "timeout_ms": 60_000}
            dear = asyncio.create_task(service.search(SearchRequest.model_validate(request), [], "dear"))
            await asyncio.sleep(0.1)
            with pytest.raises(Overloaded):
                await service.search(SearchRequest.model_validate(request), [], "second")
            assert len((await ask(service)).results) == 10
            dear.cancel()
            await asyncio.wait([dear])
            assert service._dear.running == 0

    run(test)
