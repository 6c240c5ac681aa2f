"""uvicorn's HTTP connection with the bounds that uvicorn itself leaves open: around a body, and of how many.

Give it to uvicorn as `http=bounded_protocol(...)`. Whoever sends headers without end, or one byte a minute,
loses the connection; bodies have bounds of their own (`serve.http.bodies`). Trailers of a chunked body are
nobody's headers: a proxy before us may not have looked at them. Requests that there is no room for are
refused unread (`serve.http.crowd`).
"""

import secrets
from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.crowd import Crowd
from serve.http.doors import Door, door_of
from serve.http.problems import Refused, overloaded, problem_response

MOST_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
_SECONDS_TO_LEAVE = 2.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request line and headers are bounded in time and, to within one read, in bytes.

    Attributes:
        crowd: that of all connections; None lets everything in.
        most_connections: at a time; who comes then is told so. None: any number.
    """

    header_bytes = MOST_HEADER_BYTES
    header_seconds = HEADER_SECONDS
    crowd: Crowd | None = None
    most_connections: int | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reading_headers = self._in_body = False
        self._read = 0  # since the headers began, or since the last of a body
        self._refused = False  # the connection
        self._unread = False  # the request
        self._counted = False  # as inside, under `_door`
        self._door: Door | None = None
        self._late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()
        if self.most_connections is not None and len(self.connections) > self.most_connections:
            self._refuse(overloaded(1.0, f"there are {self.most_connections} connections already"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_here()
        self._leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._headers_are_here()
        self._wait_for_headers()
        super().on_message_begin()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._read += len(data)
        super().data_received(data)
        if self._reading_headers and self._read > self.header_bytes and not self.transport.is_closing():
            detail = f"the request line and the headers are over {self.header_bytes} bytes"
            self._refuse(Refused("headers-too-large", detail))
        if self._in_body and self._read > self.header_bytes:  # trailers, or the sizes of chunks, without end
            self._close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._headers_are_here()
        self._in_body = True
        if self.crowd is not None and self._idle and not self.crowd.has_room(self._door_asked()):
            self._turn_away(self.crowd)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._read = 0
        if not self._unread:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._unread:
            self._unread = False
            self._headers_are_here()
            super().on_response_complete()
        else:
            super().on_message_complete()
            self._enter()

    def on_response_complete(self) -> None:
        self._leave()
        super().on_response_complete()
        self._enter()  # the next, if it was sent ahead

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the bytes are no HTTP."""
        self._refuse(Refused("bad-request", "this is no HTTP/1.1 request"))

    # -- the crowd ----------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """No request is being answered: none was sent ahead."""
        return self.cycle is None or self.cycle.response_complete

    def _door_asked(self) -> Door | None:
        return door_of(self.url.partition(b"?")[0].decode("latin-1"))

    def _enter(self) -> None:
        """Counts the request that is answered now, once it is here whole."""
        if self.crowd is None or self._counted or self._idle or self.cycle.more_body:
            return
        self._counted, self._door = True, door_of(self.cycle.scope["path"])
        self.crowd.enter(self._door)

    def _leave(self) -> None:
        if self._counted and self.crowd is not None:
            self._counted = False
            self.crowd.leave(self._door)

    def _turn_away(self, crowd: Crowd) -> None:
        """Refuses a request unread. The connection stays where the rest of it is short and on its way."""
        given = dict(self.headers)
        length = given.get(b"content-length", b"0")
        stays = (
            self.parser.should_keep_alive()
            and not self.expect_100_continue
            and b"transfer-encoding" not in given
            and len(length) < 8
            and int(length) <= self.header_bytes
        )
        refusal = crowd.refusal(self.parser.get_method().decode("ascii"), given, stays)
        if stays:
            self._unread = True
            self._late = self.loop.call_later(self.header_seconds, self._close)
            self.transport.write(refusal)
        else:
            self._end_with(refusal)

    # -- ends ---------------------------------------------------------------------------------------------

    def _refuse(self, refused: Refused) -> None:
        """Answers with a problem, and ends the connection: what comes next cannot be told apart."""
        self._headers_are_here()
        if not self._idle:  # an answer is under way
            self._refused = True
            self.transport.close()
            return
        answer = problem_response(refused, secrets.token_hex(8))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        lines = [b"%s: %s" % header for header in headers]
        status = HTTPStatus(answer.status_code)
        first = f"HTTP/1.1 {status} {status.phrase}".encode()
        self._end_with(b"\r\n".join([first, *lines, b"", bytes(answer.body)]))

    def _end_with(self, answer: bytes) -> None:
        """The last answer. What still comes is dropped for a moment: closing at once would take it away."""
        self._refused = True
        self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._late = self.loop.call_later(_SECONDS_TO_LEAVE, self._close)
        else:
            self.transport.close()

    def _wait_for_headers(self) -> None:
        self._reading_headers, self._read = True, 0
        self._late = self.loop.call_later(self.header_seconds, self._close)

    def _headers_are_here(self) -> None:
        self._reading_headers = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def bounded_protocol(crowd: Crowd, most_connections: int) -> type[BoundedProtocol]:
    """The protocol of one server."""
    bounds = {"crowd": crowd, "most_connections": most_connections}
    return type("ServerProtocol", (BoundedProtocol,), bounds)
