"""Log lines in JSON, each with the id of the request that it belongs to, and no secret in any of them.

Whatever happens while a request is answered is logged with its id, from the HTTP server to the last log line
of a library: the id travels in a context variable. Exceptions are logged by type and place, never by their
words: those of a store's client may hold its credentials. Known secrets, and what looks like one, are blotted
out of every line.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

BLOT = "[secret]"
_SECRET_NAMES = (
    r"(?:secret|token|passw(?:or)?d|credential|signature|sas|api[-_]?key|access[-_]?key|account[-_]?key)"
)
_LOOKS_SECRET = (
    re.compile(r"reseen_[0-9a-f]{12}_[A-Za-z0-9_-]+"),
    re.compile(r"(?<=://)(?:[^\s/:@'\"]*:[^\s@'\"]+|[^\s/@'\"]+)(?=@)"),  # user and password of a URL
    re.compile(r"(?<=\?)[^\s'\"<>]*=[^\s'\"<>]*"),  # query strings, signed ones above all
    re.compile(r"(?i)(?<=bearer )[^\s,;'\"]+"),
    re.compile(rf"(?i)(?<![\w-])(?P<name>[\w-]*{_SECRET_NAMES}[\w-]*['\"]?\s*[=:]\s*)['\"]?[^\s,;'\"&)}}]+"),
)
_SUSPECT = re.compile(r"[=:@]|reseen_|(?i:bearer)")  # what all of these have: most texts have nothing of it
_NAMED_SECRET = re.compile(rf"(?i){_SECRET_NAMES}|^key$")
_LONGEST = 4_000  # characters of a message
_SHORTEST = 6  # a shorter secret would blot out ordinary words


@dataclass
class RequestContext:
    """What is known of the request that is being answered; handlers add to it as they learn it."""

    id: str
    key_id: str = ""
    generation: int | None = None
    code: str = ""


_current: ContextVar[RequestContext | None] = ContextVar("reseen_request", default=None)


def enter_request(context: RequestContext) -> None:
    """Makes it the current request of this task and of those that it starts."""
    _current.set(context)


def current_request() -> RequestContext | None:
    return _current.get()


def request_id() -> str:
    """The id of the current request; empty outside of one."""
    context = _current.get()
    return "" if context is None else context.id


def note_generation(number: int) -> None:
    """Says in the log line of the current request which generation answered it."""
    context = _current.get()
    if context is not None:
        context.generation = number


class Redactor:
    """Blots out secrets: given ones wherever they stand, and whatever looks like one."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        # Longest first: one may be part of another.
        known = sorted({each for each in secrets if len(each) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(BLOT, text)
        for pattern in _LOOKS_SECRET if _SUSPECT.search(text) else ():
            text = pattern.sub(_blotted, text)
        return text


def _blotted(found: re.Match[str]) -> str:
    return (found.groupdict().get("name") or "") + BLOT


def store_secrets(options: Mapping[str, Any] | None = None) -> set[str]:
    """The secrets that a store's client knows: those in its options and in fsspec's configuration.

    fsspec reads `FSSPEC_*` variables into its configuration when it is imported.
    """
    import fsspec.config

    return set(_secrets_in(options or {})) | set(_secrets_in(fsspec.config.conf))


def _secrets_in(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif isinstance(value, str) and _NAMED_SECRET.search(str(name)):
            yield value


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request id, and what `extra` adds.

    `extra={"fields": {...}}` adds fields of its own; nothing else of a record is written.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record)[:_LONGEST],
        }
        context = current_request()
        if context is not None:
            line["request_id"] = context.id
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
        return json.dumps(self._clean(line), ensure_ascii=True)

    def _clean(self, value: Any) -> Any:
        """The value without secrets, of nothing but what JSON has."""
        if isinstance(value, str):
            return self._redactor(value)
        if isinstance(value, Mapping):
            return {str(name): self._clean(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(each) for each in value]
        return value if value is None or isinstance(value, bool | int | float) else type(value).__name__


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a library's mistake must not cost the line
        return str(record.msg)


def described(error: BaseException) -> list[str]:
    """An exception and those behind it: types and places, not a word of what they say."""
    lines: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(lines) < 8:
        seen.add(id(at))
        frames = traceback.extract_tb(at.__traceback__)[-6:]
        places = " < ".join(
            f"{_module(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames)
        )
        lines.append(f"{type(at).__module__}.{type(at).__qualname__} at {places or 'nowhere'}")
        at = at.__cause__ or at.__context__
    return lines


def _module(path: str) -> str:
    return "/".join(path.replace("\\", "/").split("/")[-2:])


def log_json_lines(
    secrets: Collection[str] = (), stream: TextIO | None = None, level: int = logging.INFO
) -> logging.Handler:
    """Sends every log line of this process to a stream, stderr by default, as JSON; the old handlers go.

    Args:
        secrets: what must never be in a line, besides what looks like a secret: see `store_secrets`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(Redactor(secrets)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in ("faiss", "botocore", "aiobotocore", "urllib3", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    return handler
