"""Filters: both forms are one language, masks are what Python says row by row, and no text does harm."""

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filter_text import MOST_CHARACTERS, MOST_DEPTH
from index.filters import (
    MOST_COMPARISONS,
    MOST_VALUES,
    check_filter,
    columns_of,
    filter_json,
    mask,
    parse_filter,
    united_columns,
)
from index.shards import united_rows
from ingest.errors import BadInput

TYPES = {"year": pa.int64(), "price": pa.float64(), "city": pa.large_string(), "private": pa.bool_()}
KINDS = {"year": "integer", "price": "number", "city": "text", "private": "boolean"}
INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**65), 2**65),
    st.sampled_from([2**53, 2**53 + 1, 2**63, -(2**63) - 1, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.5, -0.5, 2.0**53, 2.0**63]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "ab", "Rome", 'R"o\\me', "naïve", "日本", "😀"]), st.text(max_size=4)
)
VALUES = {
    "integer": st.one_of(st.integers(-3, 3), INT64),
    "number": st.one_of(st.integers(-3, 3).map(float), st.floats()),
    "text": TEXTS,
    "boolean": st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn, most: int = 8) -> pa.Table:
    """Row tables in which a column may be missing, and any value absent."""
    count = draw(st.integers(0, most))
    names = draw(st.sets(st.sampled_from(sorted(TYPES))))
    rows = {
        "image_id": pa.array(range(count), pa.int64()),
        "source": pa.array(draw(st.lists(TEXTS, min_size=count, max_size=count)), pa.string()),
        "key": pa.array(draw(st.lists(st.binary(max_size=3), min_size=count, max_size=count)), pa.binary()),
    }
    for name in sorted(names):
        values = st.lists(st.none() | VALUES[KINDS[name]], min_size=count, max_size=count)
        rows[f"metadata.{name}"] = pa.array(draw(values), TYPES[name], from_pandas=False)
    return pa.table(rows)


@st.composite
def comparisons(draw: st.DrawFn) -> dict[str, Any]:
    column = draw(st.sampled_from([*KINDS, "source", "key"]))
    kind = KINDS.get(column, "text")
    value = {"text": TEXTS, "boolean": st.booleans()}.get(kind, NUMBERS)
    ops = {"text": ["prefix", "contains"], "boolean": []}.get(kind, [])
    op = draw(
        st.sampled_from(
            [*ops, "=", "!=", "in", "exists", *([] if kind == "boolean" else ["<", "<=", ">", ">="])]
        )
    )
    if op == "exists":
        return {"column": column, "op": op}
    return {
        "column": column,
        "op": op,
        "value": draw(st.lists(value, min_size=1, max_size=3) if op == "in" else value),
    }


TREES = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds(lambda some: {"and": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda some: {"or": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"not": one}, inner),
    ),
    max_leaves=6,
)


def naive(tree: dict[str, Any], row: dict[str, Any]) -> bool:
    """What a filter says of a row, by Python's own comparisons."""
    if "and" in tree:
        return all(naive(each, row) for each in tree["and"])
    if "or" in tree:
        return any(naive(each, row) for each in tree["or"])
    if "not" in tree:
        return not naive(tree["not"], row)
    stored = row.get(tree["column"])
    if stored is None or (isinstance(stored, float) and math.isnan(stored)):
        return False
    if tree["op"] == "exists":
        return True
    wanted = tree["value"]
    if isinstance(stored, bytes | str):
        wanted = [each.encode() for each in wanted] if tree["op"] == "in" else wanted.encode()
        stored = stored.encode() if isinstance(stored, str) else stored
    return bool(
        {
            "=": lambda: stored == wanted,
            "!=": lambda: stored != wanted,
            "<": lambda: stored < wanted,
            "<=": lambda: stored <= wanted,
            ">": lambda: stored > wanted,
            ">=": lambda: stored >= wanted,
            "in": lambda: stored in wanted,
            "prefix": lambda: stored.startswith(wanted),
            "contains": lambda: wanted in stored,
        }[tree["op"]]()
    )


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return [{n.removeprefix("metadata."): v for n, v in row.items()} for row in table.to_pylist()]


@settings(deadline=None, max_examples=300)
@given(TREES, st.lists(tables(), min_size=1, max_size=3), st.booleans())
def test_masks_are_what_python_says_row_by_row(
    tree: dict[str, Any], some: list[pa.Table], coded: bool
) -> None:
    where = parse_filter(tree)
    assert where is not None
    expected = [[naive(tree, row) for row in rows_of(table)] for table in some]
    if coded:  # as groups hold it
        some = [table.set_column(1, "source", table["source"].dictionary_encode()) for table in some]
    assert [mask(where, table).tolist() for table in some] == expected
    joined = pa.concat_tables(some, promote_options="default")
    assert mask(where, joined).tolist() == [each for one in expected for each in one]


# -- two forms --------------------------------------------------------------------------------------------


