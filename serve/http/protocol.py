"""uvicorn's HTTP connection with the bounds that uvicorn itself leaves open: on what stands around a body.

Whoever sends headers without end, or one byte a minute, or does not read the answer, loses the connection;
bodies have bounds of their own (`serve.http.bodies`). Trailers of a chunked body are nobody's headers: a
proxy before us may not have looked at them.
"""

import secrets
from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.problems import Refused, problem_response

MOST_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
READ_SECONDS = 30.0
_SECONDS_TO_LEAVE = 2.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request line and headers are bounded in time and, to within one read, in bytes.

    Attributes:
        header_seconds: for the request line and headers of the next request to arrive.
        read_seconds: for a client that reads nothing of an answer to read on.
    """

    header_bytes = MOST_HEADER_BYTES
    header_seconds = HEADER_SECONDS
    read_seconds = READ_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reading_headers = self._in_body = False
        self._read = 0  # since the headers began, or since the last of a body
        self._refused = False  # the connection: nothing more of it is looked at
        self._clock: TimerHandle | None = None  # ends a connection that keeps us waiting
        self._unread: TimerHandle | None = None  # ends one that does not read

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._is_read_on()
        super().connection_lost(exc)

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

    # -- what the parser tells: of one packet also what comes after a refusal ------------------------------

    def on_message_begin(self) -> None:
        if self._refused:
            return
        self._stop_clock()
        self._wait_for_headers()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body and not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._stop_clock()
        self._in_body = True
        self._headers_are_here()

    def _headers_are_here(self) -> None:
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._read = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the bytes are no HTTP."""
        if not self._refused:
            self._refuse(Refused("bad-request", "this is no HTTP/1.1 request"))

    # -- clients that do not read --------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._is_read_on()
        super().resume_writing()

    def _is_read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # -- ends ----------------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """No request is being answered, and none waits for that."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, refused: Refused) -> None:
        """Answers with a problem, and ends the connection: what comes next cannot be told apart."""
        self._stop_clock()
        if not self._idle:  # an answer is under way
            self._refused = True
            self.transport.close()
            return
        answer = problem_response(refused, secrets.token_hex(8))
        headers = [*answer.raw_headers, *self.server_state.default_headers, (b"connection", b"close")]
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
            self._clock = self.loop.call_later(_SECONDS_TO_LEAVE, self._close)
        else:
            self.transport.close()

    def _wait_for_headers(self) -> None:
        self._reading_headers, self._read = True, 0
        self._clock = self.loop.call_later(self.header_seconds, self._close)

    def _stop_clock(self) -> None:
        self._reading_headers = False
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
