"""Both clients against a real server that answers well, badly, late or not at all."""

import asyncio
import inspect
import io
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BadInput, NotFound, OverBudget, ReseenError, Unavailable
from serve.api import CompareRequest, SearchOptions, SearchRequest
from serve.client import AsyncClient, Client
from serve.client.answers import retry_after_s
from serve.client.calls import request_of, search
from serve.client.errors import (
    BY_CODE,
    ImageRefused,
    NotServing,
    PartialAnswer,
    RequestRefused,
    ServerBusy,
    ServerFault,
    ServerProblem,
    TooLate,
    Unreachable,
    UnreadableAnswer,
    class_of,
)
from serve.client.retries import Retries, Surroundings
from serve.http.problems import KINDS
from tests.serve.scripted_server import (
    Scripted,
    answer,
    cut,
    dated,
    drip,
    drop,
    problem,
    scripted_server,
    silent,
)

KEY = "reseen_0123456789ab_planted-secret"
DIGEST = "ab" * 32
ROW = {
    "rank": 1,
    "image_id": "3941654959055551396",
    "score": 0.75,
    "similarity": 0.5,
    "steps": [{"step": "geometry", "added": 0.25, "figures": {"inliers": 12.0}, "colour": "new"}],
    "uri": "file:///a.jpg",
    "source": "photos",
    "key": "a.jpg",
    "thumbnail": "/v1/images/3941654959055551396/thumbnail",
    "from_the_future": {"x": 1},
}
FOUND = {
    "generation": 7,
    "queries": [{"kind": "upload", "name": "a.jpg", "from_the_future": 1}],
    "results": [ROW],
    "partial": False,
    "coverage": 1.0,
    "request_id": "r",
    "took_ms": 1.5,
    "from_the_future": [],
}
GENERATION = {
    "number": 7,
    "recipe": "sift-vlad",
    "published": "2026-01-01T00:00:00Z",
    "age_s": 1.0,
    "counts": {"live": 3},
    "dim": 8,
    "columns": {"year": "integer"},
    "steps": [],
    "images": True,
    "calibrated": False,
    "groups": [],
    "newest": 7,
}
COMPARED = {
    "generation": 7,
    "image": ROW | {"rank": 0},
    "query": FOUND["queries"][0],
    "width": 10,
    "height": 20,
    "steps": [],
    "homography": None,
    "heat": None,
    "request_id": "r",
}
ONE_VECTOR = SearchRequest(vectors=[[1.0, 0.0]])


@dataclass
class Hands:
    """Clocks that only waiting moves, and a client of either kind."""

    kind: str
    time: float = 1000.0
    pauses: list[float] = field(default_factory=list)
    draw: float = 0.5

    def surroundings(self) -> Surroundings:
        at = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
        return Surroundings(lambda: self.time, lambda: at, lambda: self.draw, lambda: "made-by-the-client")

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def ask(self, server: Scripted, method: str, *arguments: Any, options: Any = None, **named: Any) -> Any:
        """Makes a client, calls one method, closes the client."""
        given = {"surroundings": self.surroundings()} | (options or {})
        if self.kind == "sync":
            with Client(server.url, KEY, sleep=self.sleep, **given) as client:
                return getattr(client, method)(*arguments, **named)

        async def alone() -> Any:
            async with AsyncClient(server.url, KEY, sleep=self.asleep, **given) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(alone())


@pytest.fixture(params=["sync", "async"])
def hands(request: pytest.FixtureRequest) -> Hands:
    return Hands(request.param)


# -- what is sent, what comes back -------------------------------------------------------------------------

