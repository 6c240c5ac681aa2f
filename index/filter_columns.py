"""Columns compared with values: exactly as Python compares them, a whole column at a time.

Integers and numbers compare by value, whatever their size (no rounding to a common type); texts by code
points, which is the order of their UTF-8 bytes. Where a value is absent (null, not a number), False.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from ingest.records import encode_key

Value = str | int | float | bool
_INT64 = np.iinfo(np.int64)
_ARROW: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def kind_of(column: pa.DataType) -> str | None:
    """text, integer, number or boolean; None for a column in which everything is absent."""
    kind = column.value_type if pa.types.is_dictionary(column) else column
    if pa.types.is_null(kind):
        return None
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "number" if pa.types.is_floating(kind) else "text"


def kind_of_value(value: Value) -> str:
    """text, number or boolean."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def present(column: pa.ChunkedArray) -> Bool[np.ndarray, " n"]:
    """Where a column has a value."""
    return _bools(pc.invert(pc.is_null(column, nan_is_null=True)))


def compared(column: pa.ChunkedArray, op: str, value: Value) -> Bool[np.ndarray, " n"]:
    """`column op value` row by row, for =, !=, <, <=, >, >=, prefix and contains.

    A text is compared with the text of a number or a truth value, so that a column that is text in some
    shards only is text in all; of other things, what does not compare is absent.
    """
    kind, wanted = kind_of(column.type), kind_of_value(value)
    nothing = np.zeros(len(column), bool)
    if kind is None:
        return nothing
    if pa.types.is_dictionary(column.type):
        return _by_dictionary(column, lambda texts: compared(texts, op, value))
    if isinstance(value, str):
        return _texts(column, op, value)
    if kind == "boolean" and wanted == "boolean":
        return _bools(_ARROW[op](column, pa.scalar(value, pa.bool_())))
    if wanted != "number" or kind not in ("integer", "number"):
        return nothing
    there = present(column)
    bounded = _integer_bound(op, value) if kind == "integer" else _float_bound(op, value)
    if isinstance(bounded, bool):
        return there if bounded else nothing
    op, bound = bounded
    meets: np.ndarray = there & _bools(_ARROW[op](column, pa.scalar(bound, column.type)))
    return meets


def any_of(column: pa.ChunkedArray, values: Sequence[Value]) -> Bool[np.ndarray, " n"]:
    """Where a column has one of some values: one pass, however many there are."""
    kind = kind_of(column.type)
    if kind is None:
        return np.zeros(len(column), bool)
    if pa.types.is_dictionary(column.type):
        return _by_dictionary(column, lambda texts: any_of(texts, values))
    found = np.zeros(len(column), bool)
    if texts := [encode_key(value) for value in values if isinstance(value, str)]:
        found |= _bools(pc.is_in(_bytes(column), value_set=pa.array(texts, pa.large_binary())))
    if kind != "text":
        alike = "number" if kind == "integer" else kind
        equals = _equals(column.type, [value for value in values if kind_of_value(value) == alike])
        found |= _bools(pc.is_in(column, value_set=equals))
    return found


def _equals(kind: pa.DataType, values: Sequence[Value]) -> pa.Array:
    """What a column can hold that equals one of some values: of numbers those that are not rounded by it."""
    if pa.types.is_boolean(kind):
        return pa.array(values, kind)
    bound = _integer_bound if pa.types.is_integer(kind) else _float_bound
    bounds = [bound("=", value) for value in values if not isinstance(value, str)]
    exact = [each[1] for each in bounds if not isinstance(each, bool)]
    return pa.array([*exact, *(-number for number in exact if number == 0)], kind)  # Arrow tells 0 from -0


def _by_dictionary(
    column: pa.ChunkedArray, meets: Callable[[pa.ChunkedArray], Any]
) -> Bool[np.ndarray, " n"]:
    found = []
    for chunk in column.chunks:
        of_value = meets(pa.chunked_array([chunk.dictionary]))
        codes = chunk.indices
        there = ~_bools(pc.is_null(codes))
        found.append(there & np.append(of_value, False)[codes.fill_null(len(of_value)).to_numpy(False)])
    return np.concatenate(found) if found else np.zeros(0, bool)


def _texts(column: pa.ChunkedArray, op: str, value: str) -> Bool[np.ndarray, " n"]:
    stored, wanted = _bytes(column), encode_key(value)
    if op == "prefix":
        return _bools(pc.starts_with(stored, pattern=wanted))
    if op == "contains":
        return _bools(pc.match_substring(stored, pattern=wanted))
    return _bools(_ARROW[op](stored, pa.scalar(wanted, pa.large_binary())))


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's texts as bytes: keys are stored so, for names of files need not be UTF-8."""
    if pa.types.is_boolean(column.type) or kind_of(column.type) in ("integer", "number"):
        column = as_text(column)
    return column.cast(pa.large_binary())


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's values as texts; NaN, which counts as absent, is none."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(pa.large_string())


def _integer_bound(op: str, value: int | float) -> tuple[str, int] | bool:
    """The same comparison with an integer that fits 64 bits, or what is true of all of them."""
    below = math.floor(value)
    exact = below == value
    if op in ("=", "!=") and not exact:
        return op == "!="
    # x < 1.5 is x <= 1, x >= 1.5 is x > 1
    op = {"<": "<=", ">=": ">"}.get(op, op) if not exact else op
    if below > _INT64.max:
        return op in ("<", "<=", "!=")
    if below < _INT64.min:
        return op in (">", ">=", "!=")
    return op, below


def _float_bound(op: str, value: int | float) -> tuple[str, float] | bool:
    """The same comparison with a number that a column of doubles can hold."""
    try:
        near = float(value)
    except OverflowError:
        return op in (("<", "<=", "!=") if value > 0 else (">", ">=", "!="))
    if near == value:
        return op, near
    if op in ("=", "!="):
        return op == "!="
    # No double lies between the value and the one next to it.
    if near > value:
        return {"<": "<", "<=": "<", ">": ">=", ">=": ">="}[op], near
    return {"<": "<=", "<=": "<=", ">": ">", ">=": ">"}[op], near


def _bools(values: Any) -> Bool[np.ndarray, " n"]:
    filled = pc.fill_null(values, False)
    # Arrow packs eight into a byte: only a chunked array copies without being told to.
    copies = {} if isinstance(filled, pa.ChunkedArray) else {"zero_copy_only": False}
    found: np.ndarray = filled.to_numpy(**copies)
    return found
