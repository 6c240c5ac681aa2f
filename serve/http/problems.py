"""Errors become problem documents (RFC 9457) with codes that stay, and with nothing in them to hide.

What a store's client said, and whatever was not foreseen, goes to the log by type and place; the caller gets
a fixed sentence and the request id to ask with.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ingest.errors import BadInput, NotFound, OverBudget, ReseenError, Unavailable
from serve.api import Problem
from serve.http.thumbnails import NoThumbnail
from serve.http.uploads import UploadsOff
from serve.logs import Redactor, current_request
from serve.refusals import Away, DeadlineExceeded, ImageRejected, NotReady, Overloaded, PartialRefused

_LOG = logging.getLogger("reseen.http")
MEDIA_TYPE = "application/problem+json"
_STORE_RETRY_S = 5
_LONGEST_DETAIL = 2_000
_MOST_FIELDS = 10
_MOST_ERRORS = 1_000


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its status, and what it is in a few words."""

    status: int
    title: str


KINDS: Mapping[str, Kind] = {
    "bad-request": Kind(400, "The request cannot be read"),
    "unauthorized": Kind(401, "A valid key is needed"),
    "forbidden": Kind(403, "Not allowed"),
    "not-found": Kind(404, "There is no such thing"),
    "uploads-off": Kind(404, "Uploads are not kept here"),
    "method-not-allowed": Kind(405, "There is no such method here"),
    "body-timeout": Kind(408, "The body did not arrive in time"),
    "too-large": Kind(413, "Too large"),
    "unsupported-media-type": Kind(415, "This content type is not taken"),
    "invalid": Kind(422, "The request asks for what cannot be done"),
    "image-rejected": Kind(422, "The image cannot be used"),
    "headers-too-large": Kind(431, "The address or the headers are too long"),
    "overloaded": Kind(429, "Too much is asked at once"),
    "internal": Kind(500, "Something went wrong here"),
    "not-ready": Kind(503, "What this needs is not ready"),
    "partial-refused": Kind(503, "Only part of an answer could be had"),
    "store-unavailable": Kind(503, "The storage does not answer"),
    "deadline-exceeded": Kind(504, "There was no answer in time"),
}


