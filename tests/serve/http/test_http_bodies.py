"""Bodies over a real connection: bounded in bytes and in time, refusals can be read, leaving is noticed."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.datastructures import Headers

from serve.http.bodies import BodyReader, ClientGone
from serve.http.key_file import add_key
from serve.http.keys import Keys
from serve.http.problems import Refused
from serve.http.protocol import BoundedProtocol
from serve.http.settings import HttpSettings
from serve.metrics import PrometheusMetrics
from tests.serve.http.test_http_problems import checked
from tests.serve.http_server import TellingService, running, telling_app

SMALL = HttpSettings(
    rate_per_s=None,
    max_json_bytes=50_000,
    max_image_bytes=200_000,
    max_multipart_bytes=300_000,
    body_timeout_s=1.0,
)
WAIT_S = 30.0


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    while chunk := connection.recv(65_536):
        data += chunk
    return data


def head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.fixture
def service() -> TellingService:
    return TellingService()


@pytest.fixture
def url(service: TellingService, tmp_path: Path) -> Iterator[str]:
    with running(telling_app(service, tmp_path, settings=SMALL)) as found:
        yield found


def pieces(count: int, size: int = 10_000) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_be_as_long_as_its_limit_and_no_longer(url: str, chunked: bool) -> None:
    text = json.dumps({"vectors": [[1.0]]}).encode()
    for spare, code in ((0, None), (1, "too-large"), (40_000, "too-large"), (3_000_000, "too-large")):
        body = text + b" " * (50_000 - len(text) + spare)
        content = iter([body[at : at + 7_000] for at in range(0, len(body), 7_000)]) if chunked else body
        # The client sends all before it reads: the answer must still be there.
        try:
            response = httpx.post(
                f"{url}/v1/search", content=content, headers={"Content-Type": "application/json"}
            )
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            assert spare == 3_000_000, "only far over the limit may the connection end before the answer"
            continue
        if code is None:
            assert response.status_code == 200
        else:
            checked(response, code)


def test_each_path_has_its_own_limit(url: str) -> None:
    kinds = {"Content-Type": "image/gif"}
    assert (
        httpx.post(f"{url}/v1/uploads", content=b"GIF89a" + b"x" * 150_000, headers=kinds).status_code == 201
    )
    checked(httpx.post(f"{url}/v1/uploads", content=b"GIF89a" + b"x" * 200_001, headers=kinds), "too-large")
    checked(httpx.post(f"{url}/v1/uploads", content=b"GIF89a" + b"x" * 250_000, headers=kinds), "too-large")
    image = ("a.gif", b"GIF89a" + b"x" * 140_000, "image/gif")
    assert httpx.post(f"{url}/v1/search/upload", files=[("image", image)] * 2).status_code == 200
    checked(httpx.post(f"{url}/v1/search/upload", files=[("image", image)] * 3), "too-large")
    large = ("a.gif", b"GIF89a" + b"x" * 200_001, "image/gif")
    checked(httpx.post(f"{url}/v1/search/upload", files=[("image", large)]), "too-large")
    checked(httpx.request("GET", f"{url}/livez", content=b"x" * 20_000), "too-large")


def test_a_stranger_cannot_make_the_server_take_a_body(service: TellingService, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "a")
    app = telling_app(service, tmp_path, settings=SMALL, keys=Keys(tmp_path / "keys.json"))
    with running(app) as url:
        for count in (1, 20, 29):
            content = pieces(count)
            kinds = {"Content-Type": "multipart/form-data; boundary=x"}
            checked(httpx.post(f"{url}/v1/search/upload", content=content, headers=kinds), "unauthorized")


def test_who_waits_to_be_asked_for_a_body_is_refused_before_it(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/v1/search", "Content-Length: 60000", "Expect: 100-continue"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"100 Continue" not in answer and b"too-large" in answer
    with connected(url) as connection:
        connection.sendall(
            head("/v1/search", "Content-Length: 20", "Expect: 100-continue", "Connection: close")
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b'{"vectors": [[1.0]]}')
        assert b"HTTP/1.1 200" in read_all(connection)


def test_a_body_that_does_not_arrive_is_not_waited_for(url: str, service: TellingService) -> None:
    with connected(url) as connection:
        connection.sendall(head("/v1/search", "Content-Length: 20") + b'{"vec')
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"body-timeout" in answer and service.asked == []


def test_a_body_a_byte_at_a_time_has_the_same_limit_of_time(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/v1/search", "Transfer-Encoding: chunked"))
        stopped = threading.Event()

        def drip() -> None:
            try:
                while not stopped.wait(0.05):
                    connection.sendall(b"1\r\n \r\n")
            except OSError:
                pass

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        try:
            assert connection.recv(1_000).startswith(b"HTTP/1.1 408")
        finally:
            stopped.set()
            dripping.join(WAIT_S)


def test_a_client_that_leaves_ends_the_work_for_it(service: TellingService, tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    service.slow = True
    with running(telling_app(service, tmp_path, settings=SMALL, metrics=metrics)) as url:
        with connected(url) as connection:
            body = b'{"vectors": [[1.0]]}'
            connection.sendall(head("/v1/search", f"Content-Length: {len(body)}") + body)
            assert service.began.wait(WAIT_S)
            assert not service.cancelled.is_set()
        assert service.cancelled.wait(WAIT_S)
        service.slow = False
        assert httpx.post(f"{url}/v1/search", json={"vectors": [[1.0]]}).status_code == 200
        text = httpx.get(f"{url}/metrics").text
    assert "reseen_cancelled_total 1.0" in text
    assert 'status="499"' in text


def test_a_server_that_cancels_the_application_tells_that_the_client_left(
    service: TellingService, tmp_path: Path
) -> None:
    """So does Ray's."""
    metrics = PrometheusMetrics()
    service.slow = True
    app = telling_app(service, tmp_path, settings=SMALL, metrics=metrics)

    async def cancelled() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asking = asyncio.create_task(client.post("/v1/search", json={"vectors": [[1.0]]}))
            while not service.asked:
                await asyncio.sleep(0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(cancelled())
    text = metrics.text()
    assert "reseen_cancelled_total 1.0" in text
    assert 'status="499"' in text


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    url: str, service: TellingService
) -> None:
    for sent in (b"", b'{"vec', b" " * 49_000):
        with connected(url) as connection:
            connection.sendall(head("/v1/search", "Content-Length: 50000") + sent)
    assert httpx.get(f"{url}/livez").status_code == 200
    assert service.asked == []


