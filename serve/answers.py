"""What was found as plain values: the same fields on the command line and over HTTP."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from index.steps import Evidence

_DECIMALS = 6


class Found(Protocol):
    """A result, whoever found it (`serve.searcher.Result`)."""

    @property
    def rank(self) -> int: ...
    @property
    def image_id(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def similarity(self) -> float: ...
    @property
    def evidence(self) -> "Sequence[Evidence]": ...
    @property
    def uri(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


def result_fields(found: Found) -> dict[str, Any]:
    """A result as JSON values: numbers rounded to six decimals; what JSON has no word for (NaN) becomes None.

    Each of `steps` has `step`, `added`, `figures` by name, and `box` where a part of the image counted.
    """
    return {
        "rank": found.rank,
        "image_id": found.image_id,
        "score": round(found.score, _DECIMALS),
        "similarity": round(found.similarity, _DECIMALS),
        "steps": [step_fields(each) for each in found.evidence],
        "uri": found.uri,
        "source": found.source,
        "key": found.key,
        "metadata": finite(found.metadata),
    }


def step_fields(evidence: "Evidence") -> dict[str, Any]:
    """What a step found, as JSON values."""
    figures = {name: round(value, _DECIMALS) for name, value in evidence.figures.items()}
    box = {} if evidence.box is None else {"box": [round(side, 1) for side in evidence.box]}
    return {"step": evidence.kind, "added": round(evidence.added, _DECIMALS), "figures": figures, **box}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, None in the place of numbers that are none."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def printable(text: str) -> str:
    """A key or a URI as text that every encoder takes: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
