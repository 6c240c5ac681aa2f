"""What a server's answers mean to a client: a value, or the error to raise. Pure: no connection, no clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serve.api import Problem, Readiness
from serve.client.errors import ServerProblem, UnreadableAnswer, class_of

AnyModel = TypeVar("AnyModel", bound=BaseModel)
_SHOWN = 200  # characters of an answer that nobody understands


@dataclass(frozen=True)
class Answer:
    """An HTTP response. The names of `headers` are in small letters."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


def model_of(answer: Answer, model: type[AnyModel]) -> AnyModel:
    """The body as a model of `serve.api`; fields that this version does not know are ignored.

    Raises:
        UnreadableAnswer: it is something else.
    """
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise unreadable(answer, f"{place}: {first['msg']}" if place else first["msg"]) from None


def bytes_of(answer: Answer) -> bytes:
    return answer.body


def text_of(answer: Answer) -> str:
    return answer.body.decode("utf-8", "replace")


def nothing_of(answer: Answer) -> None:
    return None


def readiness_of(answer: Answer) -> Readiness:
    """`/readyz` says the same with 200 and with 503; a proxy before it says 503 in its own words."""
    if answer.status == 200:
        return model_of(answer, Readiness)
    try:
        return Readiness.model_validate_json(answer.body)
    except ValidationError:
        problem = problem_of(answer, datetime.now(UTC))
        missing = problem.extra.get("missing", [])
        named = [str(each) for each in missing] if isinstance(missing, list) else []
        return Readiness(ready=False, missing=named, detail=problem.detail)


def problem_of(answer: Answer, now: datetime) -> ServerProblem:
    """The error that an answer without a result stands for.

    Args:
        now: to count a Retry-After that is a date, where the answer has no date of its own.
    """
    wait = retry_after_s(answer.headers, now)
    try:
        said = Problem.model_validate_json(answer.body)
    except ValidationError:
        return _undocumented(answer, wait)
    made = class_of(said.code, answer.status)
    return made(said.detail, said.code, answer.status, said.request_id or answer.request_id, said.extra, wait)


def _undocumented(answer: Answer, wait: float | None) -> ServerProblem:
    code = f"http-{answer.status}"
    if 300 <= answer.status < 400:
        detail = f"the server sends us on to {answer.headers.get('location', 'nowhere')}: use that URL"
        return UnreadableAnswer(detail, code, answer.status, answer.request_id)
    detail = f"HTTP {answer.status}, not in the words of a Reseen server: {_shown(answer.body)}"
    made = class_of(code, answer.status)
    return made(detail, code, answer.status, answer.request_id, None, wait)


def unreadable(answer: Answer, why: str) -> UnreadableAnswer:
    detail = f"the answer is not that of a Reseen server of this version ({why}): {_shown(answer.body)}"
    return UnreadableAnswer(detail, "unreadable-answer", answer.status, answer.request_id)


def _shown(body: bytes) -> str:
    text = " ".join(body[: 4 * _SHOWN].decode("utf-8", "replace").split())
    printable = "".join(each if each.isprintable() else "?" for each in text)
    return json.dumps(printable[:_SHOWN], ensure_ascii=False) if printable else "it is empty"


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by a Retry-After in seconds or as a date; None if there is none that can be read.

    A date is measured from the answer's own Date, if it has one: the server's clock may differ from ours.
    """
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.replace(".", "", 1).isdigit():
        return float(said)
    until, at = _date(said), _date(headers.get("date", "")) or now
    return None if until is None else max(0.0, (until - at).total_seconds())


def _date(said: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
