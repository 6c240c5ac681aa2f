"""Laws of looking again: what a step adds decides the order, and what it did not see keeps its similarity."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.rerank import Hit, look_again, ranked_hits
from index.steps import Evidence, Query
from ingest.feature_reader import Place
from ingest.image_features import ImageFeatures
from ingest.outcomes import Outcome, Rejected

QUERY = Query(np.ones(2, np.float32), ImageFeatures(8, 8, 1.0, {"local": {}}))
GONE = Rejected(Outcome.MISSING, "it was listed, and is gone")


@dataclass
class Adds:
    """A step that adds a number by image id, and notes what it was shown; the width of an image is its id."""

    by_id: dict[int, float]
    labels: frozenset[str] = frozenset(["local"])
    kind: str = "adds"
    seen: list[tuple[int, float]] = field(default_factory=list)

    def score(
        self, query: Query, candidates: Sequence[ImageFeatures], scores: Sequence[float]
    ) -> list[Evidence]:
        assert query is QUERY
        self.seen += [(each.width, score) for each, score in zip(candidates, scores, strict=True)]
        return [Evidence(self.kind, self.by_id.get(each.width, 0.0)) for each in candidates]


@dataclass
class Reader:
    """Features whose width is the image's id, which is its row here; some cannot be had."""

    gone: frozenset[int] = frozenset()
    labels: Collection[str] = ()

    def __call__(self, places: Sequence[Place], labels: Collection[str]) -> list[ImageFeatures | Rejected]:
        self.labels = labels
        return [GONE if row in self.gone else ImageFeatures(row, 1, 1.0, {}) for _, row in places]


def hits(*pairs: tuple[int, float]) -> list[Hit]:
    return [Hit(image, Place("part", image), score, score) for image, score in pairs]


def ids(found: Sequence[Hit]) -> list[int]:
    return [hit.image_id for hit in found]


FIVE = hits((3, 0.9), (1, 0.8), (5, 0.7), (2, 0.6), (4, 0.5))


def test_a_candidate_rises_by_what_was_added() -> None:
    found = look_again(Adds({5: 0.25}), 5, QUERY, FIVE, Reader())
    assert ids(found) == [5, 3, 1, 2, 4]
    assert found[0].score == pytest.approx(0.95)
    assert found[0].similarity == 0.7
    assert [each.added for each in found[0].evidence] == [0.25]


def test_only_the_first_are_looked_at_and_the_others_stand_where_their_similarity_puts_them() -> None:
    step = Adds({2: 9.0, 5: 0.25})
    found = look_again(step, 3, QUERY, FIVE, Reader())
    assert [image for image, _ in step.seen] == [3, 1, 5]
    assert ids(found) == [5, 3, 1, 2, 4]
    assert [len(hit.evidence) for hit in found] == [1, 1, 1, 0, 0]
    assert [hit.score for hit in found[3:]] == [hit.similarity for hit in found[3:]] == [0.6, 0.5]


def test_of_equal_scores_the_lower_id_comes_first() -> None:
    found = look_again(Adds({4: 0.4}), 5, QUERY, FIVE, Reader())
    assert [(hit.image_id, hit.score) for hit in found[:2]] == [(3, 0.9), (4, 0.9)]
    tied = hits((9, 0.5), (7, 0.5), (8, 0.5))
    assert ids(ranked_hits(tied)) == [7, 8, 9]


def test_what_cannot_be_had_is_skipped_and_keeps_its_score() -> None:
    step = Adds({1: 0.5, 3: 0.5, 5: 0.5})
    found = look_again(step, 3, QUERY, FIVE, Reader(frozenset([1, 4])))
    assert step.seen == [(3, 0.9), (5, 0.7)]
    by_id = {hit.image_id: hit for hit in found}
    assert (by_id[1].score, by_id[1].evidence) == (0.8, ())
    assert ids(found) == [3, 5, 1, 2, 4]
    nobody = Adds({1: 0.5})
    assert look_again(nobody, 9, QUERY, FIVE, Reader(frozenset(range(9)))) == FIVE
    assert nobody.seen == []


def test_no_hits_and_no_depth_to_speak_of() -> None:
    assert look_again(Adds({}), 10, QUERY, [], Reader()) == []
    assert ids(look_again(Adds({5: 1.0}), 100, QUERY, FIVE, Reader())) == [5, 3, 1, 2, 4]


def test_a_step_gets_what_it_reads_and_no_more() -> None:
    reader = Reader()
    look_again(Adds({}, frozenset(["a", "b"])), 2, QUERY, FIVE, reader)
    assert reader.labels == {"a", "b"}


def test_steps_one_after_the_other_add_up_and_leave_their_evidence_in_order() -> None:
    first, second = Adds({2: 1.0}, kind="first"), Adds({2: 0.5, 3: 0.5}, kind="second")
    once = look_again(first, 5, QUERY, FIVE, Reader())
    twice = look_again(second, 2, QUERY, once, Reader())
    assert second.seen == [(2, 1.6), (3, 0.9)], "the best after the first step, with their scores so far"
    assert ids(twice) == [2, 3, 1, 5, 4]
    assert twice[0].score == pytest.approx(0.6 + 1.0 + 0.5)
    assert [(each.kind, each.added) for each in twice[0].evidence] == [("first", 1.0), ("second", 0.5)]
    assert [each.kind for each in twice[-1].evidence] == ["first"]


scored = st.dictionaries(st.integers(0, 50), st.floats(-1, 1), max_size=12).map(
    lambda drawn: ranked_hits(hits(*drawn.items()))
)


@given(scored, st.integers(1, 15))
def test_adding_nothing_keeps_the_order(found: list[Hit], depth: int) -> None:
    again = look_again(Adds({}), depth, QUERY, found, Reader())
    assert ids(again) == ids(found)
    assert [hit.score for hit in again] == [hit.score for hit in found]


@given(
    scored,
    st.integers(1, 15),
    st.dictionaries(st.integers(0, 50), st.floats(0, 1)),
    st.frozensets(st.integers(0, 50)),
)
def test_nobody_is_lost_nobody_falls_in_score_and_the_order_is_by_score_then_id(
    found: list[Hit], depth: int, added: dict[int, float], gone: frozenset[int]
) -> None:
    again = look_again(Adds(added), depth, QUERY, found, Reader(gone))
    assert sorted(ids(again)) == sorted(ids(found))
    keys = [(-hit.score, hit.image_id) for hit in again]
    assert keys == sorted(keys)
    for hit in again:
        assert hit.score == hit.similarity + sum(each.added for each in hit.evidence)
