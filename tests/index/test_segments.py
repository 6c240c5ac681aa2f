"""Segments: generations share what both have, answer as if they did not, and refuse what does not fit."""

from dataclasses import replace

import pytest

from index.build import build
from index.filters import parse_filter
from index.generation import Generation
from index.group import (
    Scan,
    ShardGroup,
    new_bytes,
    open_group,
    search_groups,
)
from index.removal import delete
from ingest.errors import BadInput, Corrupt
from ingest.job import Job
from ingest.records import image_identity, sha256
from ingest.tables import ObjectRef, encode_table, read_table
from tests.index.described_gallery import EACH, FILTERS, assert_same, drawn, recipe, source
from tests.tiny import ingest, job_on, memory_store


def grown(generations: int) -> tuple[Job, list[Generation]]:
    """A gallery that gains a source with every generation."""
    job = job_on(memory_store())
    found = []
    for number in range(generations):
        ingest(job, source(number))
        found.append(build(job, recipe("ivfadc"), {}))
    return job, found


def test_generations_share_what_both_have_and_answer_as_if_they_did_not() -> None:
    job, generations = grown(4)
    near: list[ShardGroup] = []
    for number, generation in enumerate(generations):
        before = {id(segment) for group in near for segment in group.segments}
        added = new_bytes(generation, generation.shards, near)
        group = open_group(job.gallery, generation, generation.shards, None, near[-1:])
        fresh = open_group(job.gallery, generation, generation.shards, None)
        assert len(group.segments) == number + 1
        assert len(before & {id(segment) for segment in group.segments}) == number
        assert added == new_bytes(generation, generation.shards[number:])
        assert len(fresh.segments) == 1
        for vector in drawn(3, number):
            for text in FILTERS:
                asked = [parse_filter(text), 5]
                assert_same(
                    search_groups([group], vector, 12, 1, *asked),
                    search_groups([fresh], vector, 12, 1, *asked),
                )
        near.append(group)
    assert new_bytes(generations[-1], generations[-1].shards, near) == 0


def test_masks_are_a_generations_own() -> None:
    job, (_, second) = grown(2)
    before = open_group(job.gallery, second, second.shards, None)
    image = image_identity("s1", "7")[0]
    after = delete(job, [image])
    assert after is not None
    group = open_group(job.gallery, after, after.shards, None, [before])
    assert [id(segment) for segment in group.segments] == [id(segment) for segment in before.segments]
    assert (before.rows, group.rows) == (2 * EACH, 2 * EACH - 1)
    where = parse_filter('key = "7"')
    for each, found in ((before, True), (group, False), (before, True)):
        for _ in range(2):
            assert (image in each.scan(Scan(drawn(1, 0)[0], 999, each.lists, where)).image_ids) == found
        assert (each.rows_of([image])[0] is not None) == found


def test_more_than_four_segments_are_merged_anew() -> None:
    job, generations = grown(6)
    group = open_group(job.gallery, generations[0], generations[0].shards, None)
    counts = []
    for generation in generations[1:]:
        group = open_group(job.gallery, generation, generation.shards, None, [group])
        counts.append(len(group.segments))
    assert counts == [2, 3, 4, 1, 2]


def test_a_segment_that_holds_more_than_is_wanted_is_not_shared() -> None:
    job, generations = grown(2)
    whole = open_group(job.gallery, generations[1], generations[1].shards, None)
    one = open_group(job.gallery, generations[1], generations[1].shards[:1], None, [whole])
    assert whole.segments[0] not in one.segments
    assert one.rows == EACH


def test_what_an_older_reseen_wrote_and_what_does_not_fit_is_refused_by_name() -> None:
    job, (generation,) = grown(1)
    store, (shard,) = job.gallery.store, generation.shards
    table = read_table(store, shard.rows)
    for changed, error, says in (
        (table.drop_columns(["source", "key"]), BadInput, "older Reseen.*--rebuild"),
        (table.slice(1), Corrupt, "90 vectors and its row table 89"),
    ):
        data = encode_table(changed, shard.rows.name)
        store.delete(shard.rows.name)
        store.create(shard.rows.name, data)
        ref = ObjectRef(shard.rows.name, len(data), sha256(data), changed.num_rows)
        with pytest.raises(error, match=says):
            open_group(job.gallery, generation, [replace(shard, rows=ref)], None)
