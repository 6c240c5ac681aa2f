"""Nobody waits for what is known not to come, and nothing is kept for those that stopped waiting."""

import asyncio

import pytest

from serve.refusals import DeadlineExceeded
from serve.service.search_service import SearchService
from tests.serve.fake_backend import LISTS, World, best
from tests.serve.made_up_service import ask, ids, query_vector, served


def test_patient_requests_to_a_replica_that_is_down_hold_up_nobody() -> None:
    """Four messages fill the way to a single replica; once it is known to be down they are given up."""
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        loop = asyncio.get_running_loop()
        world.all[1].stopped = True
        patient = [
            asyncio.create_task(ask(service, seed, timeout_ms=100_000, nprobe=LISTS)) for seed in range(4)
        ]
        await asyncio.sleep(4)
        began = loop.time()
        found = await ask(service, nprobe=LISTS)
        assert loop.time() - began < 0.1, "known to be down: nobody waits for it"
        assert ids(found) == best(1, query_vector(0), 10, (0, 2)) and found.coverage == 0.5
        assert all(task.done() and task.result().coverage == 0.5 for task in patient)
        world.all[1].stopped = False
        await asyncio.sleep(3)
        assert (await ask(service, nprobe=LISTS)).coverage == 1.0

    served(world, test)


def test_scans_that_nobody_waits_for_any_more_are_not_kept() -> None:
    """Also while one patient request holds the only way to a replica that does not answer."""
    world = World(groups=1, replicas=1)

    async def test(service: SearchService) -> None:
        world.all[0].stopped = True
        patient = asyncio.create_task(ask(service, timeout_ms=100_000, nprobe=LISTS))
        for seed in range(40):
            with pytest.raises(DeadlineExceeded):
                await ask(service, seed, timeout_ms=10)
        (lane,) = service._fan_out.lanes
        await asyncio.sleep(0)
        assert sum(map(len, lane._pending.values())) == 0
        world.all[0].stopped = False
        assert ids(await patient) == best(1, query_vector(0), 10, range(4))

    served(world, test, batches_in_flight=1, probe_timeout_s=1000)
