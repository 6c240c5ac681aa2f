"""A backend that holds small made-up generations, and fails as it is told to.

A generation's images, vectors and metadata follow from its number, so that every result says which generation
it is from. Scans read inverted lists as a real group does, by numpy.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from index.generation import Generation, Models
from index.group import Row, Scan, Scanned, assign_shards
from index.projection import l2_normalised
from index.quantizer import FlatSettings
from index.recipe import Recipe
from index.rerank import Hit
from index.shards import Shard
from index.steps import PairSettings, Query, StepSettings
from ingest.errors import NotFound, ReseenError, Unavailable
from ingest.feature_reader import Place
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected
from ingest.tables import ObjectRef
from serve.backend import Backend, Comparison, Encoded, GroupState
from serve.query import ImageQuery
from serve.service.view import Reading
from serve.wire import decode_scans, encode_scanned

DIM, LISTS, SHARD_ROWS = 4, 8, 10
RECIPE = Recipe(name="made-up", quantizer=FlatSettings())


def generation(number: int, shards: int = 4) -> Generation:
    """Shards of ten images each."""
    named = tuple(
        Shard(
            f"shard-{number}-{at}",
            ObjectRef(f"{at}.faiss", 1, "0"),
            ObjectRef(f"{at}.parquet", 1, "0", SHARD_ROWS),
            (part_of(number, at),),
        )
        for at in range(shards)
    )
    rows = shards * SHARD_ROWS
    return Generation(
        number=number,
        action="build",
        recipe=RECIPE,
        models=Models(None, None, None, "e", "q"),
        catalogue=1,
        deletions=1,
        shards=named,
        masks={},
        counts={"rows": rows, "masked": 0, "live": rows, "rejected": 0},
        gate={},
        versions={},
        parent=number - 1,
        writer={"at": "2026-01-01T00:00:00Z"},
    )


def part_of(number: int, shard: int) -> str:
    return f"part-{number}-{shard}"


def vectors_of(number: int, shard: int) -> np.ndarray:
    """(10, 4) float32, L2-normalised."""
    drawn = np.random.default_rng([number, shard]).standard_normal((SHARD_ROWS, DIM))
    return l2_normalised(drawn.astype(np.float32))


def image_of(shard: int, row: int) -> int:
    return 1000 * shard + row


def best(number: int, vector: np.ndarray, k: int, shards: Sequence[int]) -> list[int]:
    """The images that a search must find, by all lists of some shards."""
    found = [
        (-float(score), image_of(shard, row))
        for shard in shards
        for row, score in enumerate(vectors_of(number, shard) @ vector)
    ]
    return [image for _, image in sorted(found)[:k]]


@dataclass
class FakeReplica:
    """What it is told to do is read at each call.

    scan_s: that a scan takes. dead: every call fails at once. stopped: no call ends.
    refuses: what a load raises, by generation.
    most: generations it holds at once, before the oldest goes, and of those the one to keep last.
    beside: what a load beside another raises. columns: that no other group has.
    """

    group: int
    groups: int
    slot: int
    generations: Mapping[int, Generation]
    scan_s: float = 0.001
    load_s: float = 0.1
    dead: bool = False
    stopped: bool = False
    refuses: dict[int, ReseenError] = field(default_factory=dict)
    beside: ReseenError | None = None
    columns: dict[str, str] = field(default_factory=dict)
    most: int = 2
    loaded: list[int] = field(default_factory=list)
    running: int = 0
    scans: int = 0
    messages: int = 0
    loads: int = 0
    most_loads: int = 0

    @property
    def name(self) -> str:
        return f"{self.group}/{'abcdef'[self.slot]}"

    def restart(self) -> None:
        self.dead = self.stopped = False
        self.loaded.clear()

    def shards(self, number: int) -> list[int]:
        assigned = assign_shards(self.generations[number].shards, self.groups)[self.group]
        return [self.generations[number].shards.index(shard) for shard in assigned]

    async def _turn(self, seconds: float) -> None:
        self.running += 1
        try:
            if self.dead:
                raise Unavailable(f"{self.name} is dead")
            await asyncio.sleep(seconds)
            while self.stopped:
                await asyncio.sleep(0.05)
            if self.dead:
                raise Unavailable(f"{self.name} died")
        finally:
            self.running -= 1

    def _has(self, number: int) -> None:
        if number not in self.loaded:
            raise NotFound(f"{self.name} has not loaded generation {number}")

    async def scan(self, generation: int, batch: bytes) -> bytes:
        scans = decode_scans(batch)
        self.messages += 1
        self.scans += len(scans)
        self._has(generation)
        await self._turn(self.scan_s)
        self._has(generation)
        return encode_scanned([self._answer(generation, scan) for scan in scans])

    def _answer(self, number: int, scan: Scan) -> Scanned:
        found = [
            (-float(score), image_of(shard, row), Place(part_of(number, shard), row))
            for shard in self.shards(number)
            for row, score in enumerate(vectors_of(number, shard) @ scan.vector)
            if row % LISTS < scan.lists
        ]
        found = sorted(found)[: scan.k]
        return Scanned(
            np.array([-score for score, _, _ in found], np.float32),
            np.array([image for _, image, _ in found], np.int64),
            tuple(place for _, _, place in found),
            SHARD_ROWS * len(self.shards(number)),
            tuple(_row(number, image, place) for _, image, place in found[: scan.detail]),
            self.scan_s,
        )

    async def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        self._has(generation)
        await self._turn(self.scan_s)
        there = set(self.shards(generation))
        return [
            _row(generation, image, Place(part_of(generation, image // 1000), image % 1000))
            if image // 1000 in there and image % 1000 < SHARD_ROWS
            else None
            for image in image_ids
        ]

    async def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        self.loads += 1
        self.most_loads = max(self.most_loads, self.loads)
        try:
            if generation not in self.loaded:
                if self.beside is not None and self.loaded and not (replace or self.dead):
                    raise self.beside
                if replace:
                    self.loaded.clear()
                await self._turn(self.load_s)
                if generation in self.refuses:
                    raise self.refuses[generation]
                self.loaded.sort(key=lambda number: number == keep)
                self.loaded = [*self.loaded, generation][-self.most :]
            return self._state(generation)
        finally:
            self.loads -= 1

    async def states(self) -> list[GroupState]:
        await self._turn(0.001)
        return [self._state(number) for number in self.loaded]

    def _state(self, number: int) -> GroupState:
        shards = [self.generations[number].shards[at] for at in self.shards(number)]
        columns = {"generation": "integer", "source": "text", "key": "text", **self.columns}
        digests = tuple(shard.shard for shard in shards)
        return GroupState(
            number, self.group, digests, SHARD_ROWS * len(shards), LISTS, DIM, columns, 1, self.load_s
        )


def _row(number: int, image: int, place: Place) -> Row:
    return Row(image, place, "made-up", f"{image}.jpg", {"generation": number})


class NoImages:
    """Encoder and reranker of a gallery of vectors; `delay_s` before the stored vectors come."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.away = False

    async def encode(self, generation: int, image: ImageQuery, labels: Collection[str]) -> Encoded | Rejected:
        raise Unavailable("there are no images here")

    async def warm(self, generation: int) -> None:
        raise AssertionError("vectors have no encoder")

    async def look(
        self, generation: int, settings: PairSettings, query: Query, hits: Sequence[Hit]
    ) -> list[Hit]:
        raise Unavailable("there are no images here")

    async def expand(
        self, generation: int, settings: StepSettings, query: Query, hits: Sequence[Hit]
    ) -> Query:
        vectors = await self.vectors(generation, [hit.place for hit in hits])
        return Query(l2_normalised((query.vector + vectors.sum(axis=0))[None])[0], query.features)

    async def stored(self, generation: int, place: Place, labels: Collection[str]) -> Query | Rejected:
        (vector,) = await self.vectors(generation, [place])
        return Query(vector, ImageFeatures(0, 0, 1.0, {}))

    async def vectors(self, generation: int, places: Sequence[Place]) -> np.ndarray:
        await asyncio.sleep(self.delay_s)
        if self.away:
            raise Unavailable("the store does not answer")
        return np.stack([vectors_of(generation, int(part.rsplit("-", 1)[1]))[row] for part, row in places])

    async def compare(
        self, generation: int, steps: Sequence[StepSettings], query: Query, place: Place
    ) -> Comparison | Rejected:
        raise Unavailable("there are no images here")


