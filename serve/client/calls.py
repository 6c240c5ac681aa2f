"""The requests of a client, as values: one function for each endpoint. Pure, but for reading image files."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from ingest.errors import BadInput, NotFound
from serve.api import (
    CompareRequest,
    CompareResponse,
    DuplicatesResponse,
    FoundImage,
    GenerationInfo,
    Readiness,
    SearchOptions,
    SearchRequest,
    SearchResponse,
    UploadInfo,
)
from serve.client.answers import Answer, bytes_of, model_of, nothing_of, readiness_of, text_of

Image = bytes | Path | IO[bytes] | tuple[str, bytes]
ImageNumber = int | str
Value = TypeVar("Value")

MOST_TIMEOUT_MS = 120_000
_MOST_MARGIN_MS = 250  # of the deadline for the way back; a tenth where that is less


@dataclass(frozen=True)
class Call(Generic[Value]):
    """One request, and how its answer is read.

    params: of the query. content: the JSON body, or beside files the form's field `request`.
    files: (name, bytes) of each form field `image`.
    timed: `params` or `content`, whichever takes the deadline as `timeout_ms`; None where none does.
    fine: statuses that are answers.
    """

    method: str
    path: str
    read: Callable[[Answer], Value]
    params: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] | None = None
    files: Sequence[tuple[str, bytes]] = ()
    timed: str | None = None
    fine: frozenset[int] = frozenset({200, 201})


@dataclass(frozen=True)
class Request:
    """What goes over the wire: arguments of httpx, but for URL and timeout."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    content: bytes | None = None
    files: list[tuple[str, tuple[str | None, bytes, str]]] | None = None


def request_of(call: Call[Any], request_id: str, left_s: float) -> Request:
    """The request of a call when so much of its deadline is left, seconds."""
    content, params = call.content, dict(call.params)
    if call.timed == "content":
        content = _timed(content or {}, left_s)
    elif call.timed == "params":
        params = _timed(params, left_s)
    headers = {"X-Request-Id": request_id, "Accept": "application/json, */*"}
    query = {name: _as_text(value) for name, value in params.items()}
    data = None if content is None else json.dumps(content, allow_nan=False).encode()
    if call.files:
        parts: list[tuple[str, tuple[str | None, bytes, str]]] = [
            ("image", (name, image, "application/octet-stream")) for name, image in call.files
        ]
        if data is not None:
            parts.append(("request", (None, data, "application/json")))
        return Request(call.method, call.path, query, headers, files=parts)
    if data is not None:
        headers["Content-Type"] = "application/json"
    return Request(call.method, call.path, query, headers, data)


