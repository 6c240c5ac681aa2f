"""Doors: no route without one, keys and scopes, hosts and origins, rates, and headers on every answer."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from serve.http.doors import DOORS, Doorkeeper, door_of
from serve.http.gate import SECURITY_HEADERS
from serve.http.key_file import Scope, add_key, revoke_key
from serve.http.keys import Keys
from serve.http.problems import Refused
from serve.http.settings import HttpSettings
from tests.serve.http.test_http_problems import checked
from tests.serve.http_server import TellingService, calling, telling_app

REQUESTS = (
    ("POST", "/v1/search", {"json": {"vectors": [[1.0]]}}, Scope.SEARCH),
    (
        "POST",
        "/v1/search/upload",
        {"files": {"image": ("a.gif", b"GIF89a.", "image/gif")}},
        Scope.SEARCH,
    ),
    ("POST", "/v1/uploads", {"content": b"GIF89a.", "headers": {"Content-Type": "image/gif"}}, Scope.SEARCH),
    ("GET", "/v1/images/1/similar", {}, Scope.SEARCH),
    ("GET", "/v1/images/1/duplicates", {}, Scope.SEARCH),
    ("POST", "/v1/compare", {"json": {"query_id": "1", "image_id": "2"}}, Scope.SEARCH),
    ("GET", "/v1/images/1", {}, Scope.READ),
    ("GET", "/v1/images/9/thumbnail", {}, Scope.READ),
    ("GET", f"/v1/uploads/{'0' * 64}/thumbnail", {}, Scope.READ),
    ("GET", "/v1/generation", {}, Scope.READ),
    ("GET", "/metrics", {}, Scope.METRICS),
)
OPEN = ("/livez", "/readyz", "/", "/static/index.html", "/openapi.json")


def with_key(arguments: dict, text: str, header: str = "Authorization") -> dict:
    value = f"Bearer {text}" if header == "Authorization" else text
    return {**arguments, "headers": {**arguments.get("headers", {}), header: value}}


def test_every_route_has_a_door_and_every_door_a_route(tmp_path: Path) -> None:
    app = telling_app(TellingService(), tmp_path)
    paths = {route.path for route in _routes(app.routes)}
    assert paths - {"/openapi.json"} == {door.path for door in DOORS} - {"/openapi.json"}
    for path in paths:
        filled = re.sub(r"\{\w+\}", "x", path)
        found = door_of(filled)
        assert found is not None and found.path == path
    assert {request[1] for request in REQUESTS} >= {
        door.path for door in DOORS if door.scope and "{" not in door.path
    }


def _routes(routes: list) -> list[APIRoute]:
    """The routes of an application, those of included routers too."""
    found: list[APIRoute] = []
    for route in routes:
        found += [route] if isinstance(route, APIRoute) else []
        inner = getattr(route, "original_router", None)
        found += _routes(inner.routes) if inner is not None else []
    return found


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
@pytest.mark.parametrize("held", list(Scope))
def test_a_key_opens_what_its_scope_says_and_nothing_else(held: Scope, header: str, tmp_path: Path) -> None:
    _, text = add_key(tmp_path / "keys.json", "a", [held])
    app = telling_app(TellingService(), tmp_path, keys=Keys(tmp_path / "keys.json"))
    with calling(app) as call:
        for method, path, arguments, scope in REQUESTS:
            response = call(method, path, **with_key(arguments, text, header))
            if scope == held:
                assert response.status_code in (200, 201) or checked(response, "not-found"), path
            else:
                assert scope in checked(response, "forbidden").detail


def test_without_a_valid_key_only_the_open_doors_open(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = add_key(path, "a")
    _, expired = add_key(path, "b", expires=datetime.now(UTC) - timedelta(seconds=1))
    wrong = text[:-9] + ("A" if text[-9] != "A" else "B") + text[-8:]  # the last character has spare bits
    given: list[dict[str, str]] = [
        {},
        {"Authorization": text},
        {"Authorization": f"Basic {text}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {wrong}"},
        {"Authorization": f"Bearer {expired}"},
        {"Authorization": f"Bearer {text}", "X-API-Key": text},
        {"X-API-Key": f"Bearer {text}"},
        {"X-API-Key": text.replace(key.id, "0" * 12)},
    ]
    with calling(telling_app(TellingService(), tmp_path, keys=Keys(path))) as call:
        for method, url, arguments, _ in REQUESTS:
            for headers in given:
                merged = {**arguments, "headers": {**arguments.get("headers", {}), **headers}}
                response = call(method, url, **merged)
                checked(response, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        for url in OPEN:
            assert call("GET", url).status_code == 200, url
        assert call("GET", "/v1/generation", headers={"authorization": f"bearer {text}"}).status_code == 200
        checked(call("GET", "/v1/generation", params={"key": text}), "unauthorized")


def test_a_revoked_key_closes_while_the_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = add_key(path, "a")
    keys = Keys(path, look_every_s=0)
    headers = {"Authorization": f"Bearer {text}"}
    with calling(telling_app(TellingService(), tmp_path, keys=keys)) as call:
        assert call("GET", "/v1/generation", headers=headers).status_code == 200
        _, new = add_key(path, "b")
        revoke_key(path, key.id)
        checked(call("GET", "/v1/generation", headers=headers), "unauthorized")
        assert call("GET", "/v1/generation", headers={"X-API-Key": new}).status_code == 200


def test_without_keys_only_loopback_names_are_answered(tmp_path: Path) -> None:
    app = telling_app(TellingService(), tmp_path)
    with calling(app) as call:
        for host in (
            "127.0.0.1",
            "127.8.9.1:8000",
            "localhost",
            "LOCALHOST:1",
            "[::1]:80",
            "a.localhost",
            "localhost.",
        ):
            assert call("GET", "/v1/generation", headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "10.0.0.1",
            "[::2]",
            "127.0.0.1@evil.example",
            "evil.example:127.0.0.1",
            "localhost, evil.example",
            "0.0.0.0",
        ):
            checked(call("GET", "/v1/generation", headers={"Host": host}), "forbidden")
            checked(call("GET", "/", headers={"Host": host}), "forbidden")
            assert call("GET", "/livez", headers={"Host": host}).status_code == 200
    named = telling_app(TellingService(), tmp_path, settings=HttpSettings(hosts=("box.lan",)))
    with calling(named) as call:
        assert call("GET", "/v1/generation", headers={"Host": "box.lan:8000"}).status_code == 200
        checked(call("GET", "/v1/generation", headers={"Host": "box.land"}), "forbidden")


def test_of_two_names_none_is_believed(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for names in (("127.0.0.1", "evil.example"), ("evil.example", "127.0.0.1")):
            response = call("GET", "/v1/images/1", headers=[("Host", name) for name in names])
            checked(response, "forbidden")


def test_with_keys_any_name_is_answered(tmp_path: Path) -> None:
    _, text = add_key(tmp_path / "keys.json", "a")
    with calling(telling_app(TellingService(), tmp_path, keys=Keys(tmp_path / "keys.json"))) as call:
        headers = {"Host": "search.example", "X-API-Key": text}
        assert call("GET", "/v1/generation", headers=headers).status_code == 200


def test_pages_of_other_origins_can_do_nothing(tmp_path: Path) -> None:
    """A form on any site may be posted to a server on this machine, without being asked."""
    form = {"files": {"image": ("a.gif", b"GIF89a.", "image/gif")}}
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
            checked(call("POST", "/v1/uploads", headers={"Origin": origin}, **form), "forbidden")
        own = {"Origin": "http://127.0.0.1"}
        assert call("POST", "/v1/uploads", headers=own, **form).status_code == 201
        response = call("GET", "/v1/generation", headers={"Origin": "https://evil.example"})
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_an_origin_that_is_allowed_may_call_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, text = add_key(path, "a")
    settings = HttpSettings(origins=("https://shop.example",))
    app = telling_app(TellingService(), tmp_path, settings=settings, keys=Keys(path))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with calling(app) as call:
        for origin, allowed in (("https://shop.example", True), ("https://evil.example", False)):
            asked = call("OPTIONS", "/v1/search", headers={"Origin": origin, **ask})
            headers = {"Origin": origin, "X-API-Key": text}
            told = call("POST", "/v1/search", json={"vectors": [[1.0]]}, headers=headers)
            assert (asked.status_code == 200) == allowed
            for response in (asked, told):
                assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
                assert "access-control-allow-credentials" not in response.headers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    from starlette.datastructures import Headers

    path, clock = tmp_path / "keys.json", Clock()
    _, one = add_key(path, "a")
    _, other = add_key(path, "b")
    keeper = Doorkeeper(HttpSettings(rate_per_s=2.0, rate_burst=3), Keys(path), clock)
    door = door_of("/v1/generation")
    assert door is not None

    def ask(text: str) -> None:
        keeper.admit(door, "GET", Headers({"x-api-key": text}))

    for _ in range(3):
        ask(one)
    with pytest.raises(Refused) as refused:
        ask(one)
    assert refused.value.code == "overloaded" and refused.value.extra == {"retry_after_s": 0.5}
    assert refused.value.headers == {"Retry-After": "1"}
    ask(other)
    clock.now += 0.5
    ask(one)
    with pytest.raises(Refused):
        ask(one)
    clock.now += 1_000
    for _ in range(3):
        ask(one)
    with pytest.raises(Refused):
        ask(one)


def test_too_many_requests_are_a_problem_with_retry_after(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, text = add_key(path, "a")
    settings = HttpSettings(rate_per_s=0.001, rate_burst=2)
    app = telling_app(TellingService(), tmp_path, settings=settings, keys=Keys(path))
    with calling(app) as call:
        answers = [call("GET", "/v1/generation", headers={"X-API-Key": text}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        checked(answers[2], "overloaded")
        assert int(answers[2].headers["retry-after"]) >= 900
        assert call("GET", "/livez").status_code == 200


def test_every_answer_has_the_headers_that_protect_a_browser(tmp_path: Path) -> None:
    service = TellingService()
    with calling(telling_app(service, tmp_path)) as call:
        answers: list[httpx.Response] = [call("GET", path) for path in (*OPEN, "/nope", "/v1/generation")]
        answers.append(call("POST", "/v1/search", content=b"{", headers={"Content-Type": "application/json"}))
        service.raises = RuntimeError("boom")
        answers.append(call("GET", "/v1/generation"))
        answers.append(call("GET", "/v1/generation", headers={"Host": "evil.example"}))
    for answer in answers:
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value, answer.url
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["cache-control"] and answer.headers["x-request-id"]


def test_a_sane_request_id_is_kept_and_any_other_is_replaced(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for given in ("a", "A-1_b.c", "x" * 64):
            assert call("GET", "/livez", headers={"X-Request-Id": given}).headers["x-request-id"] == given
        seen = set()
        for given in ("", "x" * 65, "a b", "<script>", 'a"b', "é".encode()):
            answer = call(
                "GET",
                "/livez",
                headers=[(b"x-request-id", given if isinstance(given, bytes) else given.encode())],
            )
            assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
            seen.add(answer.headers["x-request-id"])
        assert len(seen) == 6
