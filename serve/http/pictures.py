"""Thumbnails as responses: kept by the browser, and asked for again by their ETag."""

from typing import Any

from fastapi import Request
from starlette.responses import Response

from serve.http.thumbnails import Thumbnail

PICTURE: dict[str, Any] = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
_KEEP = "private, max-age=300"


def picture_response(request: Request, picture: Thumbnail) -> Response:
    """The picture, or 304 where the browser has it."""
    headers = {"ETag": picture.etag, "Cache-Control": _KEEP}
    if has_etag(request, picture.etag):
        return Response(None, 304, headers)
    return Response(picture.data, 200, headers, "image/jpeg")


def has_etag(request: Request, etag: str) -> bool:
    """Whether the client says that it has this version."""
    given = ",".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in given.split(","))
