"""A small HTTP/1.1 client over asyncio: prepared bytes out, status and body in, next to no work in between.

httpx needs a millisecond of processor a request, more than the server that it would measure.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools


@dataclass
class Reply:
    """A response. The names of `headers` are in small letters. reconnected: asked twice (see `Pool.ask`)."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reconnected: bool = False


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Reply] | None = None
        self.usable, self.heard = True, False

    def ask(self, data: bytes) -> "asyncio.Future[Reply]":
        self._reply, self._chunks, self.heard = Reply(), [], False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(data)
        return self._done

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._done is None:
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error if isinstance(error, OSError) else ConnectionResetError("closed before the answer"))

    def _fail(self, error: OSError) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # -- what the parser tells

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self._reply.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self.usable = self.usable and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._reply)
        self._done = None
        if not self.usable:
            self.close()


class Pool:
    """Connections to one server, as many as requests are under way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.path = parts.path.rstrip("/")
        self._free: deque[_Connection] = deque()

    async def ask(self, data: bytes) -> Reply:
        """Sends a request that `request_bytes` made.

        A kept connection that the server closed while nothing was under way is replaced, and the reply says
        so: any client would do that. Cancelling closes the connection.

        Raises:
            OSError: the connection was refused, or broke.
        """
        while self._free:
            kept = self._free.pop()
            if not kept.usable:
                continue
            try:
                return await self._through(kept, data)
            except OSError:
                if kept.heard:
                    raise
            reply = await self._through(await self._connect(), data)
            reply.reconnected = True
            return reply
        return await self._through(await self._connect(), data)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Connection, self.host, self.port)
        return made

    async def _through(self, connection: _Connection, data: bytes) -> Reply:
        try:
            reply = await connection.ask(data)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._free.append(connection)
        return reply

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


@dataclass(frozen=True)
class Prepared:
    """A request all but its id. kind: for records; query: which of its kind."""

    kind: str
    query: int
    head: bytes
    tail: bytes

    def named(self, request_id: str) -> bytes:
        return b"%bX-Request-Id: %b\r\n%b" % (self.head, request_id.encode("ascii"), self.tail)


def prepared(
    pool: Pool, kind: str, query: int, path: str, content_type: str, body: bytes, key: str | None = None
) -> Prepared:
    lines = [
        f"POST {pool.path}{path} HTTP/1.1",
        f"Host: {pool.host}:{pool.port}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return Prepared(kind, query, head, b"\r\n" + body)
