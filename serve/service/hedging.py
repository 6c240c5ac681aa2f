"""One question to one group of shards: whichever of its replicas answers first.

A replica that fails is replaced at once. One that is slow is joined by another (a hedge), and whoever comes
second is cancelled. Nothing here outlives the task that asked.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ingest.errors import NotFound, Unavailable
from serve.backend import Replica
from serve.service.deadline import Clock
from serve.service.peers import Peer, Peers
from serve.service.settings import ServiceSettings

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Call = Callable[[Replica], Awaitable[T]]


@dataclass(frozen=True)
class Absent:
    """A group that does not answer. `gone`: a replica said that it has not that generation (any more)."""

    gone: bool
    reason: str


class Asker:
    """Asks the replicas of one group."""

    def __init__(self, peers: Peers, clock: Clock, settings: ServiceSettings) -> None:
        self.peers = peers
        self._clock, self._settings = clock, settings

    async def ask(self, generation: int, call: Call[T]) -> T | Absent:
        """The first answer; `Absent` when no replica gives one. It waits for as long as it is let."""
        order = self.peers.in_order(generation)
        well = any(not peer.paused for peer in order)
        found = await self._first(deque(order), call)
        if isinstance(found, Absent) and well and not found.gone:
            # All failed at once that were well: a moment later one may be back.
            await asyncio.sleep(self._settings.pause_first_s)
            return await self._first(deque(self.peers.in_order(generation)), call)
        return found

    async def _first(self, order: deque[Peer], call: Call[T]) -> T | Absent:
        if len(order) == 1:  # nobody to hedge with: no task of its own
            order[0].in_flight += 1
            try:
                return await self._call(order[0], call)
            except Exception as error:
                return self._absent(Absent(False, ""), order[0], error)
            finally:
                order[0].in_flight -= 1
        absent = Absent(False, f"no replica of group {self.peers.group} answers")
        tries: dict[asyncio.Task[T], Peer] = {}
        hedging, since = True, self._clock()
        try:
            while order or tries:
                if not tries:
                    self._try(tries, order.popleft(), call)
                patience = self.peers.hedge_s if hedging else self._settings.hedge_most_s
                wait = patience if order else None
                done, _ = await asyncio.wait(tries, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    peer, failure = tries.pop(task), task.exception()
                    if failure is None:
                        return task.result()
                    absent = self._absent(absent, peer, failure)
                if not done:
                    hedging = self._hedge(tries, order, call, since, hedging)
                    since = self._clock()
            return absent
        finally:
            for task in tries:
                task.cancel()

    def _hedge(
        self,
        tries: dict[asyncio.Task[T], Peer],
        order: deque[Peer],
        call: Call[T],
        since: float,
        hedging: bool,
    ) -> bool:
        """Asks one more replica if a hedge is left; those that were waited for are no first choice now.

        Where none was left, only replicas are given up that were silent since: a slow one answers something.
        """
        silent = all(peer.answered_at < since for peer in tries.values())
        for peer in tries.values():
            self.peers.failed(peer)
        hedged = self.peers.may_hedge() if hedging else silent
        if hedged:
            self._try(tries, order.popleft(), call)
        return hedged

    def _try(self, tries: dict[asyncio.Task[T], Peer], peer: Peer, call: Call[T]) -> None:
        peer.in_flight += 1  # already now: whoever chooses next must see it
        task = asyncio.get_running_loop().create_task(self._call(peer, call))
        tries[task] = peer
        task.add_done_callback(peer.relieved)

    async def _call(self, peer: Peer, call: Call[T]) -> T:
        """Its answer; `Unavailable` also where it turns out to be down meanwhile."""
        since = self._clock()
        try:
            async with asyncio.timeout(None) as wait:
                peer.waits.add(wait)
                try:
                    found = await call(peer.replica)
                finally:
                    peer.waits.discard(wait)
        except TimeoutError:
            if wait.expired():
                raise Unavailable(f"replica {peer.name} is down") from None
            raise
        except asyncio.CancelledError:
            if self._clock() - since > self._settings.hedge_most_s and not peer.paused:
                self.peers.failed(peer)
            raise
        peer.answered()
        self.peers.timed(self._clock() - since)
        return found

    def _absent(self, before: Absent, peer: Peer, error: BaseException) -> Absent:
        """What is known after one more failure."""
        if isinstance(error, NotFound):  # it answers, and lacks the generation: that is no failure
            return Absent(True, str(error))
        self.peers.failed(peer)
        if not isinstance(error, Unavailable):
            _LOG.warning("replica %s failed: %r", peer.name, error)
        return Absent(before.gone, str(error) or repr(error))