def as_text(tree: dict[str, Any]) -> str:
    """A tree as people would write it, with more parentheses than they need."""
    for word in ("and", "or"):
        if word in tree:
            return "(" + f" {word} ".join(as_text(each) for each in tree[word]) + ")"
    if "not" in tree:
        return f"not ({as_text(tree['not'])})"
    if tree["op"] == "exists":
        return f"{tree['column']} exists"
    value = tree["value"]
    written = f"({', '.join(map(literal, value))})" if tree["op"] == "in" else literal(value)
    return f"`{tree['column']}` {tree['op']} {written}"


def literal(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def flattened(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree without lists of one, which texts cannot say."""
    for word in ("and", "or"):
        if word in tree:
            some = [flattened(each) for each in tree[word]]
            return some[0] if len(some) == 1 else {word: some}
    return {"not": flattened(tree["not"])} if "not" in tree else tree


@settings(deadline=None)
@given(TREES)
def test_text_and_tree_are_one_language(tree: dict[str, Any]) -> None:
    assert parse_filter(as_text(tree)) == parse_filter(flattened(tree))
    where = parse_filter(tree)
    assert where is not None
    assert parse_filter(filter_json(where)) == where
    assert filter_json(where) == filter_json(parse_filter(json.loads(filter_json(where))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a = 1 or b = 2 and c = 3", {"or": ["a=1", {"and": ["b=2", "c=3"]}]}),
        ("(a = 1 or b = 2) AND c = 3", {"and": [{"or": ["a=1", "b=2"]}, "c=3"]}),
        ("not a = 1 and b = 2", {"and": [{"not": "a=1"}, "b=2"]}),
        ("Not not a=1", {"not": {"not": "a=1"}}),
        ("a==1", "a=1"),
        ("a=-1", {"column": "a", "op": "=", "value": -1}),
        ("a>=1.5e3", {"column": "a", "op": ">=", "value": 1500.0}),
        ("a.b-c != 'x\\'y'", {"column": "a.b-c", "op": "!=", "value": "x'y"}),
        ("`and` = true", {"column": "and", "op": "=", "value": True}),
        ("straße contains \"'\"", {"column": "straße", "op": "contains", "value": "'"}),
        ("a in (1,2) and b = 2", {"and": [{"column": "a", "op": "in", "value": [1, 2]}, "b=2"]}),
        ("a EXISTS", {"column": "a", "op": "exists"}),
    ],
)  # fmt: skip
def test_texts_mean_what_they_seem_to(text: str, tree: Any) -> None:
    def whole(tree: Any) -> Any:
        if isinstance(tree, str):
            column, value = tree.split("=")
            return {"column": column, "op": "=", "value": int(value)}
        if isinstance(tree, list):
            return [whole(each) for each in tree]
        return {key: whole(tree[key]) if key in ("and", "or", "not") else tree[key] for key in tree}

    assert parse_filter(text) == parse_filter(whole(tree))


def test_nothing_is_no_filter() -> None:
    assert (parse_filter(None), parse_filter(""), parse_filter("  \n")) == (None, None, None)


# -- what is refused --------------------------------------------------------------------------------------


def nested(depth: int, tree: Any = None) -> Any:
    tree = tree or {"column": "a", "op": "=", "value": 1}
    for _ in range(depth):
        tree = {"not": tree}
    return tree


HOSTILE: dict[str, Any] = {
    "parentheses": "(" * 8000,
    "nots": "not " * 2000 + "a = 1",
    "long": "a = 1 or " * MOST_CHARACTERS + "a = 1",
    "many": " or ".join(["a=1"] * (MOST_COMPARISONS + 1)),
    "deep tree": nested(100_000),
    "deep json": '{"not":' * 100_000 + "1" + "}" * 100_000,
    "open json": '{"not":' * 100_000,
    "deep list": {"and": [nested(10), nested(MOST_DEPTH + 1)]},
    "wide tree": {"or": [{"column": "a", "op": "=", "value": 1}] * 100_000},
    "many values": {"column": "a", "op": "in", "value": [1] * (MOST_VALUES + 1)},
    "long digits": "a = " + "9" * 5000,
    "infinite": "a = 1e999",
    "not a number": {"column": "a", "op": "=", "value": math.nan},
    "surrogate": {"column": "a", "op": "=", "value": "\ud800"},
    "backslashes": "a = '" + "\\" * 8000,
    "quote": 'a = "x',
    "null": {"column": "a", "op": "=", "value": None},
    "list": {"column": "a", "op": "=", "value": [1]},
    "object": {"column": "a", "op": "=", "value": {"b": 1}},
    "two words": {"and": [nested(0)], "or": [nested(0)]},
    "more": {**nested(0), "more": 1},
    "none": {"and": []},
    "number": {"not": 3},
    "no op": {"column": "a", "value": 1},
    "odd op": {"column": "a", "op": "~", "value": 1},
    "odd column": {"column": 3, "op": "=", "value": 1},
    "nothing": {},
    "array": "[1]",
    "text": {"column": "a", "op": "prefix", "value": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_filters_are_refused_shortly(name: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_filter(HOSTILE[name])
    assert len(str(refused.value)) < 600


@given(st.text(max_size=60) | st.text("() =<>!andortx\"'`\\,.1-", max_size=60))
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    with suppress(BadInput):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("year >= ", r"at its end \(character 9\).*a value"),
        ("year >= 1990 and and", r"near 'and' \(character 18\).*column's name"),
        ("year ~ 3", r"near '~ 3' \(character 6\)"),
        ("city = Rome", r"near 'Rome' .*quotes"),
        ("(a = 1", "closing parenthesis"),
        ("a in 3", "parentheses"),
        ("a = 1 b = 2", "nothing more"),
    ],
)
def test_a_message_says_where_and_what(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_filter(text)


def test_a_trees_message_says_where() -> None:
    tree = {"and": [nested(0), {"or": [{"column": "a", "op": "=", "value": None}]}]}
    with pytest.raises(BadInput, match=r"at and\.1\.or\.0\.value: a value is a text"):
        parse_filter(tree)


# -- columns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yaer = 1", "'yaer', and the images have no such column; they have city, key, price, private"),
        ('year = "1990"', "'year' is integer, and '1990' is not: write numbers without quotes"),
        ("city > 3", "'city' is text, and 3 is not"),
        ("private = 1", "'private' is boolean, and 1 is not"),
        ("private < true", "compare it by = or !="),
        ("year = true", "'year' is integer, and True is not"),
        ('price in (1, "x")', "'price' is number, and 'x' is not"),
        ('year prefix "19"', "prefix is for texts"),
        ("year = 1 or not (yaer exists)", "no such column"),
    ],
)
def test_columns_and_types_are_checked(text: str, says: str) -> None:
    where = parse_filter(text)
    assert where is not None
    with pytest.raises(BadInput, match=says):
        check_filter(where, {**KINDS, "source": "text", "key": "text"})


def test_what_fits_the_columns_passes() -> None:
    for text in ("year < 3.5 and price = 3", 'source = "a" or key prefix "x"', "private exists"):
        where = parse_filter(text)
        assert where is not None
        check_filter(where, {**KINDS, "source": "text", "key": "text"})


def table_of(**columns: Any) -> pa.Table:
    count = len(next(iter(columns.values())))
    own = {"source": pa.array(["s"] * count), "key": pa.array([b"k"] * count)}
    return pa.table(own | {f"metadata.{name}": pa.array(values) for name, values in columns.items()})


def test_columns_of_several_tables_unite_in_any_order() -> None:
    some = [
        table_of(a=[1], b=[True], c=["x"], d=[1]),
        table_of(a=[1.5], b=[1], c=["y"], e=[None]),
        table_of(a=[2], d=["x"]),
    ]
    own = {"source": "text", "key": "text"}
    united = united_columns(map(columns_of, some))
    assert united == {**own, "a": "number", "b": "text", "c": "text", "d": "text"}
    assert united_columns(map(columns_of, reversed(some))) == united
    first = united_columns(map(columns_of, some[:2]))
    assert united_columns([first, columns_of(some[2])]) == united


def test_a_column_that_is_text_somewhere_is_text_everywhere() -> None:
    numbers, texts = table_of(year=[1990, 1991, None]), table_of(year=["1990", "x", None])
    where = parse_filter('year = "1990" or year prefix "1991"')
    assert where is not None
    check_filter(where, united_columns(map(columns_of, (numbers, texts))))
    assert mask(where, numbers).tolist() == [True, True, False]
    assert mask(where, texts).tolist() == [True, False, False]
    joined = united_rows([numbers, texts])
    assert np.array_equal(mask(where, joined), [True, True, False, True, False, False])


def test_nan_is_absent_also_where_numbers_are_compared_as_texts() -> None:
    """Whatever shard a row lies in: among numbers, or among texts that a part of other numbers joined."""
    numbers = pa.table({"image_id": [0, 1], "metadata.v": pa.array([1.5, math.nan])})
    texts = pa.table({"image_id": [2], "metadata.v": pa.array(["x"], pa.large_string())})
    united = united_rows([numbers, texts])
    for text in ('v != "q"', 'v contains "n"', 'v in ("nan")', "v exists", 'v prefix "n"'):
        where = parse_filter(text)
        assert where is not None
        assert not mask(where, numbers)[1], text
        assert mask(where, united)[:2].tolist() == mask(where, numbers).tolist(), text


def test_both_forms_are_nested_equally_deep() -> None:
    deepest = "not " * MOST_DEPTH + "v exists"
    found = parse_filter(deepest)
    assert found is not None and parse_filter(filter_json(found)) == found
    with pytest.raises(BadInput):
        parse_filter("not " + deepest)
