"""Fan-out over replicas that are slow, stopped or gone: whole while one of each group lives, else partial."""

import asyncio
from collections.abc import Sequence

import pytest

from serve.refusals import DeadlineExceeded, NotReady, PartialRefused
from serve.service.peers import Peer
from serve.service.search_service import SearchService
from serve.service.settings import ServiceSettings
from tests.serve.fake_backend import LISTS, SHARD_ROWS, FakeReplica, World, best
from tests.serve.made_up_service import Counted, ask, ids, query_vector, served

ALL = (0, 1, 2, 3)


def right(seed: int, k: int = 10, shards: Sequence[int] = ALL) -> list[int]:
    return best(1, query_vector(seed), k, shards)


# -- groupings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
def test_any_grouping_answers_alike(groups: int) -> None:
    async def test(service: SearchService) -> None:
        for seed in range(10):
            found = await ask(service, seed, nprobe=LISTS)
            assert ids(found) == right(seed)
            assert (found.coverage, found.partial, found.missing_shards) == (1.0, False, [])

    served(World(groups=groups), test)


@pytest.mark.parametrize("nprobe", [1, 2, 3])
def test_groups_read_more_lists_together_until_there_is_enough(nprobe: int) -> None:
    """More lists than asked for are read only if all groups together have too few results."""
    answers: dict[int, list[list[int]]] = {}
    for groups in (1, 2, 4):

        async def test(service: SearchService, groups: int = groups) -> None:
            found = [await ask(service, seed, nprobe=nprobe, top=top) for seed in range(5) for top in (4, 15)]
            answers[groups] = [ids(each) for each in found]
            assert [len(each) for each in answers[groups]] == [4, 15] * 5

        served(World(groups=groups), test)
    assert answers[1] == answers[2] == answers[4]


def test_every_image_comes_where_more_are_asked_for_than_there_are() -> None:
    async def test(service: SearchService) -> None:
        found = await ask(service, top=1000, nprobe=1)
        assert ids(found) == right(0, 4 * SHARD_ROWS)

    served(World(groups=3), test)


# -- faults -----------------------------------------------------------------------------------------------


def test_each_replica_killed_in_turn_changes_no_answer() -> None:
    world = World(groups=2, replicas=2)

    async def test(service: SearchService) -> None:
        for killed in world.all:
            killed.dead = True
            for seed in range(8):
                found = await ask(service, seed, nprobe=LISTS)
                assert ids(found) == right(seed) and not found.partial
            killed.restart()
            await asyncio.sleep(3)
            assert killed.loaded == [1], "it is given its generation again"

    served(world, test)


def test_a_replica_that_dies_with_a_scan_is_replaced() -> None:
    world = World(groups=2, replicas=2)

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.scan_s = 0.01
        asking = asyncio.create_task(ask(service, nprobe=LISTS))
        await asyncio.sleep(0.005)
        (busy,) = [replica for replica in world.replicas[0] if replica.running]
        busy.dead = True
        assert ids(await asking) == right(0)

    served(world, test)


def test_a_slow_replica_is_hedged_and_asked_second_from_then_on() -> None:
    world, metrics = World(groups=1, replicas=2), Counted()

    async def test(service: SearchService) -> None:
        loop = asyncio.get_running_loop()
        for seed in range(30):
            await ask(service, seed)
        slow, quick = world.all
        slow.scan_s = 10
        took = []
        for seed in range(10):
            began = loop.time()
            assert ids(await ask(service, seed, nprobe=LISTS)) == right(seed)
            took.append(loop.time() - began)
        assert max(took) == pytest.approx(0.02 + quick.scan_s)
        assert took.count(max(took)) == 1
        assert metrics.counts["hedged"] == 1
        assert slow.running == 0, "who comes second is cancelled"

    served(world, test, metrics)


