"""Connections to a server of which more may be asked than it can answer: who has no room is refused unread.

Give it to uvicorn as `http=crowded_protocol(crowd)`.
"""

from asyncio import Transport
from typing import Any
from urllib.parse import unquote

import httptools

from serve.http.crowd import Crowd
from serve.http.protocol import BoundedProtocol


class CrowdedProtocol(BoundedProtocol):
    """A connection that asks the crowd of all connections for each request, at the end of its headers.

    A request counts as inside from when it is here whole, and is the one that is answered now, to the end of
    its answer. One that was sent ahead of an answer is not refused: it waits behind its own.
    """

    crowd: Crowd

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answered_now: Any = None  # uvicorn's cycle; `cycle` is the one that was read last
        self._place: str | None = None  # of the request that counts as inside
        self._dropping = False  # the rest of a request that was refused, on a connection that stays

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.crowd.most_connections:
            self.connections.discard(self)
            self._refuse(self.crowd.refused_connection())

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._answered_now = None
        super().connection_lost(exc)

    def _headers_are_here(self) -> None:
        if self._idle and not self.crowd.has_room(self._place_asked()):
            self._turn_away()
            return
        super()._headers_are_here()
        if not self.pipeline:
            self._answered_now = self.cycle

    def on_body(self, body: bytes) -> None:
        if self._dropping:
            self._read = 0
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._dropping:
            super().on_message_complete()
            self._enter()
            return
        self._dropping = self._in_body = False
        self._stop_clock()
        super().on_response_complete()  # from here on uvicorn waits for the next request, and not for ever

    def on_response_complete(self) -> None:
        self._leave()
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._answered_now = None if self.transport.is_closing() else following
        self._enter()

    def _place_asked(self) -> str | None:
        path = unquote(httptools.parse_url(self.url).path.decode("ascii"))
        return self.crowd.place(self.parser.get_method().decode("ascii"), path)

    def _enter(self) -> None:
        cycle = self._answered_now
        if cycle is None or self._place is not None or cycle.more_body or cycle.response_complete:
            return
        self._place = self.crowd.place(cycle.scope["method"], cycle.scope["path"])
        self.crowd.enter(self._place)

    def _leave(self) -> None:
        self.crowd.leave(self._place)
        self._place = None

    def _turn_away(self) -> None:
        """Refuses a request. The connection stays where the rest of the request is short and on its way."""
        given = dict(self.headers)
        length = given.get(b"content-length", b"0")
        stays = (
            self.parser.should_keep_alive()
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and b"transfer-encoding" not in given
            and len(length) < 8
            and int(length) <= self.header_bytes
        )
        further = self.server_state.default_headers + ([] if stays else [(b"connection", b"close")])
        refusal = self.crowd.refusal(self.parser.get_method().decode("ascii"), given, further)
        if stays:
            self._dropping = True
            self._clock = self.loop.call_later(self.header_seconds, self._close)
            self.transport.write(refusal)
        else:
            self._end_with(refusal)


def crowded_protocol(crowd: Crowd) -> type[CrowdedProtocol]:
    """The protocol of one server."""

    class ServerProtocol(CrowdedProtocol):
        pass

    ServerProtocol.crowd = crowd
    return ServerProtocol
