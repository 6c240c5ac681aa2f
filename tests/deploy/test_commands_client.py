"""`reseen query` and `reseen keys`: results, warnings, exit codes, and no key where it does not belong."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from deploy import commands_client
from deploy.terminal import Commands
from serve.http.key_file import Scope, list_keys
from serve.http.keys import Keys
from tests.serve.scripted_server import Act, Scripted, answer, drop, problem, scripted_server

KEY = "reseen_0123456789ab_planted-secret"
ROW = {
    "rank": 1,
    "image_id": "3941654959055551396",
    "score": 1.511847,
    "similarity": 0.761847,
    "steps": [
        {"step": "geometry", "added": 0.75, "figures": {"matches": 282.0, "inliers": 264.0}},
        {"step": "regions", "added": 0.0, "box": [1.0, 2.0, 3.5, 4.0]},
    ],
    "verdict": {"label": "same", "probability": 0.99},
    "uri": "/data/photos/Reference/001.jpg",
    "source": "photos",
    "key": "Reference/001.jpg",
    "metadata": {"year": 1990},
    "thumbnail": "/v1/images/3941654959055551396/thumbnail",
}
SAID = {  # what `reseen search --json` says of the same result
    "rank": 1,
    "image_id": 3941654959055551396,
    "score": 1.511847,
    "similarity": 0.761847,
    "steps": [
        {"step": "geometry", "added": 0.75, "matches": 282.0, "inliers": 264.0},
        {"step": "regions", "added": 0.0, "box": [1.0, 2.0, 3.5, 4.0]},
    ],
    "uri": "/data/photos/Reference/001.jpg",
    "source": "photos",
    "key": "Reference/001.jpg",
    "metadata": {"year": 1990},
}


def found(generation: int = 7, **changed: Any) -> Act:
    body = {
        "generation": generation,
        "queries": [{"kind": "upload", "name": "x"}],
        "results": [ROW],
        "partial": False,
        "coverage": 1.0,
        "request_id": "r",
        "took_ms": 1.5,
    }
    return answer(200, body | changed)


def refused(reason: str) -> Act:
    return problem("image-rejected", 422, {"reason": reason, "reason_detail": "it is no image"})


def reseen(*arguments: object, stdin: bytes | None = None) -> Result:
    app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
    commands_client.add_to(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def ok(*arguments: object, stdin: bytes | None = None) -> Any:
    result = reseen(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def fails(code: int, told: str, *arguments: object) -> Result:
    result = reseen(*arguments)
    assert result.exit_code == code, result.output
    assert re.search(told, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESEEN_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "query.jpg"
    file.write_bytes(b"pixels")
    return file


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted_server(found()) as running:
        yield running


# -- query ------------------------------------------------------------------------------------------------


def test_query_says_what_search_says(server: Scripted, image: Path) -> None:
    said = ok("query", server.url, image)
    assert said["generation"] == 7
    (query,) = said["queries"]
    assert (query["query"], query["results"], query["rejected"]) == (str(image), [SAID], None)
    assert (query["partial"], query["coverage"]) == (False, 1.0)
    text = reseen("query", server.url, image)
    assert text.exit_code == 0
    assert text.stdout == (
        f"{image}\n"
        "rank   score             image_id  uri\n"
        "   1  1.5118  3941654959055551396  /data/photos/Reference/001.jpg\n"
    )
    assert text.stderr == ""


def test_the_options_of_query_are_the_fields_of_the_request(server: Scripted, image: Path) -> None:
    options = ["--top=3", "--box=1,2,30,40", "--rerank=geometry", "--depth=20", "--nprobe=8"]
    options += ["--no-allow-partial", "--timeout=5"]
    ok("query", server.url, image, "--where", "year >= 1990", *options)
    (name, file_name, data), (field, _, request) = server.asked[0].parts()
    assert (name, file_name, data, field) == ("image", str(image), b"pixels", "request")
    said = json.loads(request)
    assert 0 < said.pop("timeout_ms") <= 5000
    assert said == {
        "top": 3,
        "box": [1, 2, 30, 40],
        "where": "year >= 1990",
        "rerank": "geometry",
        "depth": 20,
        "nprobe": 8,
        "allow_partial": False,
    }


def test_images_come_from_files_urls_and_standard_input(server: Scripted, image: Path) -> None:
    said = ok("query", server.url, image, f"file://{image}", "-", stdin=b"piped")
    assert [query["query"] for query in said["queries"]] == [str(image), f"file://{image}", "standard input"]
    assert [asked.parts()[0][2] for asked in server.asked] == [b"pixels", b"pixels", b"piped"]


def test_an_image_that_cannot_be_used_is_an_answer_and_alone_an_error(image: Path) -> None:
    with scripted_server(refused("unknown_format"), found()) as server:
        first, second = ok("query", server.url, image, image)["queries"]
    assert first["rejected"] == {"reason": "unknown_format", "detail": "it is no image"}
    assert (first["results"], second["results"]) == ([], [SAID])
    with scripted_server(refused("unknown_format")) as server:
        alone = reseen("query", server.url, image)
    assert alone.exit_code == 2
    assert alone.stdout == f"{image}: not usable (unknown_format: it is no image)\n"
    assert "give another image" in alone.stderr


def test_what_must_not_be_overlooked_is_said_beside_the_result(image: Path) -> None:
    partial = found(
        partial=True, coverage=0.75, missing_shards=["s1"], skipped_steps=["cvnet"], warnings=["old faiss"]
    )
    with scripted_server(partial, found(8, warnings=["old faiss"])) as server:
        result = reseen("query", server.url, image, image, "--json", "--quiet")
    assert result.exit_code == 0
    assert "75.0% of the images were searched, 1 shard(s) did not answer" in result.stderr
    assert "steps left out: cvnet" in result.stderr
    assert "generations 7, 8" in result.stderr
    assert result.stderr.count("old faiss") == 1
    said = json.loads(result.stdout)
    assert said["generation"] == 8
    assert [query["generation"] for query in said["queries"]] == [7, 8]
    assert said["queries"][0]["missing_shards"] == ["s1"]


@pytest.mark.parametrize(
    ("act", "code", "told"),
    [
        (problem("invalid", 422), 2, "because of invalid"),
        (problem("unauthorized", 401), 2, "unauthorized"),
        (problem("not-found", 404), 2, "not-found"),
        (problem("overloaded", 429, Retry_After="60"), 1, "overloaded"),
        (problem("not-ready", 503, Retry_After="60"), 1, "not-ready"),
        (problem("internal", 500), 1, "of-the-server"),
        (answer(200, b"<html>"), 1, "Reseen server"),
    ],
)
def test_a_servers_problem_is_one_line_and_an_exit_code(image: Path, act: Act, code: int, told: str) -> None:
    with scripted_server(act) as server:
        result = fails(code, told, "query", server.url, image)
    assert len(result.stderr.splitlines()) == 1
    assert "bug in Reseen" not in result.stderr


def test_the_mistakes_of_a_caller_are_told_before_a_server_is_asked(
    server: Scripted, image: Path, tmp_path: Path
) -> None:
    fails(2, "check the spelling", "query", server.url, tmp_path / "none.jpg")
    fails(2, "not a file", "query", server.url, tmp_path)
    for url in ("127.0.0.1:8000", "http://[::1", "http://127.0.0.1:65536"):
        fails(2, "not the URL of a server", "query", url, image)
    fails(2, "X0 < X1", "query", server.url, image, "--box", "5,5,1,1")
    fails(2, "--top", "query", server.url, image, "--top", 100_000)
    for odd in (0, "inf"):
        fails(2, "give more than 0", "query", server.url, image, "--timeout", odd)
    fails(2, "no key file", "query", server.url, image, "--key-file", tmp_path / "none")
    assert server.asked == []


def test_a_server_that_is_not_there_is_a_failure_that_names_it(image: Path) -> None:
    with scripted_server(drop) as server:
        fails(1, server.url, "query", server.url, image, "--timeout", 0.3)


def test_the_key_comes_from_a_file_or_the_environment_and_is_never_printed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("RESEEN_API_KEY", KEY[:-1] + "T")
    with scripted_server(found(), found(), problem("forbidden", 403)) as server:
        ok("query", server.url, image)
        ok("query", server.url, image, "--key-file", file)
        denied = fails(2, "forbidden", "query", server.url, image)
    told = [asked.headers["authorization"] for asked in server.asked]
    assert told[:2] == [f"Bearer {KEY[:-1]}T", f"Bearer {KEY}"]
    assert "planted" not in denied.output
    for odd in (b"", b"two words", b"\xff\xfe", b"x" * 5000):
        file.write_bytes(odd)
        fails(2, "no key file", "query", server.url, image, "--key-file", file)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://127.0.0.1:9", False),
        ("http://[::1]:9", False),
        ("http://localhost:9", False),
        ("https://photos.invalid", False),
        ("http://photos.invalid", True),
        ("http://192.0.2.1:9", True),
    ],
)
def test_a_key_that_others_can_read_on_the_way_is_warned_of(url: str, warned: bool) -> None:
    from deploy.query_job import stays_private

    assert stays_private(url) is not warned


# -- keys -------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_works_and_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = ok("keys", "add", "the page", "--scope", "search", "--scope", "read", "--keys", file)
    key = made["key"]
    assert (made["name"], made["scopes"], made["expires"]) == ("the page", ["search", "read"], None)
    checked = Keys(file, look_every_s=0).check(key)
    assert checked is not None
    assert set(checked.scopes) == {Scope.SEARCH, Scope.READ}
    other = reseen("keys", "add", "all", "--keys", file)
    assert Keys(file).check(other.stdout.strip()) is not None, "alone on standard output, to be piped"
    assert "not shown again" in other.stderr

    listed = ok("keys", "list", "--keys", file)["keys"]
    assert [each["name"] for each in listed] == ["the page", "all"]
    assert listed[1]["scopes"] == [str(scope) for scope in Scope]
    gone = ok("keys", "revoke", made["id"], "--keys", file)
    assert gone["id"] == made["id"]
    assert Keys(file).check(key) is None
    assert [each.name for each in list_keys(file)] == ["all"]


def test_no_secret_is_listed_nor_said_when_a_key_is_taken_for_its_id(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = ok("keys", "add", "one", "--keys", file)
    secret = made["key"].rsplit("_", 1)[1] if made["key"].count("_") == 2 else made["key"][20:]
    pasted = f" Bearer {made['key']}\n"
    for arguments in (("list",), ("list", "--json"), ("revoke", pasted), ("revoke", made["key"])):
        result = reseen("keys", *arguments, "--keys", file)
        assert secret not in result.output
        assert list_keys(file) == [] or list_keys(file)[0].sha256 not in result.output
    assert list_keys(file) == []
    assert result.exit_code == 2
    assert "no key" in result.stderr


def test_a_name_is_said_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for words in (("add", "a\x1b[31m"), ("list",)):
        result = reseen("keys", *words, "--keys", file)
        assert result.exit_code == 0
        assert "a?[31m" in result.output and "\x1b" not in result.output


def test_a_key_ends_after_its_days(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = ok("keys", "add", "guest", "--expires-days", 2, "--keys", file)["key"]
    day = 24 * 3600
    assert Keys(file, clock=lambda: time.time() + 1.9 * day).check(key) is not None
    assert Keys(file, clock=lambda: time.time() + 2.1 * day).check(key) is None
    ok("keys", "add", "over", "--expires-days", 0, "--keys", file)
    assert "(over)" in reseen("keys", "list", "--keys", file).stdout


def test_mistakes_with_keys_are_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    fails(2, "there is no file of keys", "keys", "list", "--keys", file)
    fails(2, "no calendar", "keys", "add", "x", "--expires-days", 1e12, "--keys", file)
    fails(2, "name", "keys", "add", "x" * 300, "--keys", file)
    assert not file.exists()
    file.write_text("{")
    fails(2, "no file of keys", "keys", "add", "x", "--keys", file)
    fails(2, "no file of keys", "keys", "list", "--keys", file)


def test_scopes_of_the_command_are_those_of_servers() -> None:
    assert [str(each.value) for each in commands_client.ScopeName] == [str(scope) for scope in Scope]