def _timed(values: Mapping[str, Any], left_s: float) -> dict[str, Any]:
    left_ms = int(left_s * 1000)
    usable = max(1, left_ms - min(_MOST_MARGIN_MS, left_ms // 10))
    asked = values.get("timeout_ms")
    most = min(usable, MOST_TIMEOUT_MS)
    return {**values, "timeout_ms": most if asked is None else min(asked, most)}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


def image_of(image: Image, number: int = 0) -> tuple[str, bytes]:
    """Name and bytes of an image: bytes, a file by its path or open, or both already.

    Raises:
        NotFound: there is no such file. BadInput: it cannot be read, or is not bytes.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return f"image-{number + 1}", bytes(image)
    if isinstance(image, tuple):
        return image
    if isinstance(image, Path):
        return image.name, _file(image)
    if not hasattr(image, "read"):
        raise BadInput(f"a {type(image).__name__} is no image: give bytes, a pathlib.Path or an open file")
    data = image.read()
    if not isinstance(data, bytes):
        raise BadInput("an image file is open as text: open it with mode 'rb'")
    name = getattr(image, "name", None)
    return Path(os.fsdecode(name)).name if isinstance(name, str | bytes) else f"image-{number + 1}", data


def _file(path: Path) -> bytes:
    if not path.exists():
        raise NotFound(f"there is no image {path}: check the spelling")
    if not path.is_file():  # reading a FIFO would wait for ever
        raise BadInput(f"{path} is not a file: give an image file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def _number(image_id: ImageNumber) -> str:
    text = str(image_id)
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{text!r} is not an image id: a number, as searches return it")
    return text


def _given(body: BaseModel) -> dict[str, Any]:
    return body.model_dump(mode="json", exclude_unset=True)  # the server knows its own defaults


# -- the endpoints -----------------------------------------------------------------------------------------


def upload(image: Image) -> Call[UploadInfo]:
    return Call("POST", "/v1/uploads", partial(model_of, model=UploadInfo), files=[image_of(image)])


def upload_thumbnail(digest: str, size: int | None) -> Call[bytes]:
    if not (digest.isascii() and digest.isalnum()):
        raise BadInput(f"{digest!r} is not the digest of an upload")
    return Call("GET", f"/v1/uploads/{digest}/thumbnail", bytes_of, _size(size))


def search(request: SearchRequest, images: Sequence[Image] = ()) -> Call[SearchResponse]:
    files = [image_of(image, number) for number, image in enumerate(images)]
    path = "/v1/search/upload" if files else "/v1/search"
    read = partial(model_of, model=SearchResponse)
    return Call("POST", path, read, content=_given(request), files=files, timed="content")


def similar(image_id: ImageNumber, options: SearchOptions) -> Call[SearchResponse]:
    params = {name: value for name, value in _given(options).items() if value is not None}
    path = f"/v1/images/{_number(image_id)}/similar"
    return Call("GET", path, partial(model_of, model=SearchResponse), params, timed="params")


def image(image_id: ImageNumber) -> Call[FoundImage]:
    return Call("GET", f"/v1/images/{_number(image_id)}", partial(model_of, model=FoundImage))


def thumbnail(image_id: ImageNumber, size: int | None) -> Call[bytes]:
    return Call("GET", f"/v1/images/{_number(image_id)}/thumbnail", bytes_of, _size(size))


def _size(size: int | None) -> dict[str, int]:
    return {} if size is None else {"size": size}


def duplicates(image_id: ImageNumber, threshold: float | None, top: int | None) -> Call[DuplicatesResponse]:
    params = {"threshold": threshold, "top": top}
    given = {name: value for name, value in params.items() if value is not None}
    path = f"/v1/images/{_number(image_id)}/duplicates"
    return Call("GET", path, partial(model_of, model=DuplicatesResponse), given)


def compare(request: CompareRequest) -> Call[CompareResponse]:
    return Call("POST", "/v1/compare", partial(model_of, model=CompareResponse), content=_given(request))


def generation() -> Call[GenerationInfo]:
    return Call("GET", "/v1/generation", partial(model_of, model=GenerationInfo))


def live() -> Call[None]:
    return Call("GET", "/livez", nothing_of)


def ready() -> Call[Readiness]:
    return Call("GET", "/readyz", readiness_of, fine=frozenset({200, 503}))


def metrics() -> Call[str]:
    return Call("GET", "/metrics", text_of)


# -- where it goes -----------------------------------------------------------------------------------------


def server_url(url: str) -> str:
    """The URL of a server without a slash at its end; `BadInput` unless it is http or https."""
    if "@" in url.partition("://")[2].partition("/")[0] or "?" in url or "#" in url:
        raise BadInput("the URL of a server has no user, password, query or fragment: give the key as `key`")
    if not _leads_somewhere(url):
        raise BadInput(f"{url!r} is not the URL of a server: give http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def _leads_somewhere(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # as the look-up of the name does
        port = parts.port  # ValueError beyond 65,535
    except ValueError:
        return False
    blank = url != url.strip() or any(each.isspace() for each in parts.netloc)
    return parts.scheme in ("http", "https") and host != b"" and port != 0 and not blank


def key_headers(key: str | None) -> dict[str, str]:
    """The header that carries an API key; `BadInput`, without the key, unless a header can carry it."""
    if key is None:
        return {}
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise BadInput("the API key is empty, or has characters that no key has: give it as it was printed")
    return {"Authorization": f"Bearer {key}"}


def httpx_arguments(request: Request, server: str) -> dict[str, Any]:
    """Arguments of httpx's `build_request` for a request to a server."""
    files = [
        (field, (name, io.BytesIO(data), kind))  # which httpx sends in pieces; bytes it sends at once
        for field, (name, data, kind) in request.files or ()
    ]
    return {
        "method": request.method,
        "url": server + request.path,
        "params": request.params or None,
        "headers": request.headers,
        "content": request.content,
        "files": files or None,
    }
