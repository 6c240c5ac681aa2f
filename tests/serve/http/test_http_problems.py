"""Every problem has its code, its status and a document; none repeats what it should not."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.errors import BadInput, Conflict, Corrupt, NotFound, OverBudget, Unavailable
from ingest.outcomes import Outcome, Rejected
from serve.api import Problem
from serve.http.problems import KINDS
from serve.http.settings import HttpSettings
from serve.http.uploads import Uploads
from serve.refusals import Away, DeadlineExceeded, ImageRejected, NotReady, Overloaded, PartialRefused
from tests.serve.http_server import TellingService, calling, running, telling_app

SEARCH = {"vectors": [[1.0, 0.0]]}


def checked(response: httpx.Response, code: str) -> Problem:
    """The problem that a response is, with all that every problem has."""
    problem = Problem.model_validate_json(response.content)
    assert (problem.code, response.status_code) == (code, KINDS[code].status), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.status == response.status_code and problem.title == KINDS[code].title
    assert problem.type == f"urn:reseen:problem:{code}" and problem.detail
    assert problem.request_id == response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store"
    return problem


@pytest.mark.parametrize(
    ("error", "code", "extra"),
    [
        (BadInput("no column yaer"), "invalid", {}),
        (
            ImageRejected("a.jpg", Rejected(Outcome.TRUNCATED, "JPEG: the data ends early")),
            "image-rejected",
            {"reason": "truncated", "reason_detail": "JPEG: the data ends early"},
        ),
        (NotFound("there is no image 5"), "not-found", {}),
        (Overloaded(0.4), "overloaded", {"retry_after_s": 0.4}),
        (OverBudget("too many"), "too-large", {}),
        (DeadlineExceeded("late"), "deadline-exceeded", {}),
        (
            PartialRefused(0.75, ["s1"], ["geometry"]),
            "partial-refused",
            {"coverage": 0.75, "missing_shards": ["s1"], "skipped_steps": ["geometry"]},
        ),
        (NotReady("no generation is loaded"), "not-ready", {"retry_after_s": 1}),
        (Away("the encoder does not answer"), "not-ready", {"retry_after_s": 1}),
        (Unavailable("could not read s3://b/k"), "store-unavailable", {"retry_after_s": 5}),
        (Corrupt("s3://b/k is damaged"), "internal", {}),
        (Conflict("somebody else"), "internal", {}),
        (RuntimeError("boom"), "internal", {}),
        (KeyError("boom"), "internal", {}),
        (MemoryError(), "internal", {}),
        (asyncio.CancelledError(), "internal", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_service_raises_becomes_its_problem(
    error: BaseException, code: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    service = TellingService()
    service.raises = error
    with calling(telling_app(service, tmp_path)) as call:
        response = call("POST", "/v1/search", json=SEARCH)
    problem = checked(response, code)
    assert problem.extra == extra
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    if code in ("internal", "store-unavailable"):
        assert "boom" not in response.text and "s3://" not in response.text


def test_routes_and_methods_that_are_not_there_are_problems_too(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for path in (
            "/nope",
            "/v1",
            "/v1/search/",
            "/v1/images/1/nope",
            "/static/a/b",
            "/docs",
            "/v1/images/",
        ):
            checked(call("GET", path), "not-found")
        for method, path in (
            ("GET", "/v1/search"),
            ("DELETE", "/v1/images/1"),
            ("POST", "/livez"),
            ("PUT", "/v1/uploads"),
            ("PATCH", "/"),
        ):
            response = call(method, path)
            checked(response, "method-not-allowed")
            assert response.headers["allow"] == (
                "POST" if path in ("/v1/search", "/v1/uploads") else "GET, HEAD"
            )


def test_head_is_answered_as_get_is(tmp_path: Path) -> None:
    with running(telling_app(TellingService(), tmp_path)) as url, httpx.Client(base_url=url) as client:
        for path in (
            "/",
            "/livez",
            "/readyz",
            "/v1/images/1",
            "/v1/images/4",
            "/v1/generation",
            "/openapi.json",
        ):
            whole, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            for name in ("content-type", "content-length"):
                assert head.headers[name] == whole.headers[name], path
        assert client.head("/v1/search").status_code == 405


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "bad-request", ""),
        (b"{", "bad-request", ""),
        (b"null", "bad-request", ""),
        (b"[]", "bad-request", ""),
        (b'"text"', "bad-request", ""),
        (b"\xff\xfe", "bad-request", ""),
        (b'{"where": "\xff"}', "bad-request", ""),
        (b'{"where": "\\ud800"}', "bad-request", ""),
        (b'{"top": 1, "top": 2}', "bad-request", "twice"),
        (b'{"where": {"not": {"a": 1, "a": 2}}}', "bad-request", "twice"),
        (b'{"vectors": [[NaN]]}', "bad-request", "NaN"),
        (b'{"vectors": [[-Infinity]]}', "bad-request", "Infinity"),
        (b'{"vectors": [[1e999]]}', "invalid", "vectors.0.0"),
        (b'{"top": 1e400}', "invalid", "top"),
        (b'{"top": ' + b"9" * 5_000 + b"}", "bad-request", ""),
        (b"[" * 10_000, "bad-request", ""),
        (b'{"where": ' + b'{"not": ' * 2_000 + b"1" + b"}" * 2_001, "bad-request", ""),
        (b'{"top": 0}', "invalid", "top"),
        (b'{"top": 1001}', "invalid", "top"),
        (b'{"top": "ten"}', "invalid", "top"),
        (b'{"top": "10"}', "invalid", "top"),
        (b'{"fold": 0}', "invalid", "fold"),
        (b'{"explain": "true"}', "invalid", "explain"),
        (b'{"vectors": [[true]]}', "invalid", "vectors.0.0"),
        (b'{"tpo": 3}', "invalid", "tpo"),
        (b'{"uploads": ["../../etc/passwd"]}', "invalid", "uploads.0"),
        (b'{"image_ids": ["1e3"]}', "invalid", "image_ids.0"),
        (b'{"image_ids": [-1]}', "invalid", "image_ids.0"),
        (b'{"image_ids": ["1", "01"]}', "invalid", "image_ids.1"),
        (b'{"image_ids": [1.5]}', "invalid", "image_ids.0"),
        (b'{"image_ids": [true]}', "invalid", "image_ids.0"),
        (b'{"box": [0, 0, 1]}', "invalid", "box"),
        (b'{"image_ids": ["9223372036854775808"]}', "not-found", "9223372036854775808"),
        (b'{"vectors": [' + b"[]," * 20_000 + b"[]]}", "invalid", "20000 lists and objects"),
        (b'{"where": ' + b"{}" * 20_000 + b"}", "invalid", "20000 lists and objects"),
        (b'{"uploads": ["' + b"0" * 64 + b'"]}', "not-found", "0" * 64),
    ],
)
def test_a_body_that_cannot_be_is_refused_and_the_field_is_named(
    body: bytes, code: str, field: str, tmp_path: Path
) -> None:
    service = TellingService()
    with calling(telling_app(service, tmp_path)) as call:
        response = call("POST", "/v1/search", content=body, headers={"Content-Type": "application/json"})
    problem = checked(response, code)
    assert field in problem.detail
    assert service.asked == []


def test_nothing_that_was_sent_is_repeated(tmp_path: Path) -> None:
    """Were it a key in the wrong field, or megabytes."""
    planted = "geheim" * 20
    bodies: list[Any] = [
        {"top": planted},
        {"uploads": [planted]},
        {"vectors": [planted]},
        {"where": [planted]},
        {planted * 10_000: 1},
        {"box": {planted: planted}},
        {"uploads": ["x" * 1_000] * 16, "image_ids": ["x"] * 16, "exclude_ids": ["x"] * 900},
    ]
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for body in bodies:
            response = call("POST", "/v1/search", json=body)
            assert checked(response, "invalid") and len(response.content) < 6_000
            assert planted not in response.text


def test_queries_and_paths_are_checked_as_bodies_are(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for path, code in (
            ("/v1/images/x", "invalid"),
            ("/v1/images/-1", "invalid"),
            ("/v1/images/1%0A", "invalid"),
            ("/v1/images/9223372036854775808", "not-found"),
            ("/v1/images/4", "not-found"),
            ("/v1/images/1/similar?top=0", "invalid"),
            ("/v1/images/1/similar?tpo=1", "invalid"),
            ("/v1/images/1/similar?top=1&top=2", "invalid"),
            ("/v1/images/1/duplicates?top=1&top=1", "invalid"),
            ("/v1/images/1/thumbnail?size=64&size=%36%34", "invalid"),
            ("/v1/images/1?x=1&x=2", "invalid"),
            ("/v1/images/1/duplicates?threshold=nan", "invalid"),
            ("/v1/images/1/duplicates?threshold=2", "invalid"),
            ("/v1/images/1/thumbnail?size=63", "invalid"),
            ("/v1/images/1/thumbnail?size=1025", "invalid"),
            ("/v1/uploads/abc/thumbnail", "invalid"),
            (f"/v1/uploads/{'0' * 64}/thumbnail", "not-found"),
        ):
            checked(call("GET", path), code)


def test_what_a_search_is_asked_arrives_as_it_was_sent(tmp_path: Path) -> None:
    service = TellingService()
    asked = {
        "image_ids": [1, "2"],
        "unlike_ids": ["3"],
        "exclude_ids": ["3941654959055551396"],
        "top": 2,
        "where": {"column": "year", "op": ">=", "value": 1990},
        "allow_partial": False,
        "timeout_ms": 500,
    }
    with calling(telling_app(service, tmp_path)) as call:
        response = call("POST", "/v1/search", json=asked, headers={"X-Request-Id": "mine-1"})
        similar = call("GET", "/v1/images/2/similar", params={"top": 1, "where": "year > 3", "explain": True})
    assert response.status_code == 200 and response.json()["request_id"] == "mine-1"
    assert [found["image_id"] for found in response.json()["results"]] == ["1", "2"]
    request, images, request_id = service.asked[0]
    assert request.model_dump(exclude_unset=True) == {**asked, "image_ids": ["1", "2"]}
    assert images == [] and request_id == "mine-1"
    request, _, _ = service.asked[1]
    assert similar.status_code == 200
    assert (request.image_ids, request.exclude_ids, request.top) == (["2"], ["2"], 1)
    assert request.where == "year > 3" and request.explain


def test_comparisons_take_an_upload_or_an_image(tmp_path: Path) -> None:
    service = TellingService()
    with calling(telling_app(service, tmp_path)) as call:
        digest = call(
            "POST", "/v1/uploads", content=b"GIF89a.", headers={"Content-Type": "image/gif"}
        ).json()["digest"]
        assert call("POST", "/v1/compare", json={"query_id": "1", "image_id": "2"}).status_code == 200
        by_upload = {"upload": digest, "image_id": "2", "box": [1, 2, 3, 4]}
        assert call("POST", "/v1/compare", json=by_upload).status_code == 200
        for wrong in (
            {"query_id": "1"},
            {"query_id": "1", "image_id": "x"},
        ):
            checked(call("POST", "/v1/compare", json=wrong), "invalid")
        for beyond in ({"query_id": str(2**63), "image_id": "2"}, {"query_id": "1", "image_id": str(2**63)}):
            checked(call("POST", "/v1/compare", json=beyond), "not-found")
    (_, none), (_, image) = service.compared
    assert none is None and image is not None
    assert (image.data, image.box, image.name) == (b"GIF89a.", (1, 2, 3, 4), digest)


def test_file_names_that_are_not_utf8_do_not_break_an_answer(tmp_path: Path) -> None:
    service = TellingService()
    service.key = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    with calling(telling_app(service, tmp_path)) as call:
        response = call("POST", "/v1/search", json=SEARCH)
        assert json.loads(response.content)["results"][0]["key"] == service.key
        assert call("GET", "/v1/images/1").status_code == 200
        service.raises = NotFound(f"there is no {service.key}")
        checked(call("POST", "/v1/search", json=SEARCH), "not-found")


def test_content_types_are_taken_at_their_word(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ):
            for path in ("/v1/search", "/v1/compare"):
                response = call("POST", path, content=b"{}", headers={"Content-Type": kind} if kind else {})
                checked(response, "unsupported-media-type")
        for path, kind in (
            ("/v1/uploads", "application/json"),
            ("/v1/uploads", "image/svg+xml"),
            ("/v1/search/upload", "image/jpeg"),
        ):
            checked(
                call("POST", path, content=b"{}", headers={"Content-Type": kind}), "unsupported-media-type"
            )
        for path, kind in (
            ("/v1/search", "application/json"),
            ("/v1/uploads", "image/gif"),
            ("/v1/search/upload", "multipart/form-data; boundary=x"),
        ):
            kinds = {"Content-Type": kind, "Content-Encoding": "gzip"}
            problem = checked(call("POST", path, content=b"{}", headers=kinds), "unsupported-media-type")
            assert "Content-Encoding" in problem.detail
        kind = "Application/JSON; charset=utf-8"
        body = json.dumps(SEARCH).encode()
        assert call("POST", "/v1/search", content=body, headers={"Content-Type": kind}).status_code == 200


def test_uploads_that_are_off_say_so(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path, uploads=Uploads(None))) as call:
        response = call("POST", "/v1/uploads", content=b"GIF89a.", headers={"Content-Type": "image/gif"})
        assert "/v1/search/upload" in checked(response, "uploads-off").detail
        checked(call("POST", "/v1/search", json={"uploads": ["0" * 64]}), "uploads-off")
        checked(call("GET", f"/v1/uploads/{'0' * 64}/thumbnail"), "uploads-off")


def test_not_being_ready_is_told_by_readyz_alone(tmp_path: Path) -> None:
    service = TellingService()
    with calling(telling_app(service, tmp_path)) as call:
        assert call("GET", "/readyz").json()["ready"] is True
        service.ready, service.raises = False, NotReady("nothing is loaded")
        response = call("GET", "/readyz")
        assert response.status_code == 503 and response.json()["missing"] == ["s1"]
        assert call("GET", "/livez").status_code == 200
        checked(call("GET", "/v1/generation"), "not-ready")


def test_metrics_that_are_elsewhere_are_not_found_here(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        checked(call("GET", "/metrics"), "not-found")


def test_limits_of_json_and_of_the_number_of_images_hold(tmp_path: Path) -> None:
    settings = HttpSettings(rate_per_s=None, max_json_bytes=2_048, max_images=2)
    with calling(telling_app(TellingService(), tmp_path, settings=settings)) as call:
        response = call("POST", "/v1/search", json={"where": "x" * 3_000})
        assert checked(response, "too-large").extra == {"limit_bytes": 2_048}
        checked(call("POST", "/v1/search", json={"uploads": ["0" * 64] * 3}), "invalid")
