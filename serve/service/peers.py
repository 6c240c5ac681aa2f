"""What a service knows of each replica: whether it answers, what it has loaded, how busy it is.

Which replica is asked first follows from this alone; nothing here waits for anything.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from statistics import median

from serve.backend import GroupState, Replica
from serve.metrics import Metrics
from serve.service.deadline import Clock
from serve.service.settings import ServiceSettings

_TIMES = 64  # answers whose times the wait before a hedge is made of
_STALE = 16  # answers after which the median is taken again
_BURST = 10.0  # hedges that a quiet time saves up


class Peer:
    """One replica.

    Attributes:
        in_flight: messages that it has not answered yet.
        states: generations that it has, as it said last.
        down: it answers nothing; only looks at it continue.
        waits: timeouts of the calls that wait for it.
        answered_at: when it last answered anything.
    """

    def __init__(self, replica: Replica, group: int, clock: Clock, settings: ServiceSettings) -> None:
        self.replica, self.group = replica, group
        self.states: dict[int, GroupState] = {}
        self.in_flight = 0
        self.down = False
        self.waits: set[asyncio.Timeout] = set()
        self.answered_at = float("-inf")
        self._clock, self._settings = clock, settings
        self._paused_until = float("-inf")
        self._pause_s = settings.pause_first_s

    @property
    def name(self) -> str:
        return self.replica.name

    @property
    def paused(self) -> bool:
        """It failed a moment ago: others are asked first."""
        return self._clock() < self._paused_until

    def seen(self) -> None:
        """It answered a look: it is there; whether it is quick is another matter."""
        self.answered_at = self._clock()
        self.down = False

    def answered(self) -> None:
        self.seen()
        self._paused_until = float("-inf")
        self._pause_s = self._settings.pause_first_s

    def lost(self) -> None:
        """It answers nothing more: whoever waits for it does so in vain, and is told."""
        self.down = True
        waits, self.waits = self.waits, set()
        for wait in waits:
            wait.reschedule(self._clock())

    def failed(self) -> None:
        if not self.paused:  # several messages that fail at once are one failure
            self._paused_until = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._settings.pause_most_s)

    def relieved(self, _: object) -> None:
        """One message less is in flight."""
        self.in_flight -= 1

    @property
    def code_bytes(self) -> int:
        """Memory of all that it has loaded."""
        return sum(state.code_bytes for state in self.states.values())

    def has(self, generation: int) -> bool:
        return generation in self.states


class Peers:
    """The replicas of one group, and the times of its answers."""

    def __init__(
        self,
        group: int,
        replicas: Sequence[Replica],
        clock: Clock,
        settings: ServiceSettings,
        metrics: Metrics,
    ) -> None:
        self.group = group
        self.all = tuple(Peer(replica, group, clock, settings) for replica in replicas)
        self._settings, self._metrics = settings, metrics
        self._turn = 0
        self._times: deque[float] = deque(maxlen=_TIMES)
        self._since_median = _STALE
        self._hedge_s = settings.hedge_most_s
        self._hedges = _BURST

    def in_order(self, generation: int) -> list[Peer]:
        """Those worth asking, the best first: that have the generation, did not just fail, have least to do.

        None if all are down. Of equals each is first in turn.
        """
        if len(self.all) == 1:
            return [] if self.all[0].down else [self.all[0]]
        self._turn += 1
        count = len(self.all)
        turned = [self.all[(self._turn + at) % count] for at in range(count)]
        return sorted(
            (peer for peer in turned if not peer.down),
            key=lambda peer: (not peer.has(generation), peer.paused, peer.in_flight),
        )

    @property
    def code_bytes(self) -> int:
        """Memory of all that its replicas have loaded."""
        return sum(peer.code_bytes for peer in self.all)

    def state(self, generation: int) -> GroupState | None:
        """A generation as one of them has it; None where none has."""
        return next((peer.states[generation] for peer in self.all if peer.has(generation)), None)

    def ready(self, generation: int) -> list[Peer]:
        """Those that have a generation and answer."""
        return [peer for peer in self.all if peer.has(generation) and not peer.down]

    @property
    def hedge_s(self) -> float:
        """How long one replica is waited for before another is asked too."""
        if self._since_median >= _STALE and self._times:
            wait = self._settings.hedge_factor * median(self._times)
            self._hedge_s = min(max(wait, self._settings.hedge_least_s), self._settings.hedge_most_s)
            self._since_median = 0
        return self._hedge_s

    def timed(self, seconds: float) -> None:
        """Counts an answer's time; each earns a part of a hedge, so that hedges cannot double the work."""
        self._times.append(seconds)
        self._since_median += 1
        self._hedges = min(_BURST, self._hedges + self._settings.hedge_share)

    def may_hedge(self) -> bool:
        """Whether a hedge is left; takes it."""
        if self._hedges < 1:
            return False
        self._hedges -= 1
        self._metrics.count("hedged", group=str(self.group))
        return True

    def failed(self, peer: Peer) -> None:
        """It failed, or came too late: others are asked first for a while."""
        peer.failed()
        self._metrics.count("replica_failures", group=str(self.group), replica=peer.name)
