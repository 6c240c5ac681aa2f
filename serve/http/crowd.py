"""The crowd before the doors: so many requests of a path at once, and for the rest a cheap refusal.

Whom admission refuses was read and understood first: half the work of an answer. Where many times more come
than can be answered, that work leaves no time for answers. So where a path has as many requests inside as the
service lets wait, further ones are refused at the end of their headers, unread.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus

from serve.http.doors import door_of
from serve.http.gate import complete, known_method, request_id_for
from serve.http.problems import Refused, overloaded, problem_response
from serve.metrics import Metrics

_ALWAYS_IN = frozenset(("/livez", "/readyz", "/metrics"))
_RETRY_S = 1.0
_LINE_S = 1.0  # between two lines of the log
_ID = b"0123456789abcdef"  # stands where a refusal has its request id
_LOG = logging.getLogger("reseen.access")


class Crowd:
    """Counts what is inside. For one event loop.

    Args:
        most: requests of one path that are here whole and not answered yet.
        most_connections: at a time.
        origins: whose pages may read a refusal (CORS).
    """

    def __init__(
        self, most: int, most_connections: int, metrics: Metrics, origins: Collection[str] = ()
    ) -> None:
        self._most, self.most_connections, self._metrics = most, most_connections, metrics
        self._origins = frozenset(origin.encode() for origin in origins)
        self._inside: Counter[str] = Counter()
        self._unread = 0  # refused since the last line of the log
        self._head, self._body = _template()

    def place(self, method: str, path: str) -> str | None:
        """What a request is counted under; None where it is always let in."""
        if method == "OPTIONS":  # a browser that may not ask whether it may ask sees no refusal either
            return None
        door = door_of(path)
        if door is None:
            return ""
        return None if door.path in _ALWAYS_IN else door.path

    def has_room(self, place: str | None) -> bool:
        """Whether one more may come in."""
        return place is None or self._inside[place] < self._most

    def enter(self, place: str | None) -> None:
        """One is here whole."""
        if place is not None:
            self._inside[place] += 1

    def leave(self, place: str | None) -> None:
        """One is answered, or its client is gone."""
        if place is not None:
            self._inside[place] -= 1

    def refusal(
        self, method: str, given: Mapping[bytes, bytes], further: Sequence[tuple[bytes, bytes]]
    ) -> bytes:
        """What one gets that has no room: a problem document with status 429.

        Args:
            given: headers of the request, their names in small letters.
            further: headers that the answer is to have.
        """
        self._count(method)
        request_id = request_id_for(given.get(b"x-request-id", b"").decode("latin-1")).encode()
        body = self._body.replace(_ID, request_id)
        lines = [self._head.replace(_ID, request_id), b"content-length: %d\r\n" % len(body)]
        lines += [b"%b: %b\r\n" % header for header in further]
        origin = given.get(b"origin")
        if origin in self._origins:
            lines.append(
                b"access-control-allow-origin: %b\r\nvary: Origin\r\n"
                b"access-control-expose-headers: X-Request-Id, Retry-After\r\n" % origin
            )
        return b"".join((*lines, b"\r\n", b"" if method == "HEAD" else body))

    def refused_connection(self) -> Refused:
        """What a connection too many is told."""
        self._metrics.count("shed", kind="connections")
        return overloaded(_RETRY_S, f"there are {self.most_connections} connections already")

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


def _template() -> tuple[bytes, bytes]:
    """Status line and headers of a refusal, but for those that depend on the request, and its body."""
    refused = overloaded(_RETRY_S, "more is asked of this server than it can answer in time")
    answer = problem_response(refused, _ID.decode())
    complete(answer.headers, _ID.decode())
    del answer.headers["content-length"]
    status = HTTPStatus(answer.status_code)
    lines = [f"{name}: {value}" for name, value in answer.headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} {status.phrase}", *lines, ""]).encode(), bytes(answer.body)