ENDPOINTS: list[tuple[str, tuple[Any, ...], Any, str, str, dict[str, str]]] = [
    ("search", (ONE_VECTOR,), FOUND, "POST", "/v1/search", {}),
    ("search", (SearchRequest(top=3), [b"pixels"]), FOUND, "POST", "/v1/search/upload", {}),
    ("upload", (b"pixels",), {"digest": DIGEST, "bytes": 6, "kept_s": 60}, "POST", "/v1/uploads", {}),
    ("upload_thumbnail", (DIGEST, 64), b"jpeg", "GET", f"/v1/uploads/{DIGEST}/thumbnail", {"size": "64"}),
    ("image", (12,), ROW, "GET", "/v1/images/12", {}),
    ("thumbnail", ("12",), b"jpeg", "GET", "/v1/images/12/thumbnail", {}),
    (
        "similar",
        (12, SearchOptions(top=4, where={"column": "year", "op": ">", "value": 1}, explain=True)),
        FOUND,
        "GET",
        "/v1/images/12/similar",
        {"top": "4", "where": '{"column": "year", "op": ">", "value": 1}', "explain": "true"},
    ),
    (
        "duplicates",
        (12, 0.9),
        {"generation": 7, "image_id": "12", "threshold": 0.9, "duplicates": [ROW]},
        "GET",
        "/v1/images/12/duplicates",
        {"threshold": "0.9"},
    ),
    ("compare", (CompareRequest(query_id="1", image_id="12"),), COMPARED, "POST", "/v1/compare", {}),
    ("generation", (), GENERATION, "GET", "/v1/generation", {}),
    ("live", (), {}, "GET", "/livez", {}),
    ("ready", (), {"ready": True, "generation": 7}, "GET", "/readyz", {}),
    ("metrics", (), b"reseen_requests_total 1\n", "GET", "/metrics", {}),
]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint[0])
def test_each_method_asks_its_endpoint_and_reads_what_a_newer_server_says(
    hands: Hands, endpoint: tuple[str, tuple[Any, ...], Any, str, str, dict[str, str]]
) -> None:
    method, arguments, content, verb, path, query = endpoint
    with scripted_server(answer(200, content)) as server:
        got = hands.ask(server, method, *arguments)
    (asked,) = server.asked
    assert (asked.method, asked.path) == (verb, path)
    assert {name: value for name, value in asked.query.items() if name != "timeout_ms"} == query
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["x-request-id"] == "made-by-the-client"
    if isinstance(content, bytes):
        assert got == (content.decode() if method == "metrics" else content)
    elif method != "live":
        known = got.model_dump(mode="json", exclude_unset=True)
        assert known
        assert _known(content, known) == known
        assert "from_the_future" not in json.dumps(known)


def _known(content: Any, known: Any) -> Any:
    """What was sent, without what the models have not."""
    if isinstance(content, dict):
        return {name: _known(content[name], known[name]) for name in known}
    if isinstance(content, list):
        return [_known(each, other) for each, other in zip(content, known, strict=True)]
    return content


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, Any]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(each) for name, each in found if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_images_travel_whole_as_bytes_files_and_open_files(hands: Hands, tmp_path: Path) -> None:
    file = tmp_path / "größe.jpg"
    file.write_bytes(b"from a file\r\n--")
    opened = io.BytesIO(b"from memory")
    with scripted_server(answer(200, FOUND)) as server, file.open("rb") as handle:
        images = [bytes(range(256)), file, opened, handle, ("named.jpg", b"pair")]
        hands.ask(server, "search", SearchRequest(top=3, box=(0, 0, 5, 5)), images)
    *parts, request = server.asked[0].parts()
    assert [part[2] for part in parts] == [
        bytes(range(256)),
        b"from a file\r\n--",
        b"from memory",
        b"from a file\r\n--",
        b"pair",
    ]
    assert {part[0] for part in parts} == {"image"}
    assert [part[1] for part in parts] == ["image-1", "größe.jpg", "image-3", "größe.jpg", "named.jpg"]
    assert request[0] == "request"
    said = json.loads(request[2])
    assert (said["top"], said["box"]) == (3, [0, 0, 5, 5])
    assert "rerank" not in said, "what was not asked for is left to the server's defaults"


@pytest.mark.parametrize(
    ("method", "arguments", "kind"),
    [
        ("upload", ("photo.jpg",), BadInput),
        ("upload", (io.StringIO("text"),), BadInput),
        ("upload", (Path("/"),), BadInput),
        ("upload", (Path("/nowhere/photo.jpg"),), NotFound),
        ("image", ("1/../2",), BadInput),
        ("image", (-1,), BadInput),
        ("upload_thumbnail", ("../secrets",), BadInput),
    ],
)
def test_what_cannot_be_sent_is_refused_here(
    hands: Hands, method: str, arguments: tuple[Any, ...], kind: type[ReseenError]
) -> None:
    with scripted_server(answer(200, {})) as server, pytest.raises(kind):
        hands.ask(server, method, *arguments)
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http:// ",
        "http://a b",
        "http://h:x",
        "http://h:0",
        "http://h:-1",
        "http://h:65536",
        "http://[::1",
        "http://a..b",
        "http://" + "a" * 64,
        "http://xn--.example",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="not the URL of a server"):
        Client(url)


