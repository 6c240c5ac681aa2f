"""Supervision: replicas are looked at again and again, and given the served generation where they lack it."""

import asyncio
import logging
import time
from collections.abc import Sequence

from ingest.errors import OverBudget, ReseenError, Unavailable
from serve.metrics import Metrics
from serve.refusals import NotReady
from serve.service.deadline import Clock
from serve.service.flip import Flip
from serve.service.loading import Loader
from serve.service.peers import Peer, Peers
from serve.service.settings import ServiceSettings
from serve.service.view import View

_LOG = logging.getLogger(__name__)
_LONGEST_S = 30.0  # between two tries to load what failed to load


class Supervisor:
    """For one event loop. `run` goes on for ever; what it started ends with `close`."""

    def __init__(
        self,
        flip: Flip,
        groups: Sequence[Peers],
        loader: Loader,
        clock: Clock,
        settings: ServiceSettings,
        metrics: Metrics,
    ) -> None:
        self._flip, self._groups, self._loader = flip, groups, loader
        self._clock, self._settings, self._metrics = clock, settings, metrics
        self._looks: dict[Peer, asyncio.Task[None]] = {}
        self._loads: dict[Peer, asyncio.Task[None]] = {}
        self._not_before: dict[Peer, float] = {}
        self._pauses: dict[Peer, float] = {}

    async def run(self) -> None:
        while True:
            self.once()
            await asyncio.sleep(self._settings.supervise_s)

    def once(self) -> None:
        """Begins a look at every replica that is not being looked at; none of them delays another.

        What earlier looks and loads have told goes into the view and the metrics.
        """
        loop = asyncio.get_running_loop()
        for peers in self._groups:
            for peer in peers.all:
                if peer not in self._looks:
                    self._looks[peer] = look = loop.create_task(self._look(peer))
                    look.add_done_callback(lambda _, peer=peer: self._looks.pop(peer, None))  # type: ignore[misc]
        self._flip.complete()
        self._report()

    async def _look(self, peer: Peer) -> None:
        since = self._clock()
        try:
            async with asyncio.timeout(self._settings.probe_timeout_s):
                states = await peer.replica.states()
        except Exception as error:
            # One that is loading, or that answered something meanwhile, is only busy.
            busy = isinstance(error, TimeoutError) and (peer.answered_at > since or self._loader.busy(peer))
            if not busy and not peer.down:
                _LOG.warning("replica %s is down: %s", peer.name, str(error) or "it does not answer")
                peer.lost()
            return
        if peer.down:
            _LOG.info("replica %s is back", peer.name)
        if not self._loader.busy(peer):
            peer.states = {state.generation: state for state in states}
        peer.seen()
        self._restore(peer)

    def _restore(self, peer: Peer) -> None:
        """Begins to load the served generation into a replica that lacks it (it is new, or came back)."""
        try:
            view = self._flip.view
        except NotReady:
            return
        due = self._clock() >= self._not_before.get(peer, 0.0)
        if peer.has(view.number):
            self._pauses.pop(peer, None)
        elif due and peer not in self._loads and not self._loader.busy(peer):
            task = asyncio.get_running_loop().create_task(self._load(peer, view))
            self._loads[peer] = task
            task.add_done_callback(lambda _: self._loads.pop(peer, None))

    async def _load(self, peer: Peer, view: View) -> None:
        share = view.shares[peer.group]
        try:
            try:
                await self._loader.load(peer, view.number, share)
            except OverBudget:
                if self._newer(peer, view):
                    return  # a flip is under way, slot by slot
                await self._loader.load(peer, view.number, share, replace=True)
        except ReseenError as error:
            pause = min(2 * self._pauses.get(peer, self._settings.supervise_s), _LONGEST_S)
            self._pauses[peer], self._not_before[peer] = pause, self._clock() + pause
            level = logging.INFO if isinstance(error, Unavailable) else logging.ERROR
            _LOG.log(level, "replica %s cannot load generation %d: %s", peer.name, view.number, error)

    def _newer(self, peer: Peer, view: View) -> bool:
        return any(number > view.number and number not in self._flip.refused for number in peer.states)

    def _report(self) -> None:
        for peers in self._groups:
            self._metrics.gauge("memory_bytes", peers.code_bytes, group=str(peers.group))
        try:
            view = self._flip.view
        except NotReady:
            return
        away = {peers.group for peers in self._groups if not peers.ready(view.number)}
        self._metrics.gauge("coverage", view.coverage(away))
        self._metrics.gauge("index_age_seconds", time.time() - view.published.timestamp())

    def close(self) -> None:
        for task in (*self._looks.values(), *self._loads.values()):
            task.cancel()