def test_hedges_are_few_where_everything_is_slow() -> None:
    """Hedges are for one slow replica; they must not double the work of an overload."""
    world, metrics = World(groups=1, replicas=2), Counted()

    async def test(service: SearchService) -> None:
        for seed in range(20):
            await ask(service, seed)
        for replica in world.all:
            replica.scan_s = 1.0
        await asyncio.gather(*(ask(service, seed, timeout_ms=100_000) for seed in range(32)))
        for _ in range(8):
            await asyncio.gather(*(ask(service, seed, timeout_ms=100_000) for seed in range(32)))
        sent = sum(replica.messages for replica in world.all)
        assert 0 < metrics.counts["hedged"] <= 10 + 0.1 * sent

    served(world, test, metrics)


def test_a_stopped_replica_fails_no_request_and_comes_back() -> None:
    world = World(groups=2, replicas=2)

    async def test(service: SearchService) -> None:
        for stopped in world.all:
            stopped.stopped = True
            for seed in range(20):
                found = await ask(service, seed, nprobe=LISTS)
                assert ids(found) == right(seed) and not found.partial
                await asyncio.sleep(0.2)
            stopped.stopped = False
            await asyncio.sleep(3)
            assert (await service.readiness()).ready
            assert all(peer["ready"] for group in service.generation().groups for peer in group["replicas"])

    served(world, test)


def test_a_silent_replica_is_given_up_also_where_no_hedge_is_left() -> None:
    world = World(groups=1, replicas=2)

    async def test(service: SearchService) -> None:
        for lane in service._fan_out.lanes:
            lane.peers._hedges = 0.0
        world.all[0].stopped = True
        for seed in range(6):
            found = await ask(service, seed, nprobe=LISTS)
            assert ids(found) == right(seed) and not found.partial

    served(world, test)


def test_a_look_that_is_answered_makes_no_slow_replica_the_first_choice() -> None:
    clock = [0.0]
    settings = ServiceSettings()
    peer = Peer(World().all[0], 0, lambda: clock[0], settings)
    peer.failed()
    peer.down = True
    peer.seen()
    assert not peer.down and peer.paused
    clock[0] += settings.pause_first_s
    peer.failed()
    clock[0] += settings.pause_first_s
    assert peer.paused, "the second pause is longer: a look is no proof that it is quick"


def test_a_group_that_is_gone_leaves_a_partial_answer_with_the_right_coverage() -> None:
    world, metrics = World(groups=3, replicas=2), Counted()  # shards 0 and 3 | 1 | 2

    async def test(service: SearchService) -> None:
        loop = asyncio.get_running_loop()
        for replica in world.replicas[0]:
            replica.dead = True
        for seed in range(5):
            began = loop.time()
            found = await ask(service, seed, nprobe=LISTS)
            assert ids(found) == right(seed, shards=(1, 2))
            assert found.partial and found.coverage == 0.5
            assert found.missing_shards == ["shard-1-0", "shard-1-3"]
            assert loop.time() - began < 0.5
            await asyncio.sleep(0.5)
        assert metrics.counts["partial"] == 5
        assert metrics.gauges["coverage"] == 0.5
        assert not (await service.readiness()).ready
        assert (await service.readiness()).missing == ["shard-1-0", "shard-1-3"]
        with pytest.raises(PartialRefused) as refused:
            await ask(service, allow_partial=False)
        assert (refused.value.coverage, refused.value.missing) == (0.5, ("shard-1-0", "shard-1-3"))
        for replica in world.replicas[0]:
            replica.restart()
        await asyncio.sleep(2)
        found = await ask(service, nprobe=LISTS, allow_partial=False)
        assert ids(found) == right(0) and found.coverage == 1.0
        assert (await service.readiness()).ready

    served(world, test, metrics)


