"""The clients and the commands against a real server, which must say what `reseen search` says."""

import asyncio
import inspect
import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from deploy import commands_client, commands_gallery
from deploy.terminal import Commands
from ingest.records import sha256
from ingest.sources import Source, open_source
from serve.api import CompareRequest, SearchOptions, SearchRequest
from serve.client import AsyncClient, Client
from serve.client.errors import ImageRefused, NotAllowed, NotThere, RequestRefused
from tests.serving.app import Served, served

SCENES = "synthetic:scenes=8,views=3,distractors=12,size=160"
RECIPE = """
name: small
features: {describe: {local: {kind: sift, max_keypoints: 200}}}
encoder: {kind: vlad, codebook: {words: 16, sample_descriptors: 4096}}
quantizer: {kind: flat}
"""
QUERY = "facade-000002/view-01.bmp"


def reseen(*words: object) -> Any:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    commands_gallery.add_to(app)
    commands_client.add_to(app)
    return CliRunner().invoke(app, [str(word) for word in words])


def ok(*words: object) -> Any:
    result = reseen(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery, a query and a file of keys."""
    made = tmp_path_factory.mktemp("served")
    (made / "small.yaml").write_text(RECIPE)
    inline = ("-g", made / "gallery", "-r", made / "small.yaml", "--engine", "inline")
    ok("ingest", SCENES, *inline, "--part-images", 4)
    ok("build", *inline)
    source = open_source(SCENES)
    assert isinstance(source, Source)
    (made / "query.bmp").write_bytes(source.read(QUERY))
    (made / "junk.jpg").write_bytes(b"not an image")
    for name in ("all", "read", "gone"):
        scopes = () if name == "all" else ("--scope", "read")
        key = ok("keys", "add", name, *scopes, "--keys", made / "keys.json")
        (made / f"{name}.key").write_text(key["key"])
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    options = ("--groups", 2, "--keys", folder / "keys.json", "--log-level", "debug")
    with served(folder / "gallery", folder, *options) as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy_nor_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RESEEN_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def key(folder: Path) -> str:
    return (folder / "all.key").read_text()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--top", 3, "--rerank", "geometry", "--depth", 5),
        ("--top", 36, "--rerank", "expand,geometry"),
        ("--box", "8,8,150,110"),
        ("--where", 'scene != "facade-000002" and view >= 1'),
    ],
    ids=str,
)
def test_query_says_what_search_says(server: Served, folder: Path, options: tuple[object, ...]) -> None:
    image = folder / "query.bmp"
    here = ok("search", image, "-g", folder / "gallery", *options)
    there = ok("query", server.url, image, "--key-file", folder / "all.key", *options)
    assert there["generation"] == here["generation"] == 1
    (mine,), (its,) = here["queries"], there["queries"]
    assert its["results"] == mine["results"]
    assert {name: its[name] for name in mine} == mine
    assert its["results"], "there is something to compare"
    text = reseen("query", server.url, image, "--key-file", folder / "all.key", *options)
    assert text.stdout == reseen("search", image, "-g", folder / "gallery", *options).stdout


def test_an_image_that_cannot_be_used_is_refused_in_the_words_of_search(server: Served, folder: Path) -> None:
    here = reseen("search", folder / "junk.jpg", "-g", folder / "gallery", "--json")
    there = reseen("query", server.url, folder / "junk.jpg", "--key-file", folder / "all.key", "--json")
    assert here.exit_code == there.exit_code == 2
    mine, its = (json.loads(result.stdout)["queries"][0] for result in (here, there))
    assert its["rejected"] == mine["rejected"]


def test_every_method_is_answered_alike_to_both_clients(server: Served, folder: Path, key: str) -> None:
    async def by_async() -> dict[str, Any]:
        async with AsyncClient(server.url, key) as client:
            return {name: await call for name, call in calls(client, folder)}

    with Client(server.url, key) as client:
        one = dict(calls(client, folder))
    two = asyncio.run(by_async())
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"}
    assert one.keys() == two.keys() == public - {"close"}
    for name in one.keys() - {"metrics", "generation", "live"}:
        assert comparable(one[name]) == comparable(two[name]), name
    assert one["generation"].number == 1
    assert len(one["generation"].groups) == 2
    assert one["ready"].ready
    assert "reseen" in one["metrics"]
    for name in ("thumbnail", "upload_thumbnail"):
        assert Image.open(BytesIO(one[name])).format == "JPEG"
        assert max(Image.open(BytesIO(one[name])).size) == 128
    assert one["image"].key == QUERY
    assert one["search"].results[0].key == QUERY
    assert QUERY not in [found.key for found in one["similar"].results]
    assert len(one["similar"].results) == 4
    assert one["similar"].timings_ms, "what was explained"
    assert {found.metadata["kind"] for found in one["similar"].results} == {"facade"}
    assert one["compare"].homography is not None
    assert one["compare"].steps[0].points is not None


def calls(client: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    """Every method, called; what an asynchronous client returns is still to be awaited."""
    image = folder / "query.bmp"
    image_id = ok("search", image, "-g", folder / "gallery", "--top", 1)["queries"][0]["results"][0][
        "image_id"
    ]
    yield "generation", client.generation()
    yield "ready", client.ready()
    yield "live", client.live()
    yield "metrics", client.metrics()
    yield "image", client.image(image_id)
    yield "thumbnail", client.thumbnail(image_id, 128)
    yield "upload", client.upload(image)
    digest = sha256(image.read_bytes())
    yield "upload_thumbnail", client.upload_thumbnail(digest, 128)
    options = SearchOptions(top=4, where={"column": "kind", "op": "=", "value": "facade"}, explain=True)
    yield "similar", client.similar(image_id, options)
    yield "duplicates", client.duplicates(image_id, 0.1, 5)
    yield "search", client.search(SearchRequest(top=2), [image])
    yield "compare", client.compare(CompareRequest(upload=digest, image_id=image_id, rerank="geometry"))


def comparable(value: Any) -> Any:
    """An answer without what differs each time."""
    if not hasattr(value, "model_dump"):
        return value
    return value.model_dump(exclude={"request_id", "took_ms", "timings_ms"})


def test_a_search_by_vector_image_and_upload_is_one_of_one_thing(
    server: Served, folder: Path, key: str
) -> None:
    with Client(server.url, key) as client:
        dim = client.generation().dim
        kept = client.upload(folder / "query.bmp")
        vector = client.search(SearchRequest(vectors=[[1.0] + [0.0] * (dim - 1)], top=1), request_id="mine-1")
        assert (vector.queries[0].kind, vector.request_id) == ("vector", "mine-1")
        first = vector.results[0].image_id
        request = SearchRequest(uploads=[kept.digest], image_ids=[first], exclude_ids=[first], top=5)
        both = client.search(request)
        assert [query.kind for query in both.queries] == ["upload", "image"]
        assert first not in [found.image_id for found in both.results]
        assert len(both.results) == 5


def test_the_servers_refusals_are_the_clients_errors(server: Served, folder: Path, key: str) -> None:
    with Client(server.url, key) as client:
        with pytest.raises(ImageRefused) as refused:
            client.search(SearchRequest(), [folder / "junk.jpg"])
        assert refused.value.reason == "unknown_format"
        with pytest.raises(NotThere):
            client.image(1)
        with pytest.raises(RequestRefused, match="nothing to search with"):
            client.search(SearchRequest())
        with pytest.raises(RequestRefused) as wrong:
            client.search(SearchRequest(vectors=[[1.0]]))
        assert wrong.value.code == "invalid"
        with pytest.raises(RequestRefused, match="no_such_column"):
            client.similar(
                client.search(SearchRequest(top=1), [folder / "query.bmp"]).results[0].image_id,
                SearchOptions(where="no_such_column = 1"),
            )


def test_a_key_opens_what_its_scopes_say_until_it_is_revoked(server: Served, folder: Path) -> None:
    with Client(server.url) as nobody:
        with pytest.raises(NotAllowed) as refused:
            nobody.generation()
        assert refused.value.status == 401
        nobody.live()
        assert nobody.ready().ready
    with Client(server.url, (folder / "read.key").read_text()) as reader:
        assert reader.generation().number == 1
        with pytest.raises(NotAllowed) as refused:
            reader.search(SearchRequest(vectors=[[1.0]]))
        assert refused.value.status == 403
    with Client(server.url, (folder / "gone.key").read_text()) as gone:
        assert gone.generation().number == 1
        listed = ok("keys", "list", "--keys", folder / "keys.json")["keys"]
        (number,) = (key["id"] for key in listed if key["name"] == "gone")
        ok("keys", "revoke", number, "--keys", folder / "keys.json")
        deadline = time.monotonic() + 60
        while True:
            try:
                gone.generation()
            except NotAllowed:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_id_of_a_request_is_in_the_servers_log_and_no_key_is(
    server: Served, folder: Path, key: str
) -> None:
    with Client(server.url, key) as client:
        client.search(SearchRequest(top=1), [folder / "query.bmp"], request_id="to-be-found-7")
        with pytest.raises(NotAllowed):
            Client(server.url, "reseen_0123456789ab_planted").generation()
    log = server.log.read_text()
    assert "to-be-found-7" in log
    assert key not in log
    assert key.split("_", 2)[2] not in log
    assert "planted" not in log
