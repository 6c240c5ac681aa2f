"""Flips: a newer generation is loaded and verified beside the one that is served, then takes its place.

Numbers only rise: an older generation comes back by being published anew. One that cannot be loaded is
refused, remembered with the reason, and what is served goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TypeVar

from ingest.errors import OverBudget, ReseenError, Unavailable
from serve.backend import GroupState
from serve.metrics import Metrics
from serve.refusals import NotReady
from serve.service.loading import REFUSALS, Loader
from serve.service.peers import Peer, Peers
from serve.service.settings import ServiceSettings
from serve.service.view import Reading, Share, View, shares_of
from serve.service.watch import Watch

_LOG = logging.getLogger(__name__)
Warm = Callable[[Reading], Awaitable[None]]
T = TypeVar("T")


class Flip:
    """The view that new requests get, and what changes it.

    Args:
        warm: readies whatever else answers in a generation (the encoder); may refuse it.

    Attributes:
        newest: number of the newest generation that was seen.
        refused: why, by number.
    """

    def __init__(
        self,
        watch: Watch,
        groups: Sequence[Peers],
        loader: Loader,
        settings: ServiceSettings,
        metrics: Metrics,
        warm: Warm,
    ) -> None:
        self._watch, self._groups, self._loader = watch, groups, loader
        self._settings, self._metrics, self._warm = settings, metrics, warm
        self._view: View | None = None
        self._loading: set[asyncio.Task[object]] = set()
        self.newest = 0
        self.refused: dict[int, str] = {}

    @property
    def view(self) -> View:
        """`NotReady` before the first generation is loaded."""
        if self._view is None:
            raise NotReady("no generation is loaded yet: try again soon")
        return self._view

    @property
    def number(self) -> int:
        """Of the generation that is served; 0 before the first."""
        return 0 if self._view is None else self._view.number

    async def start(self) -> None:
        """Loads the newest generation that can be loaded.

        Raises:
            ReseenError: why the newest could not, where none of a few older ones could either.
        """
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._first()
        except TimeoutError:
            limit = self._settings.start_timeout_s
            raise Unavailable(f"no generation could be loaded within {limit:.0f} s") from None

    async def _first(self) -> None:
        numbers = await self._until_available(self._watch.numbers)
        self.newest = max(numbers, default=0)
        wanted = numbers[::-1][: 1 + self._settings.start_fallbacks] or [0]  # 0: the reading says what lacks
        failure: ReseenError | None = None
        for number in wanted:
            try:
                await self._until_available(partial(self._to, number))
                return
            except REFUSALS as error:
                self._refuse(number, error)
                failure = failure or error
        assert failure is not None
        raise failure

    async def _until_available(self, work: Callable[[], Awaitable[T]]) -> T:
        pause = self._settings.supervise_s
        while True:
            try:
                return await work()
            except Unavailable as error:
                _LOG.warning("not ready yet: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._settings.poll_s)

    async def run(self) -> None:
        """Looks at the gallery for ever, less often while it does not answer."""
        pause = self._settings.poll_s
        while True:
            await asyncio.sleep(pause)
            try:
                await self.once()
                pause = self._settings.poll_s
            except Exception as error:
                pause = min(2 * pause, self._settings.poll_most_s)
                known = isinstance(error, ReseenError)
                _LOG.warning("looking for a newer generation: %s", error, exc_info=not known)

    async def once(self) -> bool:
        """Flips to the newest generation that is not refused, if it is newer and loads; whether it did.

        Raises:
            Unavailable: the gallery or the replicas did not answer.
        """
        numbers = await self._watch.numbers()
        self.newest = max(numbers, default=0)
        wanted = max((each for each in numbers if each not in self.refused), default=0)
        if wanted <= self.number:
            return False
        try:
            await self._to(wanted)
        except REFUSALS as error:
            self._refuse(wanted, error)
            return False
        return True

    async def _to(self, number: int) -> None:
        reading = await self._watch.read(number)
        await self._warm(reading)
        try:
            states = await self._loaded(reading)
        except Unavailable:  # slot by slot, who did not load may be known to be away only now
            view = self._view_of(reading)
            if self._view is not None and self._answers(view) > self._answers(self._view):
                self._show(view)
            raise
        self._show(View(reading, len(self._groups), states))

    async def _loaded(self, reading: Reading) -> list[GroupState]:
        shares = shares_of(reading.generation, len(self._groups))
        try:
            return await self._side_by_side(reading.number, shares)
        except OverBudget as error:
            _LOG.warning("generation %d does not fit beside: slot by slot (%s)", reading.number, error)
            return await self._slot_by_slot(reading, shares)

    def complete(self) -> None:
        """Makes the view again where a group has loaded it that had not when it was made."""
        if self._view is not None and self._view.known < len(self._groups):
            view = self._view_of(self._view.reading)
            if view.known > self._view.known:
                self._show(view)

    def _view_of(self, reading: Reading) -> View:
        """A generation as the replicas have loaded it by now."""
        states = [peers.state(reading.number) for peers in self._groups]
        return View(reading, len(states), [state for state in states if state is not None])

    def _show(self, view: View) -> None:
        before, self._view = self.number, view
        if view.number != before:
            self._metrics.gauge("generation", view.number)
            _LOG.info("serving generation %d (before: %d)", view.number, before)
            if before:
                self._metrics.count("flips")

    def _refuse(self, number: int, error: ReseenError) -> None:
        self.refused[number] = str(error)
        self._metrics.count("refused_generations")
        _LOG.error("generation %d is refused, %d is served on: %s", number, self.number, error)

    # -- side by side -------------------------------------------------------------------------------------

    async def _side_by_side(self, number: int, shares: Sequence[Share]) -> list[GroupState]:
        """One replica of each group loads it beside what it has; then all others, for a while."""
        try:
            async with asyncio.TaskGroup() as firsts:
                tasks = [
                    firsts.create_task(self._one_of(peers, number, share))
                    for peers, share in zip(self._groups, shares, strict=True)
                ]
        except* ReseenError as several:
            raise _gravest(several) from None
        rest = [
            self._kept(self._others(peers, number, share))
            for peers, share in zip(self._groups, shares, strict=True)
        ]
        if rest:
            await asyncio.wait(rest, timeout=self._settings.settle_s)
        return [task.result() for task in tasks]

    async def _one_of(self, peers: Peers, number: int, share: Share, replace: bool = False) -> GroupState:
        """Lets the first replica that can load it.

        Where one takes long the next begins too, and whoever is later goes on unwatched. With `replace` they
        load one after the other, as each gives up what is served.
        """
        waiting = self._in_order(peers, number)
        patience = None if replace else self._settings.settle_s
        loads: set[asyncio.Task[GroupState]] = set()
        failure = Unavailable(f"no replica of group {peers.group} answers")
        try:
            while waiting or loads:
                if waiting:
                    load = self._loader.load(waiting.pop(0), number, share, replace, keep=self.number)
                    loads.add(self._kept(load))
                limit = patience if waiting else None
                done, loads = await asyncio.wait(loads, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        return task.result()
                    except Unavailable as error:
                        failure = error
        except BaseException:
            for task in loads:
                task.cancel()
            raise
        raise failure

    def _in_order(self, peers: Peers, number: int) -> list[Peer]:
        """The replicas of a group, the one first that has least to do and to lose by a load."""
        served, busy = self.number, self._loader.busy
        return sorted(
            peers.all, key=lambda peer: (not peer.has(number), peer.down, busy(peer), peer.has(served))
        )

    async def _others(self, peers: Peers, number: int, share: Share) -> None:
        """Loads it into what is left of a group, until there is a newer one."""
        for peer in peers.all:
            if number < max(self.newest, self.number):
                return  # what lacks the served generation is given it by whoever supervises
            if not peer.has(number) and not peer.down and not self._loader.busy(peer):
                try:
                    await self._loader.load(peer, number, share, keep=self.number)
                except ReseenError as error:  # whoever supervises tries again
                    _LOG.warning("replica %s has not generation %d yet: %s", peer.name, number, error)

    def _kept(self, work: Coroutine[object, object, T]) -> "asyncio.Task[T]":
        """A task that goes on when nobody waits for it any more, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._loading.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[T]") -> None:
        self._loading.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may have waited for it; whoever supervises tries again

    # -- slot by slot -------------------------------------------------------------------------------------

    async def _slot_by_slot(self, reading: Reading, shares: Sequence[Share]) -> list[GroupState]:
        """One replica of each group after the other gives up what it has.

        Where groups have several replicas, others of them serve on. Where one has a single one, requests go
        without it while it loads; the view changes when the new generation has no less to answer with. From
        then on only a refusal brings back the old: a replica that is away is loaded when it comes back.
        """
        before, number = self._view, reading.number
        several_first = sorted(self._groups, key=lambda peers: -len(peers.ready(self.number)))
        states: list[GroupState] = []
        try:
            for peers in several_first:
                states.append(await self._one_of(peers, number, shares[peers.group], replace=True))
                self._show_if_no_less(self._view_of(reading), before)
        except REFUSALS:
            if before is not None:  # those that gave it up are given it again by whoever supervises
                self._show(before)
            raise
        return states

    def _show_if_no_less(self, view: View, before: View | None) -> None:
        """Shows a view that can answer with as much as the one before it."""
        if before is None or self._answers(view) >= self._answers(before):
            self._show(view)

    def _answers(self, view: View) -> float:
        """The part of a generation's rows that can be asked."""
        away = {peers.group for peers in self._groups if not peers.ready(view.number)}
        return view.coverage(away) if view.rows else float(not away)

    def close(self) -> None:
        for task in self._loading:
            task.cancel()
        self._watch.close()


def _gravest(several: "BaseExceptionGroup[ReseenError]") -> ReseenError:
    """Of what several groups said, a refusal before want of memory before a replica that is away."""
    found = [error for error in several.exceptions if isinstance(error, ReseenError)]
    grave = [error for error in found if not isinstance(error, OverBudget | Unavailable)]
    return (grave or [error for error in found if isinstance(error, OverBudget)] or found)[0]
