"""Filters on what came with the images: one language as text and as a JSON tree, checked before it is used.

    {"and": [F, ...]}, {"or": [F, ...]}, {"not": F}
    {"column": "year", "op": ">=", "value": 1990}      =, !=, <, <=, >, >=; prefix, contains (of texts)
    {"column": "city", "op": "in", "value": ["Rome", "Bari"]}, {"column": "city", "op": "exists"}

Columns are the metadata by their names, and `source` and `key`. A comparison with an absent value is false;
`not` turns that around. Texts are compared letter by letter, capitals told apart.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
)

from index.filter_columns import any_of, compared, kind_of, kind_of_value, present
from index.filter_text import MOST_CHARACTERS, MOST_DEPTH, parse_text
from ingest.catalogue import METADATA_PREFIX
from ingest.errors import BadInput

OWN_COLUMNS = ("source", "key")  # of the row tables, beside the metadata
MOST_COMPARISONS = 256
MOST_VALUES = 1_000  # of all `in` together
MOST_TEXT = 2**17  # characters of all names and values: filters are kept, and travel with each scan

Text = Annotated[str, Strict(), Field(max_length=MOST_CHARACTERS)]
Value = (
    Annotated[bool, Strict()]
    | Annotated[int, Strict()]
    | Annotated[float, Strict(), Field(allow_inf_nan=False)]
    | Text
)


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Comparison(_Node):
    """A column against a value."""

    column: Text
    op: Literal["=", "!=", "<", "<=", ">", ">="]
    value: Value


class TextMatch(_Node):
    """A text that begins with, or contains, another."""

    column: Text
    op: Literal["prefix", "contains"]
    value: Text


class AnyOf(_Node):
    """A column that has one of some values."""

    column: Text
    op: Literal["in"]
    value: tuple[Value, ...] = Field(min_length=1, max_length=MOST_VALUES)


class Exists(_Node):
    """A column that has a value."""

    column: Text
    op: Literal["exists"]


class And(_Node):
    """All of some filters."""

    all: "tuple[Filter, ...]" = Field(alias="and", min_length=1)


class Or(_Node):
    """At least one of some filters."""

    some: "tuple[Filter, ...]" = Field(alias="or", min_length=1)


class Not(_Node):
    """What another filter leaves out."""

    inner: "Filter" = Field(alias="not")


_FORMS: dict[type, str] = {
    And: "and",
    Or: "or",
    Not: "not",
    TextMatch: "match",
    AnyOf: "in",
    Exists: "exists",
}
_FORM_OF_OP = {"prefix": "match", "contains": "match", "in": "in", "exists": "exists"}


def _form(tree: Any) -> str:
    """Which model a tree, or a model, is of."""
    if not isinstance(tree, dict):
        return _FORMS.get(type(tree), "comparison")
    words = (word for word in ("and", "or", "not") if word in tree)
    return next(words, _FORM_OF_OP.get(str(tree.get("op")), "comparison"))


Filter = Annotated[
    Annotated[And, Tag("and")]
    | Annotated[Or, Tag("or")]
    | Annotated[Not, Tag("not")]
    | Annotated[Comparison, Tag("comparison")]
    | Annotated[TextMatch, Tag("match")]
    | Annotated[AnyOf, Tag("in")]
    | Annotated[Exists, Tag("exists")],
    Discriminator(_form),
]
for _model in (And, Or, Not):
    _model.model_rebuild()
_FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


def parse_filter(given: str | Mapping[str, Any] | None) -> Filter | None:
    """A filter from its text or its JSON tree (also as text, from `{` on); None for none, or an empty text.

    Raises:
        BadInput: it is no filter, or is larger than anybody writes; the message says where.
    """
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    tree = given if not isinstance(given, str) else _tree(given)
    _check_size(tree)
    try:
        return _FILTER.validate_python(tree)
    except ValidationError as error:
        raise BadInput(f"the filter is wrong {_told(error)}") from None


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    steps: list[str] = []
    for step in map(str, first["loc"]):
        if step not in _TAGS and steps[-1:] != [step]:  # a tag and its key have one name
            steps.append(step)
    why = _VALUE if steps[-1:] == ["value"] and "_type" in first["type"] else first["msg"]
    return f"at {'.'.join(steps)}: {why}" if steps else f": {why}"


_TAGS = frozenset(["comparison", "match", "exists", "in", "bool", "int", "float", "str", "constrained-str"])
_VALUE = "a value is a text, a finite number, true or false; of `in`, a list of them"


def _tree(text: str) -> Mapping[str, Any]:
    if not text.lstrip().startswith("{"):
        return parse_text(text)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("the filter begins with { and is no JSON: check its brackets and quotes") from None
    return tree  # type: ignore[no-any-return]


def _check_size(tree: Any) -> None:
    """`BadInput` for a tree that is nested, branches or says too much, before anything walks it."""
    waiting, comparisons, values, characters = [(tree, 0)], 0, 0, 0
    while waiting:
        node, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise BadInput(f"the filter is nested more than {MOST_DEPTH} deep: use `in`, or fewer parts")
        if not isinstance(node, Mapping):
            continue
        comparisons += 1
        if comparisons > MOST_COMPARISONS:
            raise BadInput(f"the filter has more than {MOST_COMPARISONS} parts: use `in`, or fewer")
        some = node.get("value")
        listed = some if isinstance(some, list | tuple) else ()
        values += len(listed)
        if values > MOST_VALUES:
            raise BadInput(f"the filter has more than {MOST_VALUES} values: give fewer to `in`")
        characters += sum(map(_length, (node.get("column"), some, *listed)))
        if characters > MOST_TEXT:
            raise BadInput(f"the filter has more than {MOST_TEXT} characters: use fewer, or shorter, texts")
        for word in {"and", "or", "not"} & node.keys():
            inner = node[word]
            waiting += [(each, depth + 1) for each in (inner if isinstance(inner, list | tuple) else [inner])]


def _length(value: Any) -> int:
    """Characters, roughly."""
    if isinstance(value, int):
        return value.bit_length() // 3
    return len(value) if isinstance(value, str) else 0


def filter_json(where: Filter) -> str:
    """A filter as JSON text that `parse_filter` takes: equal texts, equal filters."""
    return where.model_dump_json(by_alias=True)


# -- columns --------------------------------------------------------------------------------------------


def columns_of(table: pa.Table) -> dict[str, str]:
    """What filters may name in a row table, and its type: text, integer, number or boolean."""
    found: dict[str, str] = {}
    for name in table.column_names:
        plain = name if name in OWN_COLUMNS else name.removeprefix(METADATA_PREFIX)
        kind = kind_of(table.schema.field(name).type)
        if kind is not None and (name in OWN_COLUMNS or name.startswith(METADATA_PREFIX)):
            found.setdefault(plain, kind)
    return found


def united_columns(some: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The columns of several tables: integers beside numbers are numbers, anything else mixed is text."""
    united: dict[str, str] = {}
    for columns in some:
        for name, kind in columns.items():
            before = united.setdefault(name, kind)
            if before != kind:
                united[name] = "number" if {before, kind} == {"integer", "number"} else "text"
    return united


