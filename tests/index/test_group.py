"""Groups of shards: any grouping answers as one group, to the bit, and that one as all scores in order."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filters import mask, parse_filter
from index.group import (
    Row,
    Scan,
    Scanned,
    assign_shards,
    enough,
    list_schedule,
    merge_scanned,
    open_group,
    search_groups,
)
from index.opened import open_generation
from index.shards import Shard
from ingest.errors import BadInput, NotFound
from ingest.feature_reader import Place
from ingest.records import image_identity
from ingest.tables import ObjectRef, read_table
from tests.index.described_gallery import (
    DIM,
    EACH,
    FILTERS,
    QUANTIZERS,
    SOURCES,
    assert_same,
    described,
    drawn,
    gallery,
    one_group,
)

each_kind = pytest.mark.parametrize("kind", sorted(QUANTIZERS))


@each_kind
@settings(deadline=None, max_examples=60)
@given(
    groups_of=st.lists(st.integers(0, 7), min_size=SOURCES + 1, max_size=SOURCES + 1),
    seed=st.integers(0, 50),
    k=st.sampled_from([1, 2, 3, 7, 10, 25, 100, 2000]),
    nprobe=st.sampled_from([1, 2, 5, 12, 40]),
    text=st.sampled_from(FILTERS),
    detail=st.sampled_from([0, 3, 50]),
)
def test_any_grouping_answers_as_one_group(
    kind: str, groups_of: list[int], seed: int, k: int, nprobe: int, text: str | None, detail: int
) -> None:
    job, generation = gallery(kind)
    where, vector = parse_filter(text), drawn(1, seed)[0]
    if seed % 3 == 0:  # one that ties are the best for
        vector = drawn(EACH, 1000)[9 * (seed % 10)]
    groups = [
        open_group(
            job.gallery,
            generation,
            [s for s, at in zip(generation.shards, groups_of, strict=True) if at == g],
            None,
        )
        for g in range(8)
    ]
    expected = search_groups([one_group(kind)], vector, k, nprobe, where, detail)
    assert_same(search_groups(groups, vector, k, nprobe, where, detail), expected)
    assert len(expected.image_ids) == min(k, expected.allowed)
    assert len(expected.rows) == min(detail, len(expected.image_ids))


@dataclass(frozen=True)
class Everything:
    """Every row that can be found, by what is stored: ids, decoded vectors, and its row of the table."""

    ids: np.ndarray
    vectors: np.ndarray
    table: pa.Table
    places: list[Place]


@cache
def everything(kind: str) -> Everything:
    job, generation = gallery(kind)
    opened = open_generation(job.gallery, generation.number)
    assert opened.index is not None
    if kind != "flat":
        import faiss

        faiss.extract_index_ivf(opened.index).make_direct_map()
    vectors = opened.index.reconstruct_n(0, opened.index.ntotal)
    tables = [read_table(job.gallery.store, shard.rows) for shard in generation.shards]
    masks = [generation.masks.get(shard.shard, np.zeros(shard.count, bool)) for shard in generation.shards]
    live = np.flatnonzero(~np.concatenate(masks))
    table = pa.concat_tables(tables, promote_options="permissive").take(pa.array(live))
    places = [
        Place(part, row)
        for part, row in zip(table["part"].to_pylist(), table["row"].to_pylist(), strict=True)
    ]
    return Everything(table["image_id"].to_numpy(), vectors[live], table, places)


@each_kind
@pytest.mark.parametrize("text", FILTERS)
def test_all_lists_give_all_scores_in_order(kind: str, text: str | None) -> None:
    """Ids are free where scores are equal but for rounding: there the law of order is the group's own."""
    group, all_rows, where = one_group(kind), everything(kind), parse_filter(text)
    allowed = np.ones(len(all_rows.ids), bool) if where is None else mask(where, all_rows.table)
    for vector in drawn(5, 500):
        found = group.scan(Scan(vector, 2 * len(all_rows.ids), group.lists, where))
        products = np.clip(all_rows.vectors[allowed] @ vector, -1, 1)
        by_id = dict(zip(all_rows.ids[allowed].tolist(), products, strict=True))
        assert found.allowed == len(by_id) == len(found.image_ids)
        assert {*found.image_ids.tolist()} == by_id.keys()
        expected = [by_id[image] for image in found.image_ids.tolist()]
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=2e-6)
        keys = list(zip((-found.scores).tolist(), found.image_ids.tolist(), strict=True))
        assert keys == sorted(keys)