class FakeWatch:
    """A gallery whose generations appear when they are published."""

    def __init__(self, generations: Mapping[int, Generation]) -> None:
        self.generations = generations
        self.published = [1]
        self.away = False

    async def numbers(self) -> list[int]:
        await asyncio.sleep(0.01)
        if self.away:
            raise Unavailable("the store does not answer")
        return list(self.published)

    async def read(self, number: int) -> Reading:
        await asyncio.sleep(0.01)
        if number not in self.generations:
            raise NotFound(f"there is no generation {number}")
        return Reading(self.generations[number], {"made-up": "vectors:made-up"})

    def close(self) -> None: ...


class World:
    """Some groups of some replicas, and the generations that they can load."""

    def __init__(self, groups: int = 2, replicas: int = 2, generations: int = 1, shards: int = 4) -> None:
        self.generations = {number: generation(number, shards) for number in range(1, generations + 1)}
        self.watch = FakeWatch(self.generations)
        self.images = NoImages()
        self.replicas = [
            [FakeReplica(group, groups, slot, self.generations) for slot in range(replicas)]
            for group in range(groups)
        ]
        self.backend = Backend(self.replicas, self.images, self.images)

    @property
    def all(self) -> list[FakeReplica]:
        return [replica for group in self.replicas for replica in group]
