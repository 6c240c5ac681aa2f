"""JSON in and out: strict in what is taken (no "10" for 10, no 0 for false), fast in what is sent."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError
from starlette.responses import Response

from serve.http.problems import Refused, invalid

M = TypeVar("M", bound=BaseModel)
_MOST_NESTS = 20_000  # a filter has hundreds; a million of them take seconds to read


def read_json(model: type[M], body: bytes) -> M:
    """A body as a model.

    Raises:
        Refused: bad-request where it is no JSON object (UTF-8, every name once), invalid where a field is
            not what it must be; the field is named, and nothing that was sent is repeated.
    """
    if body.count(b"[") + body.count(b"{") > _MOST_NESTS:
        raise Refused("invalid", f"the body has over {_MOST_NESTS} lists and objects")
    try:
        json.loads(body, object_pairs_hook=_every_name_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, _NotTaken) else "it is no well-formed JSON in UTF-8"
        raise Refused("bad-request", f"the body cannot be read: {why}") from None
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error) from None


class _NotTaken(ValueError):
    pass


def _every_name_once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _NotTaken("an object has a name twice")


def _no_constant(name: str) -> None:
    raise _NotTaken(f"{name} is no JSON")


def json_response(answer: BaseModel, status: int = 200) -> Response:
    """An answer, written by pydantic's own serializer.

    Where a text has bytes of a file name that is not UTF-8 (as lone surrogates), they are escaped.
    """
    try:
        body = answer.__pydantic_serializer__.to_json(answer)
    except PydanticSerializationError:
        body = json.dumps(answer.model_dump(mode="python")).encode()
    return Response(body, status, media_type="application/json")


def media_type(request: Request) -> str:
    """The type of a body without its parameters, in small letters; one that is encoded besides is refused."""
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise Refused("unsupported-media-type", "send the body as it is, without a Content-Encoding")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def need_json(request: Request) -> None:
    """Refuses a body that does not say it is JSON: a form on another site can send no such thing."""
    if media_type(request) != "application/json":
        raise Refused("unsupported-media-type", "send JSON, as Content-Type: application/json")