def check_filter(where: Filter, columns: Mapping[str, str]) -> None:
    """`BadInput` unless every column is one of `columns` and is compared with what has its type."""
    if isinstance(where, And | Or):
        for each in where.all if isinstance(where, And) else where.some:
            check_filter(each, columns)
    elif isinstance(where, Not):
        check_filter(where.inner, columns)
    else:
        _check_comparison(where, columns)


def _check_comparison(where: Comparison | TextMatch | AnyOf | Exists, columns: Mapping[str, str]) -> None:
    kind = columns.get(where.column)
    if kind is None:
        known = sorted(columns)
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise BadInput(
            f"the filter names {_short(where.column)}, and the images have no such column; they have "
            f"{', '.join(known[:20]) or 'none'}{more}"
        )
    if isinstance(where, Exists):
        return
    if isinstance(where, TextMatch) and kind != "text":
        raise BadInput(f"{where.op} is for texts, and column {_short(where.column)} is {kind}")
    if isinstance(where, Comparison) and kind == "boolean" and where.op not in ("=", "!="):
        raise BadInput(f"column {_short(where.column)} is true or false: compare it by = or !=")
    for value in where.value if isinstance(where, AnyOf) else (where.value,):
        if kind_of_value(value) != ("number" if kind == "integer" else kind):
            raise BadInput(
                f"column {_short(where.column)} is {kind}, and {_short(value)} is not: {_HOW[kind]}"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_HOW = {
    "text": 'write texts in quotes, city = "Rome"',
    "integer": "write numbers without quotes, year >= 1990",
    "number": "write numbers without quotes, price < 9.5",
    "boolean": "write true or false without quotes",
}


# -- masks ----------------------------------------------------------------------------------------------


def mask(where: Filter, table: pa.Table) -> Bool[np.ndarray, " n"]:
    """The rows of a row table that a filter lets through: (rows,) bool.

    A column that the table has not is absent in every row. The answer for a row depends on it alone.
    """
    if isinstance(where, And):
        return _folded(np.logical_and, where.all, table)
    if isinstance(where, Or):
        return _folded(np.logical_or, where.some, table)
    if isinstance(where, Not):
        return ~mask(where.inner, table)
    name = where.column if where.column in OWN_COLUMNS else METADATA_PREFIX + where.column
    if name not in table.column_names:
        return np.zeros(table.num_rows, bool)
    column = table[name]
    if isinstance(where, Exists):
        return present(column)
    if isinstance(where, AnyOf):
        return any_of(column, where.value)
    return compared(column, where.op, where.value)


def _folded(join: Any, some: Sequence[Filter], table: pa.Table) -> Bool[np.ndarray, " n"]:
    found = mask(some[0], table)
    for each in some[1:]:
        found = join(found, mask(each, table))
    return found
