"""What goes over the wire comes out as it went in, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filters import parse_filter
from index.group import Row, Scan, Scanned
from ingest.errors import BadInput, Conflict, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from ingest.feature_reader import Place
from serve.wire import decode_scanned, decode_scans, encode_scanned, encode_scans

FILTERS = [None, "year >= 1990", 'city = "Röm" or not (private = true and x < 2.5)', 'key in ("a", "b")']

texts = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too: keys are bytes
values = st.one_of(texts, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
places = st.builds(Place, st.sampled_from(["p", "part-2", "f" * 32]), st.integers(0, 2**31 - 1))
image_ids = st.integers(0, 2**63 - 1)
floats32 = st.floats(-1, 1, width=32)


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    vector = np.array(draw(st.lists(floats32, min_size=1, max_size=9)), np.float32)
    numbers = st.integers(1, 2**31 - 1)
    where = parse_filter(draw(st.sampled_from(FILTERS)))
    return Scan(vector, draw(numbers), draw(numbers), where, draw(st.integers(0, 1000)))


@st.composite
def scanned(draw: st.DrawFn) -> Scanned:
    found = draw(st.lists(st.tuples(floats32, image_ids, places), max_size=6))
    rows = [
        Row(image, place, draw(texts), draw(texts), draw(st.dictionaries(texts, values, max_size=3)))
        for _, image, place in found[: draw(st.integers(0, 6))]
    ]
    return Scanned(
        np.array([score for score, _, _ in found], np.float32),
        np.array([image for _, image, _ in found], np.int64),
        tuple(place for _, _, place in found),
        draw(st.integers(0, 2**62)),
        tuple(rows),
        draw(st.floats(0, 1e6)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(scans(), max_size=5))
def test_scans_come_out_as_they_went_in(given_scans: list[Scan]) -> None:
    found = decode_scans(encode_scans(given_scans))
    assert len(found) == len(given_scans)
    for mine, theirs in zip(given_scans, found, strict=True):
        assert theirs.vector.dtype == np.float32 and theirs.vector.flags.aligned
        np.testing.assert_array_equal(mine.vector, theirs.vector)
        assert (mine.k, mine.lists, mine.where, mine.detail) == (
            theirs.k,
            theirs.lists,
            theirs.where,
            theirs.detail,
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(scanned(), max_size=4))
def test_answers_come_out_as_they_went_in(answers: list[Scanned]) -> None:
    found = decode_scanned(encode_scanned(answers))
    assert len(found) == len(answers)
    for mine, theirs in zip(answers, found, strict=True):
        assert isinstance(theirs, Scanned)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
        np.testing.assert_array_equal(mine.image_ids, theirs.image_ids)
        assert (mine.places, mine.allowed, mine.rows, mine.seconds) == (
            theirs.places,
            theirs.allowed,
            theirs.rows,
            theirs.seconds,
        )


@pytest.mark.parametrize("kind", [BadInput, NotFound, Conflict, Corrupt, Unavailable, OverBudget])
def test_errors_keep_their_class_and_message(kind: type[ReseenError]) -> None:
    nothing = Scanned(np.empty(0, np.float32), np.empty(0, np.int64), (), 0)
    before, error, after = decode_scanned(encode_scanned([nothing, kind("so it is: “x”"), nothing]))
    assert isinstance(before, Scanned) and isinstance(after, Scanned)
    assert type(error) is kind and str(error) == "so it is: “x”"


def test_missing_metadata_numbers_survive() -> None:
    row = Row(1, Place("p", 0), "s", "k", {"x": float("nan")})
    found = Scanned(np.ones(1, np.float32), np.ones(1, np.int64), (row.place,), 1, (row,))
    (there,) = decode_scanned(encode_scanned([found]))
    assert isinstance(there, Scanned) and np.isnan(there.rows[0].metadata["x"])
