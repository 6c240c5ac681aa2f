"""The crowd over real connections: so many inside, the rest refused unread; nothing else is any different."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvloop

from serve.http.crowd import Crowd
from serve.http.crowded_protocol import crowded_protocol
from serve.http.settings import HttpSettings
from serve.metrics import PrometheusMetrics
from tests.serve.http.test_http_bodies import connected, read_all
from tests.serve.http.test_http_problems import checked
from tests.serve.http_server import TellingService, running, telling_app

BODY = b'{"vectors": [[1.0]]}'
PAGE = "https://archive.example"
MOST = 2
WAIT_S = 30.0


class Server:
    """A server with room for two searches."""

    def __init__(self, url: str, service: TellingService, metrics: PrometheusMetrics, crowd: Crowd) -> None:
        self.url, self.service, self.metrics, self.crowd = url, service, metrics, crowd

    def inside(self) -> int:
        """Searches that count as inside."""
        return self.crowd._inside["/v1/search"]

    def ended(self) -> int:
        """Searches that the application has done with."""
        lines = (self.metrics.text() or "").splitlines()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith("reseen_requests_total") and 'route="/v1/search"' in line
        )

    def ask(self, **headers: str) -> httpx.Response:
        kinds = {"Content-Type": "application/json", **headers}
        return httpx.post(f"{self.url}/v1/search", content=BODY, headers=kinds, timeout=WAIT_S)

    @contextmanager
    def filled(self) -> Iterator[None]:
        """As many searches are inside as there is room for, and none is answered."""
        self.service.slow = True
        before = len(self.service.asked)
        try:
            with ExitStack() as stack:
                for _ in range(MOST):
                    stack.enter_context(connected(self.url)).sendall(asked())
                wait_until(lambda: len(self.service.asked) == before + MOST)
                yield
        finally:
            self.service.slow = False


def asked(*headers: str, body: bytes = BODY, method: str = "POST", length: bool = True) -> bytes:
    lines = [f"{method} /v1/search HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def answer_of(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one answer; the connection stays."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += more(connection)
    first, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in first.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0].partition(b":")[2]):
        body += more(connection)
    return first, body


def more(connection: socket.socket) -> bytes:
    found = connection.recv(65_536)
    assert found, "the connection was closed"
    return found


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    service, metrics = TellingService(), PrometheusMetrics()
    settings = HttpSettings(rate_per_s=None, origins=(PAGE,))
    crowd = Crowd(MOST, 50, metrics, settings.origins)
    app = telling_app(service, tmp_path, settings=settings, metrics=metrics)
    with running(app, crowded_protocol(crowd), request.param) as url:
        yield Server(url, service, metrics, crowd)


def test_the_rest_is_refused_unread_until_there_is_room_again(server: Server) -> None:
    with server.filled():
        refused = server.ask()
        checked(refused, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert len(server.service.asked) == MOST, "the service did not hear of it"
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/v1/images/1").status_code == 200, "another path has room of its own"
    wait_until(lambda: server.ask().status_code == 200)  # the clients left: both places are free
    assert [server.ask().status_code for _ in range(3 * MOST)] == [200] * 3 * MOST


def test_a_connection_outlives_its_refusals(server: Server) -> None:
    with connected(server.url) as connection:
        with server.filled():
            for number in range(3):
                connection.sendall(asked(f"X-Request-Id: mine-{number}"))
                first, body = answer_of(connection)
                assert first.startswith(b"HTTP/1.1 429 Too Many Requests")
                assert f"x-request-id: mine-{number}".encode() in first
                assert json.loads(body)["request_id"] == f"mine-{number}"
            connection.sendall(asked(body=BODY[:4])[:-2])  # the rest of a body may come later
            assert answer_of(connection)[0].startswith(b"HTTP/1.1 429")
        wait_until(lambda: server.ask().status_code == 200)
        connection.sendall(BODY[2:4] + asked())
        assert answer_of(connection)[0].startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        asked("Connection: close"),
        asked("Expect: 100-continue", f"Content-Length: {len(BODY)}", body=b"", length=False),
        asked("Transfer-Encoding: chunked", body=b"5\r\n{    \r\n", length=False),
        asked(body=BODY + b" " * 3_000_000),
    ],
    ids=["close", "expect", "chunked", "large"],
)
def test_a_rest_that_is_long_or_does_not_come_ends_the_connection(server: Server, sent: bytes) -> None:
    with server.filled(), connected(server.url) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 429") and answer.count(b"HTTP/1.1") == 1
        assert b"connection: close\r\n" in answer and answer.endswith(b"}")


def test_requests_sent_ahead_wait_behind_their_own_and_are_not_refused(server: Server) -> None:
    with connected(server.url) as connection:
        connection.sendall(asked() * (3 * MOST))
        data = b""
        while data.count(b"HTTP/1.1 ") < 3 * MOST or not data.endswith(b"}"):
            data += more(connection)
    assert data.count(b"HTTP/1.1 200") == 3 * MOST
    with server.filled():
        assert server.ask().status_code == 429, "all of them have left"


def test_a_head_request_gets_no_body(server: Server) -> None:
    with server.filled(), connected(server.url) as connection:
        connection.sendall(asked(method="HEAD", body=b"") + asked("Connection: close"))
        answer = read_all(connection)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429") and rest.startswith(b"HTTP/1.1 429")


def test_pages_that_may_call_may_read_the_refusal(server: Server) -> None:
    with server.filled():
        known, stranger = server.ask(Origin=PAGE), server.ask(Origin="https://else.example")
    assert known.status_code == stranger.status_code == 429
    assert known.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-origin" not in stranger.headers


def test_refusals_are_counted_and_share_a_line_of_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage() == "refused unread"]

    with caplog.at_level(logging.WARNING, "reseen.access"), server.filled():
        for _ in range(5):
            server.ask()
        wait_until(lambda: sum(line.fields["requests"] for line in lines()) == 5)  # type: ignore[attr-defined]
    assert len(lines()) < 5
    text = server.metrics.text()
    assert 'reseen_shed_total{kind="unread"} 5.0' in text
    assert 'code="overloaded",method="POST",route="unread",status="429"} 5.0' in text


def test_connections_are_bounded(tmp_path: Path) -> None:
    service, metrics = TellingService(), PrometheusMetrics()
    service.slow = True
    protocol = crowded_protocol(Crowd(10, 3, metrics))
    with running(telling_app(service, tmp_path), protocol) as url, ExitStack() as held:
        for _ in range(3):
            held.enter_context(connected(url)).sendall(asked())
        wait_until(lambda: len(service.asked) == 3)
        with connected(url) as late:
            answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 429") and b'"code":"overloaded"' in answer
        held.close()
        wait_until(lambda: httpx.get(f"{url}/livez").status_code == 200)
    assert 'reseen_shed_total{kind="connections"}' in metrics.text()


# -- whoever leaves, hurries or does not read takes no room with it ----------------------------------------


def test_nothing_that_came_behind_a_refusal_is_done(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """One packet: a refusal that ends the connection, and a request that would be answered."""
    chunked = asked("Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n", length=False)
    other = b"POST /v1/search/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    for sent in (chunked, asked("Connection: close"), asked().replace(b"HTTP/1.1", b"HTTP/1.0")):
        with server.filled(), connected(server.url) as connection:
            connection.sendall(sent + other)
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 429") and answer.count(b"HTTP/1.1 ") == 1
        wait_until(lambda: server.ask().status_code == 200)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert 'route="/v1/search/upload"' not in server.metrics.text()


@pytest.mark.parametrize("ahead", [asked(), b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + asked()])
def test_clients_that_leave_with_requests_sent_ahead_leave_no_trace(server: Server, ahead: bytes) -> None:
    server.service.slow = True
    for round_ in range(3 * MOST):
        with connected(server.url) as connection:
            connection.sendall(ahead + asked() + asked())
            wait_until(lambda round_=round_: len(server.service.asked) > round_)
        wait_until(lambda: server.inside() == 0)
    server.service.slow = False
    wait_until(lambda: server.ended() == 3 * MOST)  # the first of each: its end must not count the next
    assert server.inside() == 0
    assert [server.ask().status_code for _ in range(3 * MOST)] == [200] * 3 * MOST


def test_a_client_that_does_not_read_loses_its_place(tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    protocol = crowded_protocol(Crowd(MOST, 50, metrics))
    protocol.read_seconds = 0.5
    page = b"GET /static/main.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with running(telling_app(TellingService(), tmp_path), protocol) as url, ExitStack() as held:
        for _ in range(MOST):
            deaf = held.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            deaf.setblocking(False)
            with suppress(BlockingIOError):
                deaf.sendall(page * 2_000 + asked())
        wait_until(lambda: httpx.get(f"{url}/static/main.js").status_code == 429)
        wait_until(lambda: httpx.get(f"{url}/static/main.js").status_code == 200)


@pytest.mark.parametrize("target", ["/v1/%73earch", "http://x/v1/search", "/v1/search?a=b"])
def test_a_path_is_the_same_however_it_is_written(server: Server, target: str) -> None:
    with server.filled(), connected(server.url) as connection:
        connection.sendall(asked().replace(b"/v1/search", target.encode(), 1))
        assert answer_of(connection)[0].startswith(b"HTTP/1.1 429")


def test_a_browser_may_always_ask_whether_it_may_ask(server: Server) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    with server.filled():
        answer = httpx.options(f"{server.url}/v1/search", headers=asks)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