@each_kind
def test_the_first_k_are_the_first_of_all_also_where_the_cut_goes_through_a_tie(kind: str) -> None:
    group = one_group(kind)
    vector = drawn(EACH, 1000)[18]
    whole = group.scan(Scan(vector, 10_000, group.lists))
    assert len(np.unique(whole.scores[:6])) == 1, "of eight equal ones two are masked"
    for k in range(1, 30):
        first = group.scan(Scan(vector, k, group.lists))
        assert first.scores.tobytes() == whole.scores[:k].tobytes()
        assert first.image_ids.tolist() == whole.image_ids[:k].tolist()
        assert first.places == whole.places[:k]


@each_kind
def test_a_scan_reads_the_lists_that_it_is_told_to_and_no_more(kind: str) -> None:
    group, vector = one_group(kind), drawn(1, 3)[0]
    found = [len(group.scan(Scan(vector, 10_000, lists)).image_ids) for lists in (1, 2, 12, 99)]
    assert found[2] == found[3] == group.rows
    if kind == "flat":
        assert (group.lists, found[0]) == (1, group.rows)
    else:
        assert group.lists == 12
        assert 0 < found[0] < found[1] < group.rows
        scanned = group.scan(Scan(vector, 10_000, 1))
        assert not enough(scanned, 10_000) and enough(scanned, found[0])
        assert scanned.allowed == group.rows


@each_kind
def test_rows_say_what_was_listed(kind: str) -> None:
    _, generation = gallery(kind)
    group, all_rows = one_group(kind), everything(kind)
    rows = group.rows_of(all_rows.ids.tolist())
    for image, place, row in zip(all_rows.ids.tolist(), all_rows.places, rows, strict=True):
        assert row is not None
        number = int(row.source.removeprefix("s"))
        assert (row.image_id, row.place, group.locate(image)) == (image, place, place)
        assert image == image_identity(row.source, row.key)[0]
        expected = described(number, int(row.key))
        assert row.metadata == expected
        assert {name: type(value) for name, value in row.metadata.items()} == {
            name: type(value) for name, value in expected.items()
        }
    taken = image_identity("s0", "9")[0]
    assert group.rows_of([taken, 12345, int(all_rows.ids[0])]) == [None, None, rows[0]]
    for unknown in (taken, 12345):
        with pytest.raises(NotFound):
            group.locate(unknown)
    assert group.rows == generation.counts["live"] == len(all_rows.ids)
    assert group.columns == {
        "source": "text",
        "key": "text",
        "city": "text",
        "year": "number",
        "private": "boolean",
    }
    assert group.dim == DIM


