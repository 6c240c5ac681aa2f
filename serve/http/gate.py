"""The way in and out of the application: request id, headers, log line, doors and bodies."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.bodies import BodyReader, ClientGone, attended
from serve.http.doors import Door, Doorkeeper, body_limit, door_of, path_of
from serve.http.problems import Refused, answer_with_problem
from serve.http.settings import HttpSettings
from serve.logs import Redactor, RequestContext, current_request, enter_request
from serve.metrics import Metrics

_LOG = logging.getLogger("reseen.access")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GONE = 499  # not sent to anybody: what the log says where the client did not wait

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Attendant:
    """The outermost layer: gives each request an id, answers what nothing else answered, writes its log line.

    Args:
        clock: seconds of a steady clock.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        redact: Redactor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._metrics, self._redact, self._clock = app, metrics, redact, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = self._clock(), 0
        context = RequestContext(request_id_for(Headers(scope=scope).get("x-request-id", "")))
        enter_request(context)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                complete(MutableHeaders(scope=message), context.id)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientGone:
            status = self._gone()
        except asyncio.CancelledError:  # so Ray tells it
            status = status or self._gone()
            raise
        except Exception as error:
            if status:
                raise
            await answer_with_problem(error, self._redact)(scope, receive, answer)
        finally:
            self._write_down(scope, context, status, self._clock() - begun)

    def _gone(self) -> int:
        self._metrics.count("cancelled")
        return _GONE

    def _write_down(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        door = door_of(path_of(scope))
        route, method = door.path if door else "other", known_method(scope["method"])
        self._metrics.observe("request", seconds)
        self._metrics.count("requests", route=route, method=method, status=str(status), code=context.code)
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 2),
            "code": context.code,
            "generation": context.generation,
            "key_id": context.key_id,
        }
        _LOG.info("request", extra={"fields": fields})


def request_id_for(given: str) -> str:
    """The id that a client gave its request, if it is fit to be written down; else a new one."""
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)


def known_method(method: str) -> str:
    """A method as a label of metrics: nobody makes up new ones."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


def complete(headers: MutableHeaders, request_id: str) -> None:
    """Adds what every answer has."""
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")
    headers["X-Request-Id"] = request_id


class Gate:
    """Finds the door of a request, asks the doorkeeper, reads the body, and attends the application."""

    def __init__(
        self, app: ASGIApp, settings: HttpSettings, doorkeeper: Doorkeeper, redact: Redactor
    ) -> None:
        self._app, self._settings, self._doorkeeper, self._redact = app, settings, doorkeeper, redact
        self._bodies = BodyReader(settings.max_bodies_bytes, settings.body_timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._pass(scope, receive, send)
        except Refused as refused:  # answered here, within CORS: allowed pages are to read it
            await answer_with_problem(refused, self._redact)(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, door = Headers(scope=scope), door_of(path_of(scope))
        limit = body_limit(door or _NOWHERE, self._settings)
        try:
            self._admit(door, scope["method"], headers)
        except Refused as refused:
            raise await self._bodies.drain(refused, headers, receive, limit) from None
        async with self._bodies.read(headers, receive, limit) as body:
            await attended(self._app, scope, body, receive, send)

    def _admit(self, door: Door | None, method: str, headers: Headers) -> None:
        key = self._doorkeeper.admit(door or _NOWHERE, method, headers)
        context = current_request()
        if key is not None and context is not None:
            context.key_id = key.id
        if door is None:
            raise Refused("not-found", "there is no such path; GET /openapi.json lists them")


_NOWHERE = Door("", None)
