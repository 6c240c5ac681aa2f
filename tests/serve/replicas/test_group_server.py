"""A replica of a group: what it keeps, what it refuses, and that it checks itself before it counts."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import serve.replicas.group_server
from index.build import BuildOptions
from index.generation import read_generation
from index.group import Scan, Scanned, ShardGroup, new_bytes
from index.removal import delete
from ingest.errors import BadInput, Corrupt, NotFound, OverBudget
from ingest.gallery import Gallery
from ingest.job import Job
from serve.replicas.group_server import IDLE_S, GroupServer
from serve.wire import decode_scanned, encode_scans
from tests.tiny import DIM, RECIPE, TinyVectors, build_tiny, ingest, job_on, memory_store, vectors

QUERY = np.full(DIM, 0.5, np.float32)


@dataclass
class Clock:
    """A clock that a test turns."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Growing:
    """A gallery that gains images, generation by generation."""

    job: Job = field(default_factory=lambda: job_on(memory_store()))
    sources: list[TinyVectors] = field(default_factory=list)

    def grow(self, count: int = 20, sources: int = 1) -> int:
        """Publishes one more generation, with a shard more for each source; returns its number."""
        for _ in range(sources):
            self.sources.append(vectors(f"source-{len(self.sources)}", count // sources))
            ingest(self.job, self.sources[-1])
        return build_tiny(self.job).number

    @property
    def ids(self) -> list[int]:
        return sorted(image for source in self.sources for image in source.ids())

    def recut(self) -> int:
        """Publishes the same images in other shards; returns the generation's number."""
        recipe = RECIPE.model_copy(update={"shard_rows": 100})
        return build_tiny(self.job, BuildOptions(rebuild=True), recipe).number

    def damage(self, number: int) -> None:
        """Changes a byte of an index that no generation before has."""
        before = {shard.shard for shard in read_generation(self.gallery, number - 1).shards}
        new = next(s for s in read_generation(self.gallery, number).shards if s.shard not in before)
        data = bytearray(self.gallery.store.read(new.index.name))
        data[len(data) // 2] ^= 1
        self.gallery.store.replace(new.index.name, bytes(data))

    def new_bytes(self, number: int) -> int:
        """What one group takes that has all of a generation."""
        generation = read_generation(self.gallery, number)
        return new_bytes(generation, generation.shards)

    @property
    def gallery(self) -> Gallery:
        return self.job.gallery


@pytest.fixture
def growing() -> Growing:
    made = Growing()
    made.grow(sources=4)
    return made


def scan(server: GroupServer, generation: int, k: int = 5, vector: np.ndarray = QUERY) -> Scanned:
    (answer,) = decode_scanned(server.scan(generation, encode_scans([Scan(vector, k, 1)])))
    assert isinstance(answer, Scanned)
    return answer


def loaded(server: GroupServer) -> list[int]:
    return [state.generation for state in server.states()]


# -- what is loaded ---------------------------------------------------------------------------------------


def test_a_load_says_what_it_loaded_and_the_same_again_does_nothing(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 2)
    state = server.load(1)
    assert (state.generation, state.group, state.dim, state.lists) == (1, 0, DIM, 1)
    assert state.columns == {"source": "text", "key": "text"}
    assert state.code_bytes > 0
    assert server.load(1) == state == server.states()[0]


def test_every_row_is_in_exactly_one_group(growing: Growing) -> None:
    servers = [GroupServer(growing.gallery, group, 3) for group in range(3)]
    states = [server.load(1) for server in servers]
    assert sum(state.rows for state in states) == 20
    shards = [shard for state in states for shard in state.shards]
    assert len(set(shards)) == len(shards) == len(read_generation(growing.gallery, 1).shards) > 1
    found = [image for server in servers for image in scan(server, 1, 20).image_ids.tolist()]
    assert sorted(found) == growing.ids


def test_a_group_without_shards_serves_nothing_and_says_so(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 7, 8)
    assert server.load(1).rows == 0
    assert (len(scan(server, 1).image_ids), server.rows(1, [1, 2])) == (0, [None, None])
    assert loaded(server) == [1]


def test_a_generation_that_is_not_loaded_is_not_found(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    with pytest.raises(NotFound, match="generation 1"):
        server.scan(1, encode_scans([Scan(QUERY, 5, 1)]))
    with pytest.raises(NotFound):
        server.rows(1, [1])
    with pytest.raises(NotFound):
        server.load(9)
    assert server.states() == []


def test_there_is_no_group_beyond_the_last(growing: Growing) -> None:
    for group in (-1, 2):
        with pytest.raises(BadInput):
            GroupServer(growing.gallery, group, 2)


def test_a_third_generation_takes_the_place_of_the_oldest(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    growing.grow()
    growing.grow()
    for number in (1, 2, 3):
        server.load(number)
    assert loaded(server) == [2, 3]
    assert len(scan(server, 2, 100).image_ids) == 40
    assert len(scan(server, 3, 100).image_ids) == 60


def test_the_generation_that_is_asked_stays_when_its_successor_never_was(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    growing.grow()
    growing.grow()
    server.load(1)
    server.load(2)
    scan(server, 1)
    server.load(3)
    assert loaded(server) == [1, 3]


def test_what_was_never_asked_goes_before_what_was_asked_long_ago(growing: Growing) -> None:
    """A quiet server: 1 was asked, 2 never was, and 3 is tried."""
    clock = Clock()
    server = GroupServer(growing.gallery, 0, 1, clock=clock)
    growing.grow()
    growing.grow()
    server.load(1)
    scan(server, 1)
    server.load(2)
    clock.now += 10 * IDLE_S
    server.load(3)
    assert loaded(server) == [1, 3]


def test_what_is_served_goes_last_even_where_nobody_ever_asked_it(growing: Growing) -> None:
    """1 is served, 2 was refused by another group, and 3 is tried; then 4, in the place of all."""
    server = GroupServer(growing.gallery, 0, 1)
    growing.grow()
    growing.grow()
    server.load(1)
    server.load(2, keep=1)
    scan(server, 2)
    server.load(3, keep=1)
    assert loaded(server) == [1, 3]
    number = growing.grow()
    growing.damage(number)
    with pytest.raises(Corrupt):
        server.load(number, replace=True, keep=1)
    assert loaded(server) == [1], "it comes back"


def test_a_superseded_generation_goes_when_nobody_asks_it_for_30_seconds(growing: Growing) -> None:
    clock = Clock()
    server = GroupServer(growing.gallery, 0, 1, clock=clock)
    growing.grow()
    server.load(1)
    scan(server, 1)
    server.load(2)
    clock.now += 10 * IDLE_S
    assert loaded(server) == [1, 2], "nobody has gone over to the new one yet"
    scan(server, 1)
    clock.now += 1
    scan(server, 2)
    clock.now += IDLE_S - 2
    assert loaded(server) == [1, 2]
    clock.now += 2
    assert loaded(server) == [2]


def test_what_was_deleted_is_not_found_in_the_generation_after(growing: Growing) -> None:
    gone = growing.sources[0].ids()[3]
    delete(growing.job, [gone])
    server = GroupServer(growing.gallery, 0, 1)
    assert (server.load(1).rows, server.load(2).rows) == (20, 19)
    assert gone in scan(server, 1, 20).image_ids
    assert gone not in scan(server, 2, 20).image_ids
    assert (server.rows(1, [gone])[0] is None, server.rows(2, [gone])) == (False, [None])


def test_what_two_generations_share_is_counted_once(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    before = server.load(1).code_bytes
    delete(growing.job, [growing.sources[0].ids()[3]])
    assert server.load(2).code_bytes == 0
    added = server.load(growing.grow()).code_bytes
    assert [state.code_bytes for state in server.states()] == [before, added], "of 2, which is now the older"


# -- what is refused --------------------------------------------------------------------------------------


def test_a_damaged_generation_is_refused_and_the_other_goes_on(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    state = server.load(1)
    number = growing.grow()
    growing.damage(number)
    with pytest.raises(Corrupt):
        server.load(number)
    assert server.states() == [state]
    assert len(scan(server, 1, 20).image_ids) == 20


def test_a_generation_that_answers_wrongly_is_refused(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ShardGroup.scan

    def upside_down(self: ShardGroup, asked: Scan) -> Scanned:
        found = honest(self, asked)
        return replace(found, scores=found.scores[::-1].copy())

    def not_finite(self: ShardGroup, asked: Scan) -> Scanned:
        found = honest(self, asked)
        return replace(found, scores=np.full_like(found.scores, np.nan))

    def forgetful(self: ShardGroup, asked: Scan) -> Scanned:
        found = honest(self, asked)
        return replace(found, scores=found.scores[1:], image_ids=found.image_ids[1:], places=found.places[1:])

    server = GroupServer(growing.gallery, 0, 1)
    for wrong in (upside_down, not_finite, forgetful):
        with monkeypatch.context() as patch:
            patch.setattr(ShardGroup, "scan", wrong)
            with pytest.raises(Corrupt):
                server.load(1)
        assert server.states() == []
    server.load(1)
    monkeypatch.setattr(ShardGroup, "scan", not_finite)
    with pytest.raises(Corrupt):  # also later: a replica that has gone wrong says so
        server.states()


def test_one_bad_scan_of_a_batch_leaves_the_others(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    server.load(1)
    batch = [Scan(QUERY, 3, 1), Scan(np.ones(DIM + 1, np.float32), 3, 1), Scan(QUERY, 4, 1)]
    first, bad, last = decode_scanned(server.scan(1, encode_scans(batch)))
    assert isinstance(bad, BadInput)
    assert isinstance(first, Scanned) and isinstance(last, Scanned)
    assert (len(first.image_ids), len(last.image_ids)) == (3, 4)


# -- memory -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_beside_the_other_may_replace_it() -> None:
    growing = Growing()
    growing.grow()
    growing.grow()
    number = growing.recut()
    taken = GroupServer(growing.gallery, 0, 1).load(1).code_bytes
    server = GroupServer(growing.gallery, 0, 1, memory_bytes=growing.new_bytes(number) + taken - 1)
    server.load(1)
    with pytest.raises(OverBudget, match="in the place of"):
        server.load(number)
    assert loaded(server) == [1], "a refusal costs nothing"
    server.load(number, replace=True)
    assert loaded(server) == [number]


def test_what_fits_nowhere_is_refused_before_anything_is_dropped(growing: Growing) -> None:
    need = growing.new_bytes(1)
    server = GroupServer(growing.gallery, 0, 1, memory_bytes=need)
    server.load(1)
    number = growing.grow(200)
    with pytest.raises(OverBudget):
        server.load(number)
    with pytest.raises(OverBudget, match="more groups"):
        server.load(number, replace=True)
    assert loaded(server) == [1]


def test_a_flip_that_adds_images_needs_room_for_those_only(growing: Growing) -> None:
    need = growing.new_bytes(1)
    number = growing.grow(8)
    added = growing.new_bytes(number) - need
    server = GroupServer(growing.gallery, 0, 1, memory_bytes=need + added + need // 4)
    server.load(1)
    server.load(number)
    assert loaded(server) == [1, number]


def test_what_is_shared_takes_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.replicas.group_server, "MOST_LOADED", 3)
    growing = Growing()
    growing.grow(200)
    taken = GroupServer(growing.gallery, 0, 1).load(1).code_bytes
    delete(growing.job, [growing.sources[0].ids()[3]])
    number = growing.grow(200)
    added = growing.new_bytes(number) - growing.new_bytes(1)
    server = GroupServer(growing.gallery, 0, 1, memory_bytes=taken + added)
    for each in (1, 2, number):
        server.load(each)
    assert loaded(server) == [1, 2, number]


def test_a_replacement_that_fails_brings_back_what_it_replaced(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    server.load(1)
    number = growing.grow()
    growing.damage(number)
    with pytest.raises(Corrupt):
        server.load(number, replace=True)
    assert loaded(server) == [1]
    assert len(scan(server, 1, 20).image_ids) == 20


def test_of_two_that_were_replaced_in_vain_the_one_that_was_asked_comes_back(growing: Growing) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    growing.grow()
    server.load(1)
    scan(server, 1)
    server.load(2)
    number = growing.grow()
    growing.damage(number)
    with pytest.raises(Corrupt):
        server.load(number, replace=True)
    assert loaded(server) == [1]


def test_a_scan_that_began_before_its_generation_was_dropped_ends_well(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = GroupServer(growing.gallery, 0, 1)
    server.load(1)
    number = growing.grow()
    honest = serve.replicas.group_server.decode_scans

    def dropped_meanwhile(batch: bytes) -> list[Scan]:
        server.load(number, replace=True)
        return honest(batch)

    monkeypatch.setattr(serve.replicas.group_server, "decode_scans", dropped_meanwhile)
    assert len(scan(server, 1, 20).image_ids) == 20
    monkeypatch.undo()
    assert loaded(server) == [number]