def test_scans_at_once_answer_as_one_after_the_other() -> None:
    job, generation = gallery("opq")
    group = open_group(job.gallery, generation, generation.shards, None)
    asked = [
        Scan(vector, k, lists, parse_filter(text), 2)
        for vector in drawn(4, 8)
        for k, lists in ((3, 1), (40, 12))
        for text in FILTERS
    ]
    expected = [one_group("opq").scan(each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for one, other in zip(pool.map(group.scan, asked), expected, strict=True):
                assert_same(one, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vector": np.zeros(3, np.float32)}, "3 dimensions, and the gallery 16"),
        ({"vector": np.full(DIM, np.nan, np.float32)}, "NaN"),
        ({"k": 0}, "ask for 1 or more"),
        ({"lists": 0}, "at least 1 list"),
    ],
)
def test_a_scan_that_cannot_be_answered_is_refused(change: dict[str, Any], says: str) -> None:
    asked = replace(Scan(drawn(1, 0)[0], 3, 2), **change)
    with pytest.raises(BadInput, match=says):
        one_group("ivfadc").scan(asked)


# -- groups, lists, merging -------------------------------------------------------------------------------


def shard_of(rows: int, number: int) -> Shard:
    return Shard(str(number), ObjectRef("i", 1, ""), ObjectRef("r", 1, "", rows), ())


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 8))
def test_shards_are_spread_evenly_and_stay_where_they_are(rows: list[int], groups: int) -> None:
    shards = [shard_of(count, number) for number, count in enumerate(rows)]
    assigned = assign_shards(shards, groups)
    assert len(assigned) == groups
    assert sorted(s.shard for each in assigned for s in each) == sorted(s.shard for s in shards)
    sizes = [sum(s.count for s in each) for each in assigned]
    assert max(sizes) - min(sizes) <= max(rows, default=0)
    for cut in range(len(shards)):
        for before, after in zip(assign_shards(shards[:cut], groups), assigned, strict=True):
            assert after[: len(before)] == before
    with pytest.raises(BadInput):
        assign_shards(shards, 0)


def test_a_group_without_shards_finds_nothing() -> None:
    job, generation = gallery("flat")
    empty = open_group(job.gallery, generation, (), None)
    assert (empty.rows, empty.lists, empty.dim, dict(empty.columns)) == (0, 1, 0, {})
    found = empty.scan(Scan(drawn(1, 0)[0], 5, 3, parse_filter("year = 1"), 5))
    assert (found.image_ids.tolist(), found.allowed, found.rows) == ([], 0, ())
    assert enough(found, 5)
    assert empty.rows_of([1]) == [None]
    assert len(search_groups([empty], drawn(1, 0)[0], 5, 1).image_ids) == 0


@given(st.integers(1, 100), st.integers(1, 100))
def test_lists_are_read_in_three_tries_at_most_and_all_at_last(nprobe: int, lists: int) -> None:
    tries = list(list_schedule(nprobe, lists))
    assert tries[0] == min(nprobe, lists) and tries[-1] == lists
    assert tries == sorted(set(tries)) and len(tries) <= 3
    assert all(each in (nprobe, 4 * nprobe, lists) for each in tries)


def test_merging_keeps_rows_while_all_that_are_better_have_theirs() -> None:
    def answer(first: int, scores: list[float], rows: int) -> Scanned:
        ids = list(range(first, first + len(scores)))
        known = [Row(image, Place("p", image), "s", str(image), {}) for image in ids[:rows]]
        places = tuple(Place("p", image) for image in ids)
        return Scanned(
            np.array(scores, np.float32), np.array(ids), places, len(ids), tuple(known), 0.1 * first
        )

    one, other = answer(10, [0.9, 0.5, 0.2], 2), answer(1, [0.8, 0.5, 0.5], 3)
    merged = merge_scanned([one, other], 5)
    assert merged.image_ids.tolist() == [10, 1, 2, 3, 11]
    assert [row.image_id for row in merged.rows] == [10, 1, 2, 3, 11]
    assert merged.places == tuple(Place("p", image) for image in (10, 1, 2, 3, 11))
    assert (merged.allowed, merged.seconds) == (6, 1.0)
    assert [row.image_id for row in merge_scanned([replace(one, rows=()), other], 5).rows] == []
    assert merge_scanned([other, one], 5).image_ids.tolist() == merged.image_ids.tolist()
    nothing = merge_scanned([], 5)
    assert (len(nothing.image_ids), nothing.allowed, nothing.scores.dtype) == (0, 0, np.float32)
