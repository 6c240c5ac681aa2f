"""Filters cost no more than a few passes over the columns, and are no larger than anybody writes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import index.filter_columns
from index.filters import MOST_TEXT, MOST_VALUES, mask, parse_filter
from ingest.errors import BadInput


def listed(column: str, values: list[Any]) -> dict[str, Any]:
    return {"column": column, "op": "in", "value": values}


@pytest.mark.parametrize(
    ("values", "stored", "within"),
    [
        ([3, 5, 4.0, 1.5, 2**70], pa.array([3, 4, None, 6, -5]), [True, True, False, False, False]),
        ([0, 0.1, 2**53 + 1], pa.array([0.0, -0.0, 0.1, float("nan"), 2.0**53, None]), [1, 1, 1, 0, 0, 0]),
        ([-0.0], pa.array([0.0, -0.0, 1.0]), [True, True, False]),
        (["a", "ü"], pa.array(["a", "ü", "", None]), [True, True, False, False]),
        ([True], pa.array([True, False, None]), [True, False, False]),
        (["3", "true"], pa.array([3, 30, None]), [True, False, False]),
    ],
)
def test_many_values_are_looked_for_in_one_pass(
    values: list[Any], stored: pa.Array, within: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand comparisons of a column of millions would take a minute."""
    where = parse_filter(listed("v", values))
    assert where is not None
    table = pa.table({"image_id": np.arange(len(stored)), "metadata.v": stored})
    monkeypatch.setattr(index.filter_columns, "compared", None)
    assert mask(where, table).tolist() == [bool(each) for each in within]


def test_all_lists_of_a_filter_together_have_only_so_many_values() -> None:
    half = list(range(MOST_VALUES // 2))
    assert parse_filter({"or": [listed("a", half), listed("b", half)]}) is not None
    with pytest.raises(BadInput, match=f"more than {MOST_VALUES} values"):
        parse_filter({"or": [listed("a", half), listed("b", half), listed("c", [1])]})


def test_all_texts_of_a_filter_together_have_only_so_many_characters() -> None:
    long = "x" * 8_000
    some = [{"column": "a", "op": "=", "value": long}] * (MOST_TEXT // 8_001)
    assert parse_filter({"or": some}) is not None
    with pytest.raises(BadInput, match=f"more than {MOST_TEXT} characters"):
        parse_filter({"or": [*some, *some[:1]]})
    for value in (long, 10**4_000):
        with pytest.raises(BadInput, match=f"more than {MOST_TEXT} characters"):
            parse_filter(listed("a", [value] * 40))
