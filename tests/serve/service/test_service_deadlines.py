"""What a service does without when time is short or the store is away, by a clock that jumps."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from index.calibration import Calibration, Reliability, scoring_of
from index.score_curve import Curve
from index.step_choice import chosen_steps
from ingest.errors import Unavailable
from ingest.feature_reader import Place
from serve.api import SearchRequest
from serve.refusals import DeadlineExceeded, NotReady, PartialRefused
from serve.service.search_service import SearchService
from serve.service.settings import ServiceSettings
from tests.serve.fake_backend import LISTS, RECIPE, World, best, image_of, vectors_of
from tests.serve.made_up_service import NO_GALLERY, ask, ids, query_vector, served, service_of
from tests.serve.virtual_time import run_virtually


def test_a_step_that_the_store_does_not_allow_is_left_out_and_named() -> None:
    world = World()

    async def test(service: SearchService) -> None:
        whole = await ask(service, rerank="expand", nprobe=LISTS)
        assert not whole.partial and ids(whole) != best(1, query_vector(0), 10, range(4))
        world.images.away = True
        found = await ask(service, rerank="expand", nprobe=LISTS)
        assert found.partial and found.skipped_steps == ["expand"] and found.coverage == 1.0
        assert ids(found) == best(1, query_vector(0), 10, range(4))
        with pytest.raises(PartialRefused, match="expand") as refused:
            await ask(service, rerank="expand", allow_partial=False)
        assert refused.value.skipped == ("expand",)
        with pytest.raises(Unavailable):
            await service.search(SearchRequest(image_ids=["1"]), [], "r")
        folded = await ask(service, fold=True)
        assert not folded.partial and "store did not answer" in folded.warnings[0]

    served(world, test)


def test_marking_near_duplicates_does_not_outlast_the_deadline() -> None:
    world = World()

    async def test(service: SearchService) -> None:
        world.images.delay_s = 30
        loop = asyncio.get_running_loop()
        since = loop.time()
        found = await ask(service, fold=True, timeout_ms=500)
        assert loop.time() - since <= 0.5 and not found.partial
        assert "near-duplicates are not marked" in found.warnings[0]

    served(world, test)


def test_a_step_that_takes_too_long_is_left_out_in_time() -> None:
    world = World()

    async def test(service: SearchService) -> None:
        world.images.delay_s = 30
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await ask(service, rerank="expand", timeout_ms=1000, nprobe=LISTS)
        assert loop.time() - began <= 1.0
        assert found.skipped_steps == ["expand"]
        assert ids(found) == best(1, query_vector(0), 10, range(4))
        began = loop.time()
        with pytest.raises(DeadlineExceeded):
            await service.search(SearchRequest(image_ids=["1"], timeout_ms=500), [], "r")
        assert loop.time() - began <= 0.5

    served(world, test)


def test_a_step_whose_own_scan_is_not_answered_leaves_the_answer_as_it_was() -> None:
    world = World(replicas=1)
    plain = world.images.vectors

    async def test(service: SearchService) -> None:
        async def and_then_nobody(generation: int, places: Sequence[Place]) -> np.ndarray:
            for replica in world.all:
                replica.dead = True
            return await plain(generation, places)

        world.images.vectors = and_then_nobody  # type: ignore[method-assign]
        found = await ask(service, rerank="expand", nprobe=LISTS)
        assert (found.skipped_steps, found.coverage, found.missing_shards) == (["expand"], 1.0, [])
        assert ids(found) == best(1, query_vector(0), 10, range(4))

    served(world, test)


def test_a_step_that_is_taken_twice_and_left_out_once_counts_once() -> None:
    """The verdict is of the steps that were done, whatever they are called."""
    world, nothing = World(), Reliability(queries=1, pairs=1, same=0, brier=0, verdicts={})
    once = chosen_steps(RECIPE, "expand", None)
    calibrations = [
        Calibration(
            recipe="made-up",
            scoring=scoring_of(RECIPE, steps),
            curve=Curve(slope=1.0, intercept=intercept),
            data="made up",
            top=10,
            fitted=nothing,
            judged=nothing,
        )
        for steps, intercept in (((), -100.0), (once, 100.0))
    ]
    plain = world.images.vectors

    async def run() -> None:
        async def only_once(generation: int, places: Sequence[Place]) -> np.ndarray:
            world.images.away, vectors = True, await plain(generation, places)
            return vectors

        world.images.vectors = only_once  # type: ignore[method-assign]
        settings = ServiceSettings()
        async with SearchService(
            NO_GALLERY, world.backend, None, settings, calibrations, world.watch
        ) as service:
            found = await ask(service, rerank="expand,expand", nprobe=LISTS)
            assert found.skipped_steps == ["expand"]
            assert {each.verdict and each.verdict.label for each in found.results} == {"same"}

    run_virtually(run())


@pytest.mark.parametrize("timeout_ms", [1, 5, 50])
def test_no_deadline_is_overrun(timeout_ms: int) -> None:
    world = World()
    for replica in world.all:
        replica.scan_s = 0.02

    async def test(service: SearchService) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            assert (await ask(service, timeout_ms=timeout_ms)).results
        except DeadlineExceeded:
            assert timeout_ms < 50
        assert loop.time() - began <= timeout_ms / 1e3

    served(world, test)


def test_an_image_in_a_group_that_is_gone_is_not_said_to_be_missing() -> None:
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        here, there = image_of(0, 3), image_of(1, 3)
        world.all[1].dead = True
        assert (await service.image(here)).key == f"{here}.jpg"
        with pytest.raises(PartialRefused):
            await service.image(there)
        with pytest.raises(PartialRefused):
            await service.image(image_of(2, 99))
        world.all[1].restart()
        world.all[1].stopped = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await service.image(here)).key == f"{here}.jpg"
        assert loop.time() - began < 0.1, "whoever has it answers; nobody waits for the others"

    served(world, test)


def test_a_group_that_was_away_when_images_were_looked_up_is_searched_all_the_same() -> None:
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        world.images.delay_s = 1.0
        world.all[1].dead = True
        request = SearchRequest(image_ids=[str(image_of(0, 3)), str(image_of(0, 3))], rerank="none", top=40)
        asking = asyncio.create_task(service.search(request, [], "r"))
        await asyncio.sleep(0.5)
        world.all[1].dead = False
        found = await asking
        assert found.coverage == 1.0 and len(found.results) == 39

    served(world, test)


def test_results_that_repeat_others_are_marked_by_the_best() -> None:
    world = World()

    async def test(service: SearchService) -> None:
        found = await ask(service, top=40, fold=True, nprobe=LISTS)
        vectors = {image_of(s, r): vectors_of(1, s)[r] for s in range(4) for r in range(10)}
        repeated = 0
        for at, each in enumerate(found.results):
            if each.duplicate_of is None:
                continue
            repeated += 1
            assert each.duplicate_of in [other.image_id for other in found.results[:at]]
            others = [vectors[int(o.image_id)] for o in found.results if o.image_id != each.image_id]
            assert max(float(vectors[int(each.image_id)] @ other) for other in others) >= 0.9
        assert repeated > 0

    served(world, test)


def test_before_the_first_generation_nothing_is_ready_and_nothing_breaks() -> None:
    async def run() -> None:
        service = service_of(World())
        assert not (await service.readiness()).ready
        with pytest.raises(NotReady):
            service.generation()
        with pytest.raises(NotReady):
            await ask(service)
        await service.close()

    run_virtually(run())


def test_a_service_that_was_closed_leaves_nothing_running() -> None:
    world = World(groups=2, replicas=2, generations=2)

    async def run() -> None:
        service = service_of(world, poll_s=0.1)
        await service.start()
        for replica in world.all:
            replica.load_s = 100
        world.watch.published.append(2)
        await asyncio.sleep(1)
        await service.close()
        await asyncio.sleep(0)
        assert not any(replica.running for replica in world.all)

    run_virtually(run())


@pytest.mark.parametrize("stopped", [True, False])
def test_a_group_that_is_late_leaves_the_others_time_to_read_more_lists(stopped: bool) -> None:
    """A scan of one list finds too little; the answer is whole of all groups but the late one."""
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        world.all[1].stopped, world.all[1].scan_s = stopped, 60.0
        found = await ask(service, nprobe=1, top=20)
        assert found.coverage == 0.5 and found.missing_shards == ["shard-1-1", "shard-1-3"]
        assert ids(found) == best(1, query_vector(0), 20, (0, 2))
        assert found.skipped_steps == []
        world.all[1].stopped, world.all[1].scan_s = False, 0.001

    served(world, test, probe_timeout_s=1000)


def test_an_answer_for_which_there_was_no_time_to_read_more_lists_says_so() -> None:
    world = World(groups=2, replicas=1)

    async def test(service: SearchService) -> None:
        for replica in world.all:
            replica.scan_s = 0.3
        found = await ask(service, nprobe=1, top=20, timeout_ms=500)
        assert 0 < len(found.results) < 20
        assert found.partial and found.skipped_steps == ["more-lists"]
        assert found.coverage == 1.0 and found.missing_shards == [], "all were searched, not deep enough"
        with pytest.raises(PartialRefused, match="more-lists"):
            await ask(service, nprobe=1, top=20, timeout_ms=500, allow_partial=False)

    served(world, test)