def test_a_group_that_is_stopped_is_left_out_before_the_deadline_and_soon_at_once() -> None:
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        loop = asyncio.get_running_loop()
        world.all[1].stopped = True
        began = loop.time()
        found = await ask(service, timeout_ms=800, nprobe=LISTS)
        assert loop.time() - began < 0.8
        assert ids(found) == right(0, shards=(0, 2)) and found.coverage == 0.5
        await asyncio.sleep(3)
        began = loop.time()
        found = await ask(service, timeout_ms=800)
        assert loop.time() - began < 0.1, "known to be down: nobody waits for it"
        assert found.coverage == 0.5
        world.all[1].stopped = False
        await asyncio.sleep(2.5)
        assert (await ask(service)).coverage == 1.0

    served(world, test)


def test_where_nobody_answers_there_is_no_answer() -> None:
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.stopped = True
        with pytest.raises(DeadlineExceeded):
            await ask(service, timeout_ms=300)
        for replica in world.all:
            replica.dead = True
        await asyncio.sleep(3)
        with pytest.raises(NotReady, match="no group of shards answers"):
            await ask(service)

    served(world, test)


# -- cancellation and batches -----------------------------------------------------------------------------


def busy(world: World) -> int:
    return sum(replica.running for replica in world.all)


def test_an_abandoned_request_leaves_no_work() -> None:
    world = World(groups=2, replicas=2)

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.scan_s = 0.3
        asking = [asyncio.create_task(ask(service, seed)) for seed in range(50)]
        await asyncio.sleep(0.1)
        assert busy(world) > 0
        for task in asking:
            task.cancel()
        await asyncio.sleep(0.01)
        sent = sum(replica.scans for replica in world.all)
        assert all(task.cancelled() for task in asking)
        await asyncio.sleep(0.09)  # before the next look at the replicas
        assert busy(world) == 0
        assert all(lane.idle for lane in service._fan_out.lanes)
        assert sum(replica.scans for replica in world.all) == sent, "what was not sent yet never is"

    served(world, test, supervise_s=1000)


def test_a_message_goes_on_while_anybody_waits_for_a_part_of_it() -> None:
    world = World(groups=1, replicas=1)

    async def test(service: SearchService) -> None:
        world.all[0].scan_s = 0.1
        first = asyncio.create_task(ask(service, 9, nprobe=LISTS))
        await asyncio.sleep(0.01)
        together = [asyncio.create_task(ask(service, seed, nprobe=LISTS)) for seed in range(4)]
        await asyncio.sleep(0.1)
        for task in together[:3]:
            task.cancel()
        assert ids(await together[3]) == right(3)
        assert world.all[0].messages == 2
        assert ids(await first) == right(9)

    served(world, test, batches_in_flight=1)


def test_scans_are_sent_at_once_while_a_replica_is_free_and_gathered_while_it_is_not() -> None:
    world = World(groups=1, replicas=1)

    async def test(service: SearchService) -> None:
        replica = world.all[0]
        replica.scan_s = 0.1
        found = await asyncio.gather(*(ask(service, seed, nprobe=LISTS) for seed in range(25)))
        assert [ids(each) for each in found] == [right(seed) for seed in range(25)]
        assert replica.scans == 25
        assert replica.messages == 2 + 3, "two alone, then 8, 8 and 7 together"

    served(world, test, batches_in_flight=2, batch_most=8)


def test_a_replica_never_has_more_messages_than_allowed() -> None:
    world = World(groups=1, replicas=2)
    seen: list[int] = []
    plain = FakeReplica.scan

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.scan_s = 0.01
        await asyncio.sleep(0.05)  # the first look at them is over

        async def counted(self: FakeReplica, generation: int, batch: bytes) -> bytes:
            seen.append(self.running + 1)
            return await plain(self, generation, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeReplica, "scan", counted)
            await asyncio.gather(*(ask(service, seed) for seed in range(100)))
        assert max(seen) <= 3

    served(world, test, batches_in_flight=3, batch_most=2, vector_concurrency=100, supervise_s=1000)