def test_one_connection_serves_many_requests_also_after_refusals(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for _ in range(3):
            assert client.post("/v1/search", json={"vectors": [[1.0]]}).status_code == 200
            checked(
                client.post("/v1/search", content=b"{", headers={"Content-Type": "application/json"}),
                "bad-request",
            )
            assert client.get("/v1/images/1").status_code == 200


def test_requests_sent_ahead_are_answered_in_order(url: str) -> None:
    ask = "GET /v1/images/{} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n"
    with connected(url) as connection:
        asked = ask.format(1, "") + ask.format(2, "") + ask.format(3, "Connection: close\r\n")
        connection.sendall(asked.encode())
        answer = read_all(connection)
    places = [answer.index(f'"image_id":"{number}"'.encode()) for number in (1, 2, 3)]
    assert places == sorted(places) and answer.count(b"HTTP/1.1 200") == 3


class Quick(BoundedProtocol):
    """Headers within a second, and at most 4 kB of them."""

    header_bytes = 4_096
    header_seconds = 1.0


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /livez HTTP/1.1\r\nHost: 127", b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /li"],
)
def test_headers_that_do_not_come_close_the_connection(
    sent: bytes, service: TellingService, tmp_path: Path
) -> None:
    with running(telling_app(service, tmp_path), Quick) as url, connected(url) as connection:
        connection.sendall(sent)
        assert (b"HTTP/1.1 200" in read_all(connection)) == (b"\r\n\r\n" in sent)


def test_headers_without_end_close_the_connection(service: TellingService, tmp_path: Path) -> None:
    with running(telling_app(service, tmp_path), Quick) as url:
        with connected(url) as connection, pytest.raises(OSError):
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
            while True:
                connection.sendall(b"X-Header: " + b"x" * 1_000 + b"\r\n")
                time.sleep(0.001)
        body = b'{"vectors": [[1.0]]}' + b" " * 40_000  # a body after short headers is no header
        kinds = {"Content-Type": "application/json"}
        assert httpx.post(f"{url}/v1/search", content=body, headers=kinds).status_code == 200


def test_trailers_of_a_body_are_bounded_and_nobodys_headers(service: TellingService, tmp_path: Path) -> None:
    chunked = head("/v1/search", "Content-Type: application/json", "Transfer-Encoding: chunked")
    body = b'{"vectors": [[1.0]]}'
    with running(telling_app(service, tmp_path), Quick) as url:
        with connected(url) as connection:
            trailers = b"0\r\nX-Request-Id: smuggled\r\n\r\n"
            connection.sendall(chunked + b"%x\r\n%b\r\n" % (len(body), body) + trailers)
            answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200") and b"smuggled" not in answer
        with connected(url) as connection, pytest.raises(OSError):
            connection.sendall(chunked + b"%x\r\n%b\r\n0\r\n" % (len(body), body))
            while True:
                connection.sendall(b"X-Trailer: " + b"x" * 1_000 + b"\r\n")
                time.sleep(0.001)


def test_what_is_no_http_is_answered_with_a_problem_too(url: str) -> None:
    for sent, status, code in (
        (b"\x16\x03\x01 hello\r\n\r\n", b"400", b"bad-request"),
        (b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n", b"400", b"bad-request"),
        (b"GET /?" + b"x" * 400_000, b"431", b"headers-too-large"),
    ):
        with connected(url) as connection:
            connection.sendall(sent)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 " + status) and b'"code":"' + code in answer
        assert b"content-type: application/problem+json" in answer


def test_bodies_in_memory_are_bounded_together() -> None:
    """One reader, two bodies at once: the second is refused as long as the first is held."""

    async def script() -> None:
        reader = BodyReader(most_bytes=150, timeout_s=WAIT_S)
        empty = Headers({})

        async def messages(count: int) -> AsyncIterator[dict[str, object]]:
            for left in reversed(range(count)):
                yield {"type": "http.request", "body": b"x" * 50, "more_body": left > 0}

        async with reader.read(empty, messages(2).__anext__, 1_000) as first:
            assert len(first) == 100
            late = messages(4)
            with pytest.raises(Refused) as refused:
                async with reader.read(empty, late.__anext__, 1_000):
                    raise AssertionError("it was let in")
            assert refused.value.code == "overloaded" and "Retry-After" in refused.value.headers
            with pytest.raises(StopAsyncIteration):
                await late.__anext__()  # all of it was read
            async with reader.read(empty, messages(1).__anext__, 1_000) as small:
                assert len(small) == 50
        async with reader.read(empty, messages(3).__anext__, 1_000) as later:
            assert len(later) == 150

        async def gone() -> dict[str, object]:
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGone):
            async with reader.read(empty, gone, 1_000):
                raise AssertionError("there is no body")
        async with reader.read(empty, messages(3).__anext__, 1_000) as last:
            assert len(last) == 150, "whoever left gave back what it held"

    asyncio.run(script())