@pytest.mark.parametrize("url", ["http://a:planted@host", "http://a:planted@host:x", "http://host?k=planted"])
def test_a_url_with_a_secret_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(BadInput, match="give the key as `key`") as raised:
        Client(url)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("proxy", ["nope", "ftp://host", "socks5://127.0.0.1:1"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_proxy_that_is_none_is_told(kind: type[Client | AsyncClient], proxy: str) -> None:
    with pytest.raises(BadInput, match="check the proxy"):
        kind("http://127.0.0.1:1", proxy=proxy)


def test_a_proxy_of_the_environment_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(BadInput, match="check the proxy"):
        Client("http://example.invalid", from_environment=True)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "ключ"])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(BadInput) as raised:
        AsyncClient("http://127.0.0.1:1", key)
    assert key == "" or key not in str(raised.value)


def test_a_server_may_live_below_a_path(hands: Hands) -> None:
    with scripted_server(answer(200, GENERATION)) as server:
        server.url += "/reseen/"
        hands.ask(server, "generation")
    assert server.asked[0].path == "/reseen/v1/generation"


def test_proxies_of_the_environment_are_for_those_who_ask(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with scripted_server(answer(200, GENERATION)) as server:
        assert hands.ask(server, "generation").number == 7
        with pytest.raises(Unreachable):
            hands.ask(server, "generation", options={"from_environment": True})


# -- errors ------------------------------------------------------------------------------------------------

FAMILIES = {
    "bad-request": (400, BadInput),
    "invalid": (422, BadInput),
    "image-rejected": (422, BadInput),
    "unauthorized": (401, BadInput),
    "forbidden": (403, BadInput),
    "not-found": (404, NotFound),
    "method-not-allowed": (405, BadInput),
    "too-large": (413, BadInput),
    "unsupported-media-type": (415, BadInput),
    "uploads-off": (404, NotFound),
    "body-timeout": (408, BadInput),
    "headers-too-large": (431, BadInput),
    "overloaded": (429, OverBudget),
    "internal": (500, ServerFault),
    "not-ready": (503, Unavailable),
    "partial-refused": (503, Unavailable),
    "store-unavailable": (503, Unavailable),
    "deadline-exceeded": (504, OverBudget),
    "a-code-of-tomorrow": (409, BadInput),
    "a-fault-of-tomorrow": (507, ServerFault),
}


@pytest.mark.parametrize("code", FAMILIES)
def test_a_problem_is_raised_as_what_its_caller_can_do(hands: Hands, code: str) -> None:
    status, family = FAMILIES[code]
    extra = {"reason": "too_small", "coverage": 0.5, "missing_shards": ["s1"]}
    with (
        scripted_server(problem(code, status, extra)) as server,
        pytest.raises(ServerProblem) as raised,
    ):
        hands.ask(server, "search", ONE_VECTOR)
    error = raised.value
    assert isinstance(error, family)
    assert (error.code, error.status, error.detail) == (code, status, f"because of {code}")
    assert (error.request_id, error.extra) == ("of-the-server", extra)
    again = status in (429, 503, 504)
    assert len(server.asked) == error.attempts == (Retries().attempts if again else 1)
    assert len(hands.pauses) == error.attempts - 1
    assert code in str(error)
    assert "of-the-server" in str(error)


def test_every_code_of_the_table_and_of_servers_is_tested() -> None:
    assert BY_CODE.keys() <= FAMILIES.keys()
    for code, kind in KINDS.items():
        assert FAMILIES[code][0] == kind.status


def test_an_image_that_cannot_be_used_says_why_and_a_partial_answer_how_much(hands: Hands) -> None:
    with scripted_server(problem("image-rejected", 422, {"reason": "too_small"})) as server:
        with pytest.raises(ImageRefused) as refused:
            hands.ask(server, "search", SearchRequest(), [b"x"])
        assert refused.value.reason == "too_small"
    once = {"retries": Retries(attempts=1)}
    told = {"coverage": 0.75, "missing_shards": ["s1"]}
    with scripted_server(problem("partial-refused", 503, told)) as server:
        with pytest.raises(PartialAnswer) as partial:
            hands.ask(server, "search", ONE_VECTOR, options=once)
        assert (partial.value.coverage, partial.value.missing_shards) == (0.75, ["s1"])


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"{", UnreadableAnswer),
        (200, b"", UnreadableAnswer),
        (200, b"<html>a router's login page</html>", UnreadableAnswer),
        (200, b'{"generation": 1}', UnreadableAnswer),
        (200, b"\xff\xfe\x00", UnreadableAnswer),
        (404, b"<html>nginx</html>", NotFound),
        (413, b"<html>nginx</html>", RequestRefused),
        (502, "<html>nginx\x1b[31m\u202e\x9b</html>".encode(), NotServing),
        (500, b"", ServerFault),
    ],
)
def test_an_answer_of_something_else_is_told_as_such(
    hands: Hands, status: int, body: bytes, kind: type[ServerProblem]
) -> None:
    with scripted_server(answer(status, body)) as server, pytest.raises(kind) as raised:
        hands.ask(server, "search", ONE_VECTOR)
    assert raised.value.status == status
    assert raised.value.request_id == "made-by-the-client"
    assert str(raised.value).isprintable(), "nothing that a terminal would obey"


