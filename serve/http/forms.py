"""Multipart bodies: few parts, each with a known name, cut out of the bytes that were read."""

from collections.abc import Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.http.problems import Refused

_LONGEST_NAME = 200
_LONGEST_BOUNDARY = 200


@dataclass
class Part:
    """A part of a form. `filename` is for people only, and comes from outside."""

    name: str
    filename: str
    data: bytes


@dataclass
class _Open:
    headers: dict[str, bytes] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    chunks: list[bytes] = field(default_factory=list)


class _TooMany(Exception):
    pass


def read_form(content_type: str, body: bytes, names: Collection[str], most: int) -> list[Part]:
    """The parts of a form in their order.

    Args:
        names: that parts may have. most: parts that there may be.

    Raises:
        Refused: bad-request where it is not well-formed, invalid where a part is not wanted.
    """
    _, options = parse_options_header(content_type.encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise Refused("bad-request", "multipart/form-data needs a boundary in its Content-Type")
    form = _Form(most)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.part_begin,
            "on_part_data": form.part_data,
            "on_part_end": form.part_end,
            "on_header_field": form.header_field,
            "on_header_value": form.header_value,
            "on_header_end": form.header_end,
            "on_end": form.end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refused("bad-request", "the body is no well-formed multipart/form-data") from None
    except _TooMany:
        raise Refused("invalid", f"the form has over {most} parts") from None
    if not form.ended:
        raise Refused("bad-request", "the form ends early: its closing boundary is missing")
    parts = [_part(each) for each in form.parts]
    for part in parts:
        if part.name not in names:
            raise Refused("invalid", f"the form may only have the parts {', '.join(names)}")
    return parts


def _part(opened: _Open) -> Part:
    kind, options = parse_options_header(opened.headers.get("content-disposition", b""))
    if kind != b"form-data" or b"name" not in options:
        raise Refused("bad-request", "each part of the form needs a name in its Content-Disposition")
    encoding = opened.headers.get("content-transfer-encoding", b"binary").lower()
    if encoding not in (b"binary", b"8bit", b"7bit"):
        raise Refused("bad-request", "parts are taken as they are: leave Content-Transfer-Encoding out")
    data = opened.chunks[0] if len(opened.chunks) == 1 else b"".join(opened.chunks)
    return Part(_text(options[b"name"]), _text(options.get(b"filename", b"")), data)


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return "".join(char for char in text if char.isprintable())[:_LONGEST_NAME]


class _Form:
    """What the parser tells, put together."""

    def __init__(self, most: int) -> None:
        self.parts: list[_Open] = []
        self.ended = False
        self._most = most

    def part_begin(self) -> None:
        if len(self.parts) == self._most:
            raise _TooMany
        self.parts.append(_Open())

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].chunks.append(data[start:end])

    def part_end(self) -> None: ...

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].value += data[start:end]

    def header_end(self) -> None:
        part = self.parts[-1]
        part.headers[part.header.decode("latin-1").lower()] = bytes(part.value)
        part.header.clear()
        part.value.clear()

    def end(self) -> None:
        self.ended = True