@dataclass(eq=False)
class Refused(Exception):
    """A request that is answered with a problem. `headers` go with it."""

    code: str
    detail: str
    extra: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def refused_for(error: Exception, redact: Redactor) -> Refused:
    """The problem that an error is to the caller; what is not the caller's to know is logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Overloaded):
        return overloaded(error.retry_after_s, str(error))
    if isinstance(error, RequestValidationError):
        return invalid(error)
    if isinstance(error, HTTPException):
        return _of_status(error)
    if isinstance(error, ReseenError):
        return _of_reseen(error, redact)
    _LOG.error("an error that was not foreseen", exc_info=error)
    return Refused("internal", "an error that was not foreseen; the log has more under the request id")


def _of_reseen(error: ReseenError, redact: Redactor) -> Refused:
    said = redact(str(error))
    match error:
        case ImageRejected():
            return Refused(
                "image-rejected", said, {"reason": str(error.reason), "reason_detail": error.detail}
            )
        case DeadlineExceeded():
            return Refused("deadline-exceeded", said)
        case PartialRefused():
            extra = {
                "coverage": error.coverage,
                "missing_shards": list(error.missing),
                "skipped_steps": list(error.skipped),
            }
            return Refused("partial-refused", said, extra, {"Retry-After": "1"})
        case NotReady() | Away():
            _LOG.warning("not ready: %s", said, exc_info=error if isinstance(error, Away) else None)
            return Refused("not-ready", said, {"retry_after_s": 1}, {"Retry-After": "1"})
        case UploadsOff():
            return Refused("uploads-off", said)
        case NoThumbnail():
            return Refused("not-found", said, {"reason": error.reason})
        case NotFound():
            return Refused("not-found", said)
        case BadInput():
            return Refused("invalid", said)
        case OverBudget():
            return Refused("too-large", said)
        case Unavailable():
            _LOG.warning("unavailable: %s", said, exc_info=error)
            detail = "the storage did not answer; the same request may work later"
            after = {"Retry-After": str(_STORE_RETRY_S)}
            return Refused("store-unavailable", detail, {"retry_after_s": _STORE_RETRY_S}, after)
        case _:  # Corrupt, Conflict: somebody has to look
            _LOG.error("%s: %s", type(error).__name__, said, exc_info=error)
            return Refused("internal", "what is stored is damaged; the log has more under the request id")


def _of_status(error: HTTPException) -> Refused:
    codes = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media-type"}
    code = codes.get(error.status_code, "bad-request" if error.status_code < 500 else "internal")
    detail = {404: "there is no such path", 405: "this path takes other methods"}.get(error.status_code)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return Refused(code, detail or KINDS[code].title, {}, headers)


def invalid(error: ValidationError | RequestValidationError) -> Refused:
    """The fields that are wrong, and why; never what they were, which may be megabytes, or a secret."""
    if isinstance(error, ValidationError) and (count := error.error_count()) > _MOST_ERRORS:
        # To list so many takes seconds, and a gigabyte.
        return Refused("invalid", f"{count} fields are wrong: /openapi.json says what may stand there")
    found = (
        error.errors()
        if isinstance(error, RequestValidationError)
        else error.errors(include_url=False, include_context=False, include_input=False)
    )
    fields = [
        {"field": _named(each["loc"]), "message": str(each["msg"])[:200]} for each in found[:_MOST_FIELDS]
    ]
    if any(each["type"] in ("json_invalid", "model_type", "model_attributes_type") for each in found):
        return Refused("bad-request", f"the body is not a JSON object: {fields[0]['message']}")
    detail = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
    if len(found) > _MOST_FIELDS:
        detail += f"; and {len(found) - _MOST_FIELDS} more"
    return Refused("invalid", detail, {"fields": fields})


def _named(place: tuple[int | str, ...]) -> str:
    """A field's path; names that the caller made up are cut short."""
    parts = [str(part)[:40] for part in place if part not in ("body", "query", "path")]
    return ".".join(parts[:6]) or "the request"


def too_large(what: str, limit: int) -> Refused:
    """413, with the limit. `what` is the beginning of a sentence, verb included."""
    return Refused("too-large", f"{what} over {limit} bytes", {"limit_bytes": limit})


def overloaded(retry_after_s: float, detail: str) -> Refused:
    """429, with when to come back."""
    after = max(1, math.ceil(retry_after_s))
    extra = {"retry_after_s": round(max(0.0, retry_after_s), 3)}
    return Refused("overloaded", detail, extra, {"Retry-After": str(after)})


def problem_response(refused: Refused, request_id: str) -> Response:
    """The document, with its status and headers."""
    kind = KINDS[refused.code]
    body = Problem(
        type=f"urn:reseen:problem:{refused.code}",
        code=refused.code,
        title=kind.title,
        status=kind.status,
        detail=refused.detail[:_LONGEST_DETAIL].encode(errors="replace").decode(),
        request_id=request_id,
        extra=refused.extra,
    )
    headers = {"Cache-Control": "no-store", **refused.headers}
    return Response(body.model_dump_json(), kind.status, headers, MEDIA_TYPE)


def answer_with_problem(error: Exception, redact: Redactor) -> Response:
    """The response for an error, and its code for the log line of the current request."""
    refused, context = refused_for(error, redact), current_request()
    if context is not None:
        context.code = refused.code
    return problem_response(refused, context.id if context is not None else "")


def problem_handlers(redact: Redactor) -> dict[Any, Any]:
    """What FastAPI calls for each class of error; the rest is caught outside of it."""

    async def handle(request: Request, error: Exception) -> Response:
        return answer_with_problem(error, redact)

    return dict.fromkeys((Refused, ReseenError, RequestValidationError, HTTPException), handle)