def test_nobody_is_followed_with_the_key(hands: Hands) -> None:
    with scripted_server(answer(200, GENERATION)) as elsewhere:
        moved = answer(307, b"", Location=f"{elsewhere.url}/v1/generation")
        with scripted_server(moved) as server, pytest.raises(UnreadableAnswer, match="use that URL"):
            hands.ask(server, "generation")
        assert elsewhere.asked == []


def test_no_error_shows_the_key(hands: Hands) -> None:
    acts = (problem("unauthorized", 401), problem("internal", 500), drop, silent)
    for act in acts:
        with scripted_server(act) as server, pytest.raises(ServerProblem) as raised:
            hands.ask(server, "image", 1, options={"timeout_s": 0.3, "retries": Retries(attempts=2)})
        chain: BaseException | None = raised.value
        while chain is not None:
            assert "planted" not in f"{chain} {chain!r}"
            chain = chain.__cause__ or chain.__context__
    assert "planted" not in repr(Client(server.url, KEY))


@pytest.mark.parametrize("extra", [{"coverage": "all", "missing_shards": 3}, {}])
def test_strange_details_of_a_problem_do_no_harm(extra: dict[str, Any]) -> None:
    error = PartialAnswer("x", "partial-refused", 503, extra=extra)
    assert (error.coverage, error.missing_shards) == (None, [])


def test_readiness_is_an_answer_also_when_the_server_is_not_ready(hands: Hands) -> None:
    said = {"ready": False, "missing": ["s1"], "detail": "loading"}
    acts = [answer(503, said), problem("not-ready", 503, {"missing": ["s2"]}), answer(503, b"<html>")]
    with scripted_server(*acts) as server:
        first, second, third = (hands.ask(server, "ready") for _ in acts)
    assert (first.ready, first.missing, first.detail) == (False, ["s1"], "loading")
    assert (second.ready, second.missing, second.detail) == (False, ["s2"], "because of not-ready")
    assert (third.ready, third.missing) == (False, [])
    assert hands.pauses == [], "who asks for readiness wants to know it now"


# -- asking again ------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_when_it_said_and_under_the_same_name(hands: Hands) -> None:
    with scripted_server(problem("overloaded", 429, Retry_After="3"), answer(200, FOUND)) as server:
        assert hands.ask(server, "search", ONE_VECTOR).generation == 7
    assert hands.pauses == [pytest.approx(3 + 0.5 * 0.1)]
    assert [asked.headers["x-request-id"] for asked in server.asked] == ["made-by-the-client"] * 2


def test_a_date_to_come_back_at_is_counted_from_the_servers_own_clock(hands: Hands) -> None:
    busy = dated(
        503, {}, "Fri, 01 May 2026 09:00:00 GMT", Retry_After="Fri, 01 May 2026 09:00:07 GMT"
    )  # our clock says noon
    with scripted_server(busy, answer(200, FOUND)) as server:
        hands.ask(server, "search", ONE_VECTOR)
    assert hands.pauses == [pytest.approx(7 + 0.5 * 0.1)]


