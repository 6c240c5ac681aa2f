"""uvicorn's HTTP connection with bounds on what stands around a body, which uvicorn itself leaves open.

Give it to uvicorn as `http=BoundedProtocol`. Whoever sends headers without end, or one byte a minute, loses
the connection; bodies have bounds of their own (`serve.http.bodies`). Trailers of a chunked body are nobody's
headers: a proxy before us may not have looked at them.
"""

import secrets
from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.problems import Refused, problem_response

MOST_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
_SECONDS_TO_LEAVE = 2.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request line and headers are bounded in time and, to within one read, in bytes."""

    header_bytes = MOST_HEADER_BYTES
    header_seconds = HEADER_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reading_headers = self._in_body = False
        self._read = 0  # since the headers began, or since the last of a body
        self._refused = False
        self._late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_here()
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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._read = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the bytes are no HTTP."""
        self._refuse(Refused("bad-request", "this is no HTTP/1.1 request"))

    def _refuse(self, refused: Refused) -> None:
        """Answers with a problem, and ends the connection: what comes next cannot be told apart.

        What still comes is dropped for a moment: closing at once would take the answer from the client.
        """
        self._headers_are_here()
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:  # its answer is under way
            self.transport.close()
            return
        answer = problem_response(refused, secrets.token_hex(8))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        lines = [b"%s: %s" % header for header in headers]
        status = HTTPStatus(answer.status_code)
        first = f"HTTP/1.1 {status} {status.phrase}".encode()
        self.transport.write(b"\r\n".join([first, *lines, b"", bytes(answer.body)]))
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
