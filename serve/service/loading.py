"""Loading generations into replicas: one at a time each, checked by what it then answers."""

import asyncio
import logging

from ingest.errors import BadInput, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from serve.backend import GroupState
from serve.metrics import Metrics
from serve.service.peers import Peer
from serve.service.settings import ServiceSettings
from serve.service.view import Share, check_state

_LOG = logging.getLogger(__name__)
REFUSALS = (NotFound, Corrupt, BadInput, OverBudget)  # of a generation, not of a replica


class Loader:
    """Loads. For one event loop."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._locks: dict[Peer, asyncio.Lock] = {}

    def busy(self, peer: Peer) -> bool:
        return peer in self._locks and self._locks[peer].locked()

    async def load(
        self, peer: Peer, number: int, share: Share, replace: bool = False, keep: int | None = None
    ) -> GroupState:
        """Lets a replica load its part of a generation, and asks it whether it answers.

        Args:
            share: what it should have then.
            replace, keep: see `serve.backend.Replica.load`.

        Raises:
            OverBudget: there is no room for it (beside what is there).
            NotFound, Corrupt, BadInput: the generation cannot be served.
            Unavailable: the replica did not do it; another one, or a later try, may.
        """
        async with self._locks.setdefault(peer, asyncio.Lock()):
            try:
                state = await self._loaded(peer, number, share, replace, keep)
            except Exception as error:
                outcome = type(error).__name__.lower()
                self._metrics.count("shard_loads", group=str(peer.group), outcome=outcome)
                if isinstance(error, ReseenError):
                    raise
                raise Unavailable(f"replica {peer.name} failed to load: {error!r}") from error
        self._metrics.count("shard_loads", group=str(peer.group), outcome="ok")
        _LOG.info("replica %s has generation %d (%d rows)", peer.name, number, state.rows)
        return state

    async def _loaded(
        self, peer: Peer, number: int, share: Share, replace: bool, keep: int | None
    ) -> GroupState:
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                state = await peer.replica.load(number, replace, keep)
                check_state(state, share)
                states = await peer.replica.states()
        except TimeoutError:
            limit = self._settings.load_timeout_s
            raise Unavailable(f"replica {peer.name} did not load within {limit:.0f} s") from None
        peer.states = {each.generation: each for each in states}
        if not peer.has(number):
            raise Unavailable(f"replica {peer.name} has dropped generation {number} again")
        peer.answered()
        return state
