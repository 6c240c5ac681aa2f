"""Scans to one group of shards, gathered into messages: alone while replicas are free, together when not."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from index.group import Scan, Scanned
from ingest.errors import ReseenError, Unavailable
from serve.service.deadline import Clock
from serve.service.hedging import Absent, Asker
from serve.service.peers import Peers
from serve.service.settings import ServiceSettings
from serve.wire import decode_scanned, encode_scans

Reply = Scanned | ReseenError | Absent


@dataclass(eq=False)
class _Message:
    """Scans on their way. `wanted`: replies that are still waited for."""

    task: "asyncio.Task[None]"
    wanted: int


@dataclass(eq=False)
class _Entry:
    """A scan. `message`: that it was sent with; None while it waits."""

    scan: Scan
    reply: "asyncio.Future[Reply]"
    message: _Message | None = None


class Lane:
    """The way to one group. Bounded by its callers: it holds one entry for each reply that is waited for.

    Attributes:
        asker: for questions that are not gathered.
    """

    def __init__(self, peers: Peers, clock: Clock, settings: ServiceSettings) -> None:
        self.peers = peers
        self.asker = Asker(peers, clock, settings)
        self._most, self._parallel = settings.batch_most, settings.batches_in_flight
        self._pending: dict[int, OrderedDict[_Entry, None]] = {}  # by generation, first come first
        self._running: set[asyncio.Task[None]] = set()

    def scan(self, generation: int, scan: Scan) -> "asyncio.Future[Reply]":
        """The reply to come. Cancelling it takes the scan back: it is not sent, or its message cancelled once
        nobody waits for any part of it."""
        entry = _Entry(scan, asyncio.get_running_loop().create_future())
        entry.reply.add_done_callback(lambda reply: self._given_up(generation, entry, reply))
        self._pending.setdefault(generation, OrderedDict())[entry] = None
        self._send()
        return entry.reply

    def _given_up(self, generation: int, entry: _Entry, reply: "asyncio.Future[Reply]") -> None:
        """Nobody waits for a reply any more: the scan is not sent, or one less wants its message."""
        if not reply.cancelled():
            return
        if entry.message is None:
            if (pending := self._pending.get(generation)) is not None:
                pending.pop(entry, None)
            return
        entry.message.wanted -= 1
        if not entry.message.wanted:
            entry.message.task.cancel()

    def close(self) -> None:
        """Ends whatever is under way, and what waits."""
        for pending in self._pending.values():
            for entry in pending:
                entry.reply.cancel()
        self._pending.clear()
        for task in self._running:
            task.cancel()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._running and not any(
            not entry.reply.done() for pending in self._pending.values() for entry in pending
        )

    def _send(self) -> None:
        """Sends what waits, as far as replicas are free."""
        for generation in list(self._pending):
            pending = self._pending[generation]
            while pending and len(self._running) < self._parallel * self._well(generation):
                batch = self._take(pending)
                if batch:
                    self._start(generation, batch)
            if not pending:
                del self._pending[generation]

    def _well(self, generation: int) -> int:
        """Replicas that are likely to answer; 1 where none is, so that nothing waits for them here."""
        return max(1, sum(not peer.paused for peer in self.peers.ready(generation)))

    def _take(self, pending: OrderedDict[_Entry, None]) -> list[_Entry]:
        batch: list[_Entry] = []
        while pending and len(batch) < self._most:
            entry, _ = pending.popitem(last=False)
            if not entry.reply.done():
                batch.append(entry)
        return batch

    def _start(self, generation: int, batch: list[_Entry]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(generation, batch))
        self._running.add(task)
        task.add_done_callback(self._ended)
        message = _Message(task, len(batch))
        for entry in batch:
            entry.message = message

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._send()

    async def _run(self, generation: int, batch: list[_Entry]) -> None:
        replies: Sequence[Reply]
        try:
            message = encode_scans([entry.scan for entry in batch])
            found = await self.asker.ask(generation, lambda replica: replica.scan(generation, message))
            replies = [found] * len(batch) if isinstance(found, Absent) else decode_scanned(found)
            if len(replies) != len(batch):
                raise Unavailable(f"{len(batch)} scans were answered by {len(replies)} replies")
        except asyncio.CancelledError:
            for entry in batch:
                entry.reply.cancel()
            raise
        except Exception as error:  # a reply that cannot be read: the group is left out
            replies = [Absent(False, repr(error))] * len(batch)
        for entry, reply in zip(batch, replies, strict=True):
            if not entry.reply.done():
                entry.reply.set_result(reply)