def test_what_no_retry_after_can_mean_is_ignored() -> None:
    noon = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s({"retry-after": "2.5"}, noon) == 2.5
    assert retry_after_s({"retry-after": "Fri, 01 May 2026 12:00:09 GMT"}, noon) == 9
    assert retry_after_s({"retry-after": "Fri, 01 May 2026 11:00:00 GMT"}, noon) == 0, "it is over"
    zone = f"Fri, 01 May 2026 12:00:00 +{10**14}"
    hour = f"Fri, 01 May 2026 {10**400}:00:00 GMT"
    for odd in ("", "soon", "-5", "nan", "1e3", "²", "1.2.3", "99999-01-01", zone, hour):
        assert retry_after_s({"retry-after": odd}, noon) is None, odd
    assert retry_after_s({}, noon) is None


@pytest.mark.parametrize(
    "fault",
    [drop, cut, answer(502, b"bad gateway"), answer(500, b"it died"), problem("not-ready", 503)],
)
def test_what_passes_is_tried_again(hands: Hands, fault: Callable[..., None]) -> None:
    with scripted_server(fault, fault, answer(200, FOUND)) as server:
        assert hands.ask(server, "search", SearchRequest(), [b"pixels"]).generation == 7
    assert len(server.asked) == 3
    assert [asked.parts()[0][2] for asked in server.asked] == [b"pixels"] * 3, "the image went along again"
    assert hands.pauses == [pytest.approx(0.05), pytest.approx(0.1)]


def test_a_server_that_is_not_there_is_told_as_such(hands: Hands) -> None:
    with scripted_server(drop) as server:
        pass
    with pytest.raises(Unreachable, match="does not answer") as raised:
        hands.ask(server, "generation")
    assert (raised.value.status, raised.value.attempts) == (0, Retries().attempts)
    assert isinstance(raised.value, Unavailable)


@given(attempt=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_pauses_are_random_up_to_a_bound_that_doubles(attempt: int, draw: float) -> None:
    retries = Retries(first_s=0.2, most_s=3.0)
    bound = min(3.0, 0.2 * 2.0 ** min(attempt - 1, 100))
    assert 0 <= retries.pause_s(attempt, draw, None) <= bound
    assert retries.pause_s(attempt, 0.5, None) == pytest.approx(bound / 2)
    assert retries.pause_s(attempt, draw, 5.0) >= 5.0


@pytest.mark.parametrize("values", [{"attempts": 0}, {"first_s": -1.0}, {"first_s": 9.0}])
def test_retries_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Retries(**values)


# -- deadlines ---------------------------------------------------------------------------------------------


def test_nobody_waits_for_what_would_come_too_late(hands: Hands) -> None:
    with (
        scripted_server(problem("overloaded", 429, Retry_After="60")) as server,
        pytest.raises(ServerBusy) as raised,
    ):
        hands.ask(server, "search", ONE_VECTOR, timeout_s=30.0)
    assert (raised.value.retry_after_s, raised.value.attempts) == (60.0, 1)
    assert hands.pauses == []


def test_each_attempt_tells_the_server_what_is_left_of_the_deadline(hands: Hands) -> None:
    hands.draw = 0.0
    busy = problem("overloaded", 429, Retry_After="3")
    with scripted_server(busy, busy, answer(200, FOUND)) as server:
        hands.ask(server, "search", ONE_VECTOR, timeout_s=10.0)
        hands.ask(server, "similar", 12, timeout_s=2.0)
        hands.ask(server, "search", SearchRequest(vectors=[[1.0]], timeout_ms=200), timeout_s=10.0)
        hands.ask(server, "search", ONE_VECTOR, timeout_s=3600.0)
    by_json = [asked.json["timeout_ms"] for asked in server.asked if asked.body]
    assert by_json == [9750, 6750, 3750, 200, 120_000]
    assert [asked.query["timeout_ms"] for asked in server.asked if asked.query] == ["1800"]


@given(left=st.floats(0.001, 10_000), asked=st.none() | st.integers(1, 120_000))
def test_the_server_never_gets_more_time_than_there_is(left: float, asked: int | None) -> None:
    request = SearchRequest(vectors=[[1.0]], timeout_ms=asked)
    body = json.loads(request_of(search(request), "r", left).content or b"")
    assert 1 <= body["timeout_ms"] <= min(asked or 120_000, max(1.0, left * 1000))


@pytest.mark.parametrize("slow", [silent, drip])
def test_a_server_that_does_not_come_to_an_end_is_left(
    kind_of_client: str, slow: Callable[..., None]
) -> None:
    """With real clocks: only that it ends is asserted, not when."""
    with scripted_server(slow) as server:
        with pytest.raises(TooLate, match=r"0\.2 s") as raised:
            ask_for_real(kind_of_client, server, timeout_s=0.2)
        assert server.closed_early.wait(20), "the connection was closed, so that the server can stop"
    assert (raised.value.status, raised.value.attempts) == (0, 1)
    assert isinstance(raised.value, OverBudget)


@pytest.fixture(params=["sync", "async"])
def kind_of_client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask_for_real(kind: str, server: Scripted, **named: Any) -> Any:
    if kind == "sync":
        with Client(server.url) as client:
            return client.search(ONE_VECTOR, **named)

    async def alone() -> Any:
        async with AsyncClient(server.url) as client:
            return await client.search(ONE_VECTOR, **named)

    return asyncio.run(alone())


def test_an_upload_that_takes_too_long_is_given_up() -> None:
    """By a clock that moves whenever it is looked at: the network takes each piece at once."""
    seconds = itertools.count()
    clock = Surroundings(clock=lambda: float(next(seconds)))
    with (
        scripted_server(answer(200, FOUND)) as server,
        Client(server.url, timeout_s=10, surroundings=clock) as client,
        pytest.raises(TooLate) as raised,
    ):
        client.search(SearchRequest(), [bytes(2**20)])
    assert raised.value.attempts == 1
    assert all(len(asked.body) < 2**20 for asked in server.asked), "it was not sent to its end"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e30])
