"""An HTTP server on loopback that answers as told, well or badly, and remembers what it was asked."""

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Act = Callable[["_Handler"], None]


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def parts(self) -> list[tuple[str, str | None, bytes]]:
        """Name, file name and bytes of each field of a form."""
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        found = []
        for part in self.body.split(b"--" + boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            said = dict(re.findall(r' (name|filename)="([^"]*)"', head.decode()))
            found.append((said["name"], said.get("filename"), data.removesuffix(b"\r\n")))
        return found


@dataclass
class Scripted:
    """The server. `acts` are done in turn, the last one for ever."""

    acts: list[Act]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    closed_early: threading.Event = field(default_factory=threading.Event)
    end: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: Scripted

    def setup(self) -> None:
        super().setup()
        self.scripted.connections += 1

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.scripted.asked.append(Asked(self.command, url.path, query, headers, body))
        acts = self.scripted.acts
        (acts.pop(0) if len(acts) > 1 else acts[0])(self)

    do_GET = do_POST = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        return


def answer(status: int, content: Any, **headers: str) -> Act:
    """An answer with a JSON body, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def act(handler: _Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def dated(status: int, content: Any, date: str, **headers: str) -> Act:
    """An answer whose Date is given."""

    def act(handler: _Handler) -> None:
        handler.date_time_string = lambda timestamp=None: date  # type: ignore[method-assign]
        answer(status, content, **headers)(handler)

    return act


def problem(code: str, status: int, extra: Mapping[str, Any] | None = None, **headers: str) -> Act:
    document = {
        "type": f"urn:reseen:problem:{code}",
        "code": code,
        "title": code,
        "status": status,
        "detail": f"because of {code}",
        "request_id": "of-the-server",
        "extra": dict(extra or {}),
    }
    return answer(status, document, Content_Type="application/problem+json", **headers)


def drop(handler: _Handler) -> None:
    """The connection is reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    handler.wfile = handler.rfile = _Nowhere()  # type: ignore[assignment]


def cut(handler: _Handler) -> None:
    """The connection ends in the middle of a body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"generation": 1, ')
    handler.close_connection = True


def silent(handler: _Handler) -> None:
    """No answer until the caller has gone, or the server ends."""
    handler.close_connection = True
    handler.connection.settimeout(0.05)
    while not handler.scripted.end.is_set():
        try:
            if not handler.connection.recv(1):
                handler.scripted.closed_early.set()
                return
        except TimeoutError:
            continue
        except OSError:
            return


def drip(handler: _Handler) -> None:
    """A body that never ends, a byte every few milliseconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.close_connection = True
    while not handler.scripted.end.wait(0.01):
        try:
            handler.wfile.write(b" ")
        except OSError:
            handler.scripted.closed_early.set()
            return


class _Nowhere:
    closed = True

    def close(self) -> None: ...

    def flush(self) -> None: ...


@contextmanager
def scripted_server(*acts: Act) -> Iterator[Scripted]:
    scripted = Scripted(list(acts))
    handler = type("Handler", (_Handler,), {"scripted": scripted})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    scripted.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield scripted
    finally:
        scripted.end.set()
        server.shutdown()
        thread.join()
        server.server_close()
