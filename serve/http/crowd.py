"""The crowd before the doors: so many requests of a path at once, and for the rest a cheap refusal.

Whom admission refuses was read and understood first: half the work of an answer. Where many times more come
than can be answered, that work leaves no time for answers. So where a path has as many requests inside as the
service lets wait, further ones are refused at the end of their headers, unread.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from http import HTTPStatus

from serve.http.doors import Door
from serve.http.gate import SECURITY_HEADERS, known_method, request_id_for
from serve.http.problems import overloaded, problem_response
from serve.metrics import Metrics

_ALWAYS_IN = frozenset(("/livez", "/readyz", "/metrics"))
_RETRY_S = 1.0
_LINE_S = 1.0  # between two lines of the log
_ID = "0123456789abcdef"  # stands where a refusal has its request id
_LOG = logging.getLogger("reseen.access")


class Crowd:
    """Counts what is inside. For one event loop.

    Args:
        most: requests of one path that are here whole and not answered yet.
        origins: whose pages may read a refusal (CORS).
    """

    def __init__(self, most: int, metrics: Metrics, origins: Collection[str] = ()) -> None:
        self._most, self._metrics = most, metrics
        self._origins = frozenset(origin.encode() for origin in origins)
        self._inside: Counter[str] = Counter()
        self._unread = 0  # refused since the last line of the log
        self._head, self._body = _template()

    def has_room(self, door: Door | None) -> bool:
        """Whether one more may come in."""
        path = _path(door)
        return path in _ALWAYS_IN or self._inside[path] < self._most

    def enter(self, door: Door | None) -> None:
        """One is here whole."""
        self._inside[_path(door)] += 1

    def leave(self, door: Door | None) -> None:
        """One is answered, or its client is gone."""
        self._inside[_path(door)] -= 1

    def refusal(self, method: str, given: Mapping[bytes, bytes], stays: bool) -> bytes:
        """What one gets that has no room: a problem document with status 429.

        Args:
            given: headers of the request, their names in small letters.
            stays: the connection, for further requests.
        """
        self._count(method)
        request_id = request_id_for(given.get(b"x-request-id", b"").decode("latin-1")).encode()
        body = self._body.replace(_ID.encode(), request_id)
        lines = [self._head, b"x-request-id: %b\r\ncontent-length: %d\r\n" % (request_id, len(body))]
        origin = given.get(b"origin")
        if origin in self._origins:
            lines.append(
                b"access-control-allow-origin: %b\r\nvary: Origin\r\n"
                b"access-control-expose-headers: X-Request-Id, Retry-After\r\n" % origin
            )
        if not stays:
            lines.append(b"connection: close\r\n")
        return b"".join((*lines, b"\r\n", b"" if method == "HEAD" else body))

    def _count(self, method: str) -> None:
        self._metrics.count("shed", kind="unread")
        self._metrics.count(
            "requests", route="unread", method=known_method(method), status="429", code="overloaded"
        )
        self._unread += 1
        if self._unread == 1:
            asyncio.get_running_loop().call_later(_LINE_S, self._write_down)

    def _write_down(self) -> None:
        unread, self._unread = self._unread, 0
        _LOG.warning("refused unread", extra={"fields": {"requests": unread, "seconds": _LINE_S}})


def _path(door: Door | None) -> str:
    return "" if door is None else door.path


def _template() -> tuple[bytes, bytes]:
    """Status line and headers, but for what depends on the request, and the body with `_ID` in it."""
    refused = overloaded(_RETRY_S, "more is asked of this server than it can answer in time")
    answer = problem_response(refused, _ID)
    status = HTTPStatus(answer.status_code)
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    lines = [f"{name}: {value}" for name, value in (headers | SECURITY_HEADERS).items()]
    head = "\r\n".join([f"HTTP/1.1 {status} {status.phrase}", *lines, ""])
    return head.encode("latin-1"), bytes(answer.body)
