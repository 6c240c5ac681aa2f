"""Bodies as they come in: never more bytes and never longer than allowed, and who went away is noticed.

A body is read whole before anything is done with it: every answer needs all of it, and from then on the
connection tells nothing but that the client is gone, which cancels the work.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.problems import Refused, overloaded, too_large

_CLOSE = {"Connection": "close"}
_SECONDS_TO_STOP = 10.0


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class BodyReader:
    """Reads bodies, and counts those that are in memory.

    Args:
        most_bytes: of all bodies at a time; a request that would need more is refused as `overloaded`.
        timeout_s: within which a body must have arrived.
    """

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        self._most_bytes, self._timeout_s = most_bytes, timeout_s
        self._held = 0

    @asynccontextmanager
    async def read(self, headers: Headers, receive: Receive, limit: int) -> AsyncIterator[bytes]:
        """The body; it counts as long as the context lasts.

        Raises:
            Refused: too-large, overloaded or body-timeout; what still comes was read and thrown away, up to
                `limit`, so that a client which sends all before it reads gets to read the answer.
            ClientGone: there will be no more of it.
        """
        counted = _Counted(self)
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    body = await self._body(counted, headers, receive, limit)
            except TimeoutError:
                late = f"the body was not here after {self._timeout_s:g} s"
                raise Refused("body-timeout", late, headers=_CLOSE) from None
            yield body
        finally:
            self._held -= counted.bytes

    async def _body(self, counted: "_Counted", headers: Headers, receive: Receive, limit: int) -> bytes:
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            raise await self._drained(too_large("the body is", limit), headers, receive, limit)
        chunks: list[bytes] = []
        more = True
        while more:
            chunk, more = await _next(receive)
            if self._held + len(chunk) > self._most_bytes:
                busy = overloaded(1.0, "too many bodies are being received at once")
                raise await self._drained(busy, headers, receive, limit, more)
            counted.add(len(chunk))
            if counted.bytes > limit:
                raise await self._drained(too_large("the body is", limit), headers, receive, limit, more)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def drain(self, refused: Refused, headers: Headers, receive: Receive, limit: int) -> Refused:
        """Reads and forgets what comes with a request that is refused; returns the refusal."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._drained(refused, headers, receive, limit)
        except TimeoutError:
            refused.headers |= _CLOSE
            return refused

    async def _drained(
        self, refused: Refused, headers: Headers, receive: Receive, limit: int, more: bool = True
    ) -> Refused:
        if headers.get("expect", "").lower() == "100-continue":
            more = False  # it waits for our word before it sends, and gets the refusal instead
            refused.headers |= _CLOSE
        read = 0
        while more and read <= limit:
            chunk, more = await _next(receive)
            read += len(chunk)
        if more:
            refused.headers |= _CLOSE
        return refused

    def _hold(self, count: int) -> None:
        self._held += count


class _Counted:
    """What one request holds of the bytes of all."""

    def __init__(self, reader: BodyReader) -> None:
        self._reader, self.bytes = reader, 0

    def add(self, count: int) -> None:
        self.bytes += count
        self._reader._hold(count)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def attended(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Runs an application on a body that was read, and cancels it when the client goes away.

    Raises:
        ClientGone: it went away before the answer was complete.
    """
    given, gone = False, asyncio.Event()

    async def replay() -> Message:
        nonlocal given
        if given:
            await gone.wait()
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)
        gone.set()

    work = asyncio.ensure_future(app(scope, replay, send))
    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if work.cancelled():  # by none of us: some part of it took its own trouble for ours
            raise RuntimeError("the work for a request was cancelled from inside")
        if work.done():
            work.result()
            return
        if watcher.exception() is not None:  # the server's own trouble; the answer may still be wanted
            await work
            return
        raise ClientGone
    finally:
        watcher.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=_SECONDS_TO_STOP)
        if work.done() and not work.cancelled():
            work.exception()  # seen, where nobody is left to be told
