"""All of a server's work in this one process: for a laptop, and as the measure of what a cluster must equal.

The event loop only waits. Scans run in as many threads as there are processors, each with faiss on one;
images are encoded in one thread, looked at again in two, and shards loaded in one of their own, so that scans
go on meanwhile.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import numpy as np

from index.cache import Cache
from index.group import Row
from index.rerank import Hit
from index.steps import PairSettings, Query, StepSettings
from ingest.compute import Compute
from ingest.errors import BadInput
from ingest.feature_reader import Place
from ingest.gallery import Gallery
from ingest.outcomes import Rejected
from serve.backend import Backend, Comparison, Encoded, GroupState
from serve.query import QUERY_COMPUTE, ImageQuery
from serve.replicas.encoder_server import EncoderServer
from serve.replicas.group_server import GroupServer
from serve.replicas.rerank_server import RerankServer
from serve.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")

LOOKS = 2  # second looks at once: they wait for the store as much as they compute
_WAITING = 64  # calls that may wait for a thread; the service admits fewer


class ScanThreads:
    """Where all replicas of a process run: threads for scans, one for loads, and one for checks."""

    def __init__(self, threads: int | None = None) -> None:
        count = threads or processors()
        self.scans = Workers("reseen-scan", count, _WAITING * count)
        self.loads = Workers("reseen-load", 1, _WAITING)
        self.checks = Workers("reseen-check", 1, _WAITING)

    async def drain(self) -> None:
        for workers in (self.scans, self.loads, self.checks):
            await workers.drain()


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_faiss_thread(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Calls something whose faiss calls use the calling thread alone: OpenMP counts by calling thread."""
    import faiss

    faiss.omp_set_num_threads(1)
    return call(*arguments, **named)


class LocalReplica:
    """See `serve.backend.Replica`."""

    def __init__(self, name: str, server: GroupServer, threads: ScanThreads) -> None:
        self._name, self._server, self._threads = name, server, threads

    @property
    def name(self) -> str:
        return self._name

    async def scan(self, generation: int, batch: bytes) -> bytes:
        return await self._threads.scans.run(one_faiss_thread, self._server.scan, generation, batch)

    async def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        return await self._threads.scans.run(one_faiss_thread, self._server.rows, generation, image_ids)

    async def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        return await self._threads.loads.run(one_faiss_thread, self._server.load, generation, replace, keep)

    async def states(self) -> list[GroupState]:
        return await self._threads.checks.run(one_faiss_thread, self._server.states)


class LocalEncoder:
    """See `serve.backend.Encoder`."""

    def __init__(self, server: EncoderServer) -> None:
        self._server = server
        self._workers = Workers("reseen-encode", 1, _WAITING)

    async def encode(self, generation: int, image: ImageQuery, labels: Collection[str]) -> Encoded | Rejected:
        return await self._workers.run(self._server.encode, generation, image, labels)

    async def warm(self, generation: int) -> None:
        """See `EncoderServer.warm`."""
        await self._workers.run(self._server.warm, generation)

    async def close(self) -> None:
        await self._workers.drain()
        await asyncio.to_thread(self._server.close)


class LocalReranker:
    """See `serve.backend.Reranker`."""

    def __init__(self, server: RerankServer) -> None:
        self._server = server
        self._workers = Workers("reseen-look", LOOKS, _WAITING)

    async def look(
        self, generation: int, settings: PairSettings, query: Query, hits: Sequence[Hit]
    ) -> list[Hit]:
        return await self._workers.run(self._server.look, generation, settings, query, hits)

    async def expand(
        self, generation: int, settings: StepSettings, query: Query, hits: Sequence[Hit]
    ) -> Query:
        return await self._workers.run(self._server.expand, generation, settings, query, hits)

    async def stored(self, generation: int, place: Place, labels: Collection[str]) -> Query | Rejected:
        return await self._workers.run(self._server.stored, generation, place, labels)

    async def vectors(self, generation: int, places: Sequence[Place]) -> np.ndarray:
        return await self._workers.run(self._server.vectors, generation, places)

    async def compare(
        self, generation: int, steps: Sequence[StepSettings], query: Query, place: Place
    ) -> Comparison | Rejected:
        return await self._workers.run(self._server.compare, generation, steps, query, place)

    async def close(self) -> None:
        await self._workers.drain()
        await asyncio.to_thread(self._server.close)


def slot(number: int) -> str:
    """The letter of a replica: a, b, ..., z, aa."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


@asynccontextmanager
async def open_embedded(
    gallery: Gallery,
    cache: Cache | None = None,
    *,
    groups: int = 1,
    replicas: int = 1,
    memory_bytes: int | None = None,
    threads: int | None = None,
    compute: Compute = QUERY_COMPUTE,
) -> AsyncIterator[Backend]:
    """A backend in this process; nothing is loaded yet.

    Args:
        groups: the shards are cut into so many, each scanned by itself.
        replicas: of each group, each with a copy in memory of its own.
        memory_bytes: what the lists and row tables of all replicas may take together; None: no limit.
        threads: that scan; one a processor by default.

    Raises:
        BadInput: there must be one group and one replica at least.
    """
    if min(groups, replicas) < 1:
        raise BadInput(f"{groups} groups of {replicas} replicas serve nothing: give 1 or more of each")
    scanning = ScanThreads(threads)
    share = None if memory_bytes is None else memory_bytes // (groups * replicas)
    encoder, reranker = (
        LocalEncoder(EncoderServer(gallery, compute)),
        LocalReranker(RerankServer(gallery, compute)),
    )
    served = [
        [
            LocalReplica(
                f"{group}/{slot(replica)}", GroupServer(gallery, group, groups, cache, share), scanning
            )
            for replica in range(replicas)
        ]
        for group in range(groups)
    ]
    try:
        yield Backend(served, encoder, reranker)
    finally:
        await scanning.drain()
        await encoder.close()
        await reranker.close()
