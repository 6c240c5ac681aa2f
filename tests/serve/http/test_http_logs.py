"""Logs: a line a request, its id on every line, and no secret in any line, metric or answer."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import Corrupt, NotFound, Unavailable
from ingest.store import Store
from serve.http.key_file import add_key
from serve.http.keys import Keys
from serve.http.settings import HttpSettings
from serve.http.uploads import Uploads
from serve.logs import (
    BLOT,
    JsonLines,
    Redactor,
    RequestContext,
    current_request,
    enter_request,
    log_json_lines,
    note_generation,
    request_id,
    store_secrets,
)
from serve.metrics import PrometheusMetrics
from tests.serve.http_server import GENERATION, TellingService, calling, telling_app

STORE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"
MARKER = "MARKER-of-the-uploaded-file"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged as JSON lines, everything included."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    log_json_lines([STORE_SECRET], stream, logging.DEBUG)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_request_has_a_line_that_says_what_became_of_it(tmp_path: Path, written: io.StringIO) -> None:
    path = tmp_path / "keys.json"
    key, text = add_key(path, "a")
    with calling(telling_app(TellingService(), tmp_path, keys=Keys(path))) as call:
        headers = {"X-API-Key": text, "X-Request-Id": "mine"}
        call("POST", "/v1/search?secret=1", json={"vectors": [[1.0]]}, headers=headers)
        call("GET", "/v1/images/77", headers=headers)
        call("GET", "/v1/images/1")
        call("BREW", "/nope")
    found = [line for line in lines(written) if line["logger"] == "reseen.access"]
    search, missing, stranger, nowhere = found
    assert (
        search["request_id"] == "mine" and search["generation"] == GENERATION and search["key_id"] == key.id
    )
    assert (search["method"], search["route"], search["status"]) == ("POST", "/v1/search", 200)
    assert search["ms"] >= 0 and search["code"] == "" and "secret" not in json.dumps(search)
    assert (missing["route"], missing["status"], missing["code"]) == (
        "/v1/images/{image_id}",
        404,
        "not-found",
    )
    assert (stranger["status"], stranger["code"], stranger["key_id"]) == (401, "unauthorized", "")
    assert (nowhere["method"], nowhere["route"], nowhere["code"]) == ("other", "other", "not-found")


def test_all_that_is_logged_on_behalf_of_a_request_has_its_id(tmp_path: Path, written: io.StringIO) -> None:
    class Talking(TellingService):
        async def search(self, *asked: Any) -> Any:
            import asyncio

            logging.getLogger("some.library").info("in the task")
            await asyncio.create_task(self.aside())
            await asyncio.to_thread(logging.getLogger("some.library").info, "in a thread")
            return await super().search(*asked)

        async def aside(self) -> None:
            logging.getLogger("some.library").info("in a task of its own")

    with calling(telling_app(Talking(), tmp_path)) as call:
        for name in ("first", "second"):
            call("POST", "/v1/search", json={"vectors": [[1.0]]}, headers={"X-Request-Id": name})
    found = [line for line in lines(written) if line["logger"] == "some.library"]
    assert [line["request_id"] for line in found] == ["first"] * 3 + ["second"] * 3


def trouble(kind: str, known: bool) -> Exception:
    """What a store's client may raise, its secret in its words: anywhere if the server knows the secret."""
    bare = f" {STORE_SECRET}" if known else ""
    try:
        try:
            raise PermissionError(f"403 for secret_key={STORE_SECRET}{bare}")
        except PermissionError as error:
            where = f"https://user:{STORE_SECRET}@host/b?X-Amz-Signature={STORE_SECRET}"
            message = f"could not read {where}: {error}"
            raise {
                "unavailable": Unavailable,
                "corrupt": Corrupt,
                "not found": NotFound,
                "any": RuntimeError,
            }[kind](message) from error
    except Exception as error:
        return error


