"""Filters as people write them: `year >= 1990 and (city = "Rome" or not private = true)` to a JSON tree.

    either     = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" either ")" | comparison
    comparison = column ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
               | column "in" "(" value { "," value } ")"
               | column ( "prefix" | "contains" ) text
               | column "exists"

Texts stand in double or single quotes, with backslash before a quote or a backslash; columns whose names are
no plain words stand in backquotes. Words of the language may be written in capitals.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from ingest.errors import BadInput

MOST_CHARACTERS = 8_192
MOST_DEPTH = 32  # of trees, and of parentheses and "not" here

_TOKENS = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<text>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
    | (?P<quoted>`[^`]+`)
    | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    | (?P<word>[^\W\d][\w.\-]*)
    | (?P<sign><=|>=|!=|==|=|<|>|\(|\)|,)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMPARISONS = frozenset(["=", "!=", "<", "<=", ">", ">="])
_RESERVED = frozenset(["and", "or", "not", "in", "prefix", "contains", "exists", "true", "false"])


class _Token(NamedTuple):
    kind: str  # text, quoted, number, word, keyword, sign or end
    text: str
    at: int


def parse_text(text: str) -> dict[str, Any]:
    """The JSON tree of a filter's text; its columns and values are not checked here.

    Raises:
        BadInput: it is no filter; the message says where.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadInput(f"a filter of {len(text)} characters is too long: use at most {MOST_CHARACTERS}")
    return _Parser(text).parsed()


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while at < len(text):
        match = _TOKENS.match(text, at)
        if match is None:
            _refuse(text, at, f"{text[at]!r} means nothing here")
        kind, token = str(match.lastgroup), match.group()
        if kind == "word" and token.lower() in _RESERVED:
            kind, token = "keyword", token.lower()
        if kind != "space":
            found.append(_Token(kind, "=" if token == "==" else token, at))
        at = match.end()
    return [*found, _Token("end", "", at)]


def _refuse(text: str, at: int, why: str) -> NoReturn:
    place = f"near {text[at : at + 20]!r}" if at < len(text) else "at its end"
    raise BadInput(
        f"the filter cannot be read {place} (character {at + 1}): {why}; it should look like "
        'year >= 1990 and (city = "Rome" or not private = true)'
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0

    def parsed(self) -> dict[str, Any]:
        tree = self._either(0)
        if self._peek().kind != "end":
            self._expected("and, or, or nothing more")
        return tree

    def _either(self, depth: int) -> dict[str, Any]:
        return self._joined("or", [self._all(depth)], depth)

    def _all(self, depth: int) -> dict[str, Any]:
        return self._joined("and", [self._one(depth)], depth)

    def _joined(self, word: str, some: list[dict[str, Any]], depth: int) -> dict[str, Any]:
        while self._took("keyword", word):
            some.append(self._all(depth) if word == "or" else self._one(depth))
        return some[0] if len(some) == 1 else {word: some}

    def _one(self, depth: int) -> dict[str, Any]:
        if depth > MOST_DEPTH:
            _refuse(self._text, self._peek().at, f"it is nested more than {MOST_DEPTH} deep")
        if self._took("keyword", "not"):
            return {"not": self._one(depth + 1)}
        if self._took("sign", "("):
            inner = self._either(depth + 1)
            if not self._took("sign", ")"):
                self._expected("a closing parenthesis")
            return inner
        return self._comparison()

    def _comparison(self) -> dict[str, Any]:
        token = self._peek()
        if token.kind not in ("word", "quoted"):
            self._expected("a column's name")
        self._next += 1
        column = token.text.strip("`")
        op = self._peek()
        self._next += 1
        if op.kind == "sign" and op.text in _COMPARISONS:
            return {"column": column, "op": op.text, "value": self._value()}
        if op.kind == "keyword" and op.text in ("prefix", "contains"):
            return {"column": column, "op": op.text, "value": self._value()}
        if (op.kind, op.text) == ("keyword", "in"):
            return {"column": column, "op": "in", "value": self._values()}
        if (op.kind, op.text) == ("keyword", "exists"):
            return {"column": column, "op": "exists"}
        self._next -= 1
        return self._expected("=, !=, <, <=, >, >=, in, prefix, contains or exists")

    def _values(self) -> Sequence[Any]:
        if not self._took("sign", "("):
            self._expected("a list of values in parentheses")
        values = [self._value()]
        while self._took("sign", ","):
            values.append(self._value())
        if not self._took("sign", ")"):
            self._expected("a comma or a closing parenthesis")
        return values

    def _value(self) -> str | int | float | bool:
        token = self._peek()
        self._next += 1
        if token.kind == "text":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        if token.kind == "number":
            return self._number(token)
        if token.kind == "keyword" and token.text in ("true", "false"):
            return token.text == "true"
        self._next -= 1
        return self._expected('a value: a number, a text in quotes ("Rome"), true or false')

    def _number(self, token: _Token) -> int | float:
        try:
            return float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
        except ValueError:  # Python reads no integers of more than 4,300 digits
            _refuse(self._text, token.at, "the number is too long")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _took(self, kind: str, text: str) -> bool:
        if self._peek()[:2] != (kind, text):
            return False
        self._next += 1
        return True

    def _expected(self, what: str) -> NoReturn:
        _refuse(self._text, self._peek().at, f"there should be {what}")