def test_a_deadline_without_time_is_refused(hands: Hands, timeout_s: float) -> None:
    with scripted_server(answer(200, FOUND)) as server, pytest.raises(BadInput):
        hands.ask(server, "search", ONE_VECTOR, timeout_s=timeout_s)
    assert server.asked == []


def test_a_request_id_of_the_caller_is_used_if_a_header_can_carry_it(hands: Hands) -> None:
    with scripted_server(answer(200, FOUND)) as server:
        hands.ask(server, "search", ONE_VECTOR, request_id="mine-1")
        for odd in ("", "a\r\nX-Evil: 1", "ключ", "x" * 65, "two words"):
            with pytest.raises(BadInput):
                hands.ask(server, "search", ONE_VECTOR, request_id=odd)
    assert [asked.headers["x-request-id"] for asked in server.asked] == ["mine-1"]


# -- connections -------------------------------------------------------------------------------------------


def test_connections_are_kept_and_shared_by_threads() -> None:
    with scripted_server(answer(200, FOUND)) as server:
        with Client(server.url, connections=2) as client, ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: client.search(ONE_VECTOR).generation, range(40)))
        assert found == [7] * 40
        # httpcore may take a connection that another thread just began to use for a dead one, and replace it.
        assert 1 <= server.connections < 10


def test_connections_are_kept_and_shared_by_tasks() -> None:
    async def many(url: str) -> list[int]:
        async with AsyncClient(url, connections=2) as client:
            return [each.generation for each in await gather(client.search(ONE_VECTOR) for _ in range(40))]

    async def gather(each: Any) -> Any:
        return await asyncio.gather(*each)

    with scripted_server(answer(200, FOUND)) as server:
        assert asyncio.run(many(server.url)) == [7] * 40
        assert 1 <= server.connections <= 2


def test_giving_up_a_task_closes_its_connection() -> None:
    async def give_up(server: Scripted) -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.search(ONE_VECTOR))
            while not server.asked:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.closed_early.wait, 20)

    with scripted_server(silent) as server:
        asyncio.run(give_up(server))


def test_classes_of_codes_and_of_statuses_agree() -> None:
    for code, (status, _) in FAMILIES.items():
        if code not in ("partial-refused", "image-rejected"):  # these say more than their status
            assert class_of(code, status) is class_of("unheard-of", status), code