@pytest.mark.parametrize("kind", ["unavailable", "corrupt", "not found", "any"])
@pytest.mark.parametrize("known", [True, False])
def test_no_secret_is_in_a_line_a_metric_or_an_answer(
    kind: str, known: bool, tmp_path: Path, written: io.StringIO
) -> None:
    path, metrics, service = tmp_path / "keys.json", PrometheusMetrics(), TellingService()
    _, text = add_key(path, "a")
    secrets = [STORE_SECRET] if known else []
    if not known:  # what looks like a secret is blotted out even where nobody said that it is one
        root = logging.getLogger()
        root.handlers.clear()
        log_json_lines([], written, logging.DEBUG)
    app = telling_app(
        service,
        tmp_path,
        keys=Keys(path),
        metrics=metrics,
        secrets=secrets,
        uploads=Uploads(Store(str(tmp_path / "up"))),
    )
    marked = b"GIF89a" + MARKER.encode() * 3
    wrong_key = text[:-6] + "AAAAAA"
    answers = []
    with calling(app) as call:
        kinds = {"X-API-Key": text, "Content-Type": "image/gif"}
        answers.append(call("POST", "/v1/uploads", content=marked, headers=kinds))
        service.raises = trouble(kind, known)
        for key in (text, wrong_key):
            for given in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
                answers.append(call("POST", "/v1/search", json={"vectors": [[1.0]]}, headers=given))
                answers.append(call("POST", "/v1/search", json={"where": key, "top": key}, headers=given))
                answers.append(call("GET", "/v1/images/1", params={"api_key": key}, headers=given))
                files = {"image": (f"{MARKER}.gif", marked, "image/gif"), "x": ("x", key)}
                answers.append(call("POST", "/v1/search/upload", files=files, headers=given))
        service.raises = None
        answers.append(call("GET", "/metrics", headers={"X-API-Key": text}))
    logged = written.getvalue()
    assert len(lines(written)) >= len(answers)
    told = "".join(answer.text + repr(answer.headers) for answer in answers)
    for secret in (text, text.split("_", 2)[2], wrong_key, MARKER, STORE_SECRET):
        assert secret not in logged, logged
        assert secret not in told and secret not in (metrics.text() or "")
    if kind != "not found":
        assert '"error": ["' in logged, "the place of the trouble is there"


def test_secrets_are_blotted_out_wherever_they_stand() -> None:
    redact = Redactor(["hunter2hunter2", "a+b/c==secret"])
    for text in (
        "x hunter2hunter2 y",
        "https://host/p?sig=abcdef&x=1",
        "https://me:abcdef@host/p",
        "https://me:ab/abcdef+x@host/p",
        "https://abcdef@host/p",
        "Authorization: Bearer abcdef",
        "aws_secret_access_key=abcdef",
        '{"password": "abcdef"}',
        "'token': 'abcdef'",
        "sas_token=abcdef, more",
        "reseen_0123456789ab_abcdef",
        "(a+b/c==secret)",
    ):
        blotted = redact(text)
        assert (
            BLOT in blotted
            and "abcdef" not in blotted
            and "hunter2" not in blotted
            and "a+b/c" not in blotted
        )
    for text in (
        "there is no s3://bucket/shards/ab12/index.faiss",
        "what? nothing",
        "top = 3",
        "a key is missing",
    ):
        assert redact(text) == text


def test_the_secrets_of_stores_are_found_where_fsspec_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"secret": "from-the-environment", "endpoint_url": "http://host"}
    )
    options = {"key": "the-key-id", "client_kwargs": {"aws_session_token": "deep-inside", "region": "eu"}}
    found = store_secrets(options)
    assert {"from-the-environment", "the-key-id", "deep-inside"} <= found
    assert not {"http://host", "eu"} & found


def test_a_line_is_one_json_object_whatever_is_logged(written: io.StringIO) -> None:
    log = logging.getLogger("x")
    log.info("a\nb \u2028 \udc80 %s", "c")
    log.warning("fields", extra={"fields": {"n": 1.5, "o": object(), "deep": {"token": "secret=abcdef"}}})
    try:
        raise ValueError("abcdef")
    except ValueError:
        log.exception("caught")
    found = lines(written)
    assert len(found) == 3 and found[0]["message"] == "a\nb \u2028 \udc80 c"
    assert found[1]["o"] == "object" and "abcdef" not in written.getvalue()
    assert found[2]["error"][0].startswith("builtins.ValueError at http/test_http_logs.py:")
    record = logging.LogRecord("x", logging.INFO, "f", 1, "wrong %d", ("arguments",), None)
    assert json.loads(JsonLines(Redactor()).format(record))["message"] == "wrong %d"


def test_outside_of_a_request_there_is_no_id() -> None:
    import contextvars

    assert current_request() is None and request_id() == ""
    note_generation(3)
    context = contextvars.copy_context()
    context.run(enter_request, RequestContext("r"))
    context.run(note_generation, 3)
    found = context.run(current_request)
    assert found is not None and found.generation == 3 and context.run(request_id) == "r"
    assert current_request() is None


def test_metrics_count_every_request_by_route_and_code(tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    with calling(
        telling_app(TellingService(), tmp_path, metrics=metrics, settings=HttpSettings(rate_per_s=None))
    ) as call:
        for number in range(5):
            call("GET", f"/v1/images/{number}")
        call("GET", "/no/such/path")
        text = call("GET", "/metrics").text
    route = 'method="GET",route="/v1/images/{image_id}"'
    assert f'reseen_requests_total{{code="",{route},status="200"}} 3.0' in text
    assert f'reseen_requests_total{{code="not-found",{route},status="404"}} 2.0' in text
    assert 'route="other"' in text and "/no/such" not in text
    assert 'reseen_stage_seconds_count{stage="request"} 6.0' in text
