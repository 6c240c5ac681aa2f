"""Images over HTTP: uploads by body and by form, pictures of both, and the files of the page."""

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ingest.records import sha256
from ingest.store import Store
from serve.http.forms import read_form
from serve.http.problems import Refused
from serve.http.routes_server import PAGE
from serve.http.settings import HttpSettings
from serve.http.thumbnails import Thumbnails
from serve.http.uploads import Uploads
from tests.pipeline.small import job_on
from tests.serve.http.test_http_problems import checked
from tests.serve.http.test_thumbnails import SECRET_PLACE, picture, with_gps
from tests.serve.http_server import TellingService, calling, telling_app


@pytest.fixture
def thumbnails(tmp_path: Path) -> Iterator[Thumbnails]:
    with Thumbnails(job_on(str(tmp_path / "gallery")).gallery) as made:
        yield made


def shown(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    image.load()
    return image


def test_an_upload_is_named_by_its_bytes_however_it_is_sent(tmp_path: Path) -> None:
    data = with_gps(picture(120, 90))
    with calling(telling_app(TellingService(), tmp_path)) as call:
        as_body = call("POST", "/v1/uploads", content=data, headers={"Content-Type": "image/jpeg"})
        as_form = call("POST", "/v1/uploads", files={"image": ("a.jpg", data, "image/jpeg")})
    for response in (as_body, as_form):
        assert response.status_code == 201
        assert response.json() == {"digest": sha256(data), "bytes": len(data), "kept_s": 3_600}


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"%PDF-1.4", b"MZ" * 100])
def test_what_is_no_image_is_refused_at_once(data: bytes, tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        response = call("POST", "/v1/uploads", content=data, headers={"Content-Type": "image/png"})
    reason = "empty" if not data else "unknown_format"
    assert checked(response, "image-rejected").extra["reason"] == reason
    assert not list((tmp_path / "uploads").rglob("*")), "nothing of it is kept"


def test_an_upload_is_shown_small_upright_and_bare(tmp_path: Path, thumbnails: Thumbnails) -> None:
    data = with_gps(picture(300, 200))
    with calling(telling_app(TellingService(), tmp_path, thumbnails=thumbnails)) as call:
        digest = call("POST", "/v1/uploads", content=data, headers={"Content-Type": "image/jpeg"}).json()[
            "digest"
        ]
        path = f"/v1/uploads/{digest}/thumbnail"
        response = call("GET", path, params={"size": 100})
        assert shown(response).size == (85, 128) and SECRET_PLACE not in response.content
        assert response.headers["cache-control"].startswith("private")
        etag = response.headers["etag"]
        for given in (etag, f'"x", {etag}', f"W/{etag}", "*"):
            again = call("GET", path, params={"size": 128}, headers={"If-None-Match": given})
            assert again.status_code == 304 and not again.content and again.headers["etag"] == etag
        other = call("GET", path, params={"size": 129}, headers={"If-None-Match": etag})
        assert shown(other).size == (171, 256)


def test_an_upload_that_cannot_be_decoded_is_rejected_when_it_is_shown(
    tmp_path: Path, thumbnails: Thumbnails
) -> None:
    data = with_gps(picture(300, 200))[:-2_000]
    with calling(telling_app(TellingService(), tmp_path, thumbnails=thumbnails)) as call:
        sent = call("POST", "/v1/uploads", content=data, headers={"Content-Type": "image/jpeg"})
        response = call("GET", f"/v1/uploads/{sent.json()['digest']}/thumbnail")
    assert checked(response, "image-rejected").extra["reason"] == "truncated"


def test_a_search_takes_images_from_before_and_along_with_it(tmp_path: Path) -> None:
    service = TellingService()
    kept, one, two = (with_gps(picture(60, 40, seed)) for seed in range(3))
    with calling(telling_app(service, tmp_path)) as call:
        digest = call("POST", "/v1/uploads", content=kept, headers={"Content-Type": "image/jpeg"}).json()[
            "digest"
        ]
        asked = json.dumps({"uploads": [digest], "top": 2})
        files = [
            ("image", ("ü<b>.jpg", one, "image/jpeg")),
            ("request", (None, asked, "application/json")),
            ("image", ("", two, "image/jpeg")),
        ]
        response = call("POST", "/v1/search/upload", files=files)
        alone = call(
            "POST",
            "/v1/search/upload",
            files={"image": ("a.jpg", one)},
            data={"request": '{"box": [1, 2, 30, 40]}'},
        )
    assert response.status_code == alone.status_code == 200
    request, images, _ = service.asked[0]
    assert [image.data for image in images] == [kept, one, two] and request.top == 2
    assert [image.name for image in images][:2] == [digest, "ü<b>.jpg"]
    ((_, (image,), _),) = service.asked[1:]
    assert image.box == (1, 2, 30, 40) and image.data == one


def test_forms_that_are_not_what_is_wanted_are_refused(tmp_path: Path) -> None:
    image = ("a.gif", b"GIF89a.", "image/gif")
    forms: list[tuple[list, str]] = [
        ([("request", (None, "{}"))], "invalid"),
        ([("image", image), ("more", image)], "invalid"),
        ([("image", image)] * 17, "invalid"),
        ([("image", image)] * 18, "invalid"),
        ([("image", image), ("request", (None, "{}")), ("request", (None, "{}"))], "invalid"),
        ([("image", image), ("request", (None, "{"))], "bad-request"),
        ([("image", image), ("request", (None, '{"top": 0}'))], "invalid"),
    ]
    service = TellingService()
    with calling(telling_app(service, tmp_path)) as call:
        for files, code in forms:
            checked(call("POST", "/v1/search/upload", files=files), code)
        assert call("POST", "/v1/search/upload", files=[("image", image)] * 16).status_code == 200
        checked(call("POST", "/v1/uploads", files=[("image", image)] * 2), "invalid")
        checked(call("POST", "/v1/uploads", files=[("file", image)]), "invalid")
    assert len(service.asked) == 1


PART = b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"nothing of the kind"),
        ("multipart/form-data; boundary=x", b"--y\r\n" + PART + b"data\r\n--y--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + PART + b"data"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + PART + b"data\r\n--x"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: image/gif\r\n\r\ndata\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: attachment\r\n\r\nd\r\n--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name*=a\r\n\r\nd\r\n--x--\r\n",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 1_000 + PART + b"d\r\n--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nA: " + b"b" * 100_000 + b"\r\n" + PART + b"d\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Transfer-Encoding: base64\r\n" + PART + b"d\r\n--x--\r\n",
        ),
        ('multipart/form-data; boundary="\u00ff"', b"--\xff\r\n\r\n"),
    ],
)
def test_a_broken_form_is_the_callers_mistake(kind: str, body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_form(kind, body, ("image",), 3)
    assert refused.value.code == "bad-request"


def test_parts_keep_every_byte() -> None:
    data = bytes(range(256)) * 50 + b"\r\n--x\r\n--xx\r\n-" + b"\r\n" * 5
    body = b"--xyz\r\n" + PART + data + b"\r\n--xyz--\r\n"
    (part,) = read_form("multipart/form-data; boundary=xyz", body, ("image",), 1)
    assert part.data == data and part.filename == "a"


def test_the_page_is_served_with_its_types_and_versions(tmp_path: Path) -> None:
    with calling(telling_app(TellingService(), tmp_path)) as call:
        index = call("GET", "/")
        assert index.content == (PAGE / "index.html").read_bytes()
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        for file in PAGE.iterdir():
            response = call("GET", f"/static/{file.name}")
            assert response.content == file.read_bytes(), file
            assert response.headers["content-type"].startswith(
                {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}[
                    file.suffix
                ]
            )
            given = {"If-None-Match": response.headers["etag"]}
            assert call("GET", f"/static/{file.name}", headers=given).status_code == 304
        several = [("If-None-Match", '"other"'), ("If-None-Match", f"W/{index.headers['etag']}")]
        assert call("GET", "/", headers=several).status_code == 304
        head = call("HEAD", "/")
        assert head.status_code == 200 and head.headers["etag"] == index.headers["etag"] and not head.content


class Stuck:
    """A store of uploads, and pictures, that do not come."""

    max_age_s, on = 3_600.0, True

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def wait(self, *_: object) -> bytes:
        self.let_go.wait()
        return b""

    put = read = of_image = of_upload = wait


def test_what_is_stored_is_not_waited_for_longer_than_a_request_lasts(tmp_path: Path) -> None:
    service, stuck = TellingService(), Stuck()
    digest = "0" * 64
    settings = HttpSettings(rate_per_s=None, store_timeout_s=0.2)
    app = telling_app(service, tmp_path, uploads=stuck, thumbnails=stuck, settings=settings)
    with calling(app) as call:
        try:
            for timeout_ms in (50, 60_000, None):
                wanted = {"uploads": [digest], "timeout_ms": timeout_ms}
                checked(call("POST", "/v1/search", json=wanted), "deadline-exceeded")
            kinds = {"Content-Type": "image/gif"}
            checked(call("POST", "/v1/uploads", content=b"GIF89a.", headers=kinds), "deadline-exceeded")
            for path in (f"/v1/uploads/{digest}/thumbnail", "/v1/images/1/thumbnail"):
                checked(call("GET", path), "deadline-exceeded")
        finally:
            stuck.let_go.set()
    assert service.asked == []


def test_reading_uploads_takes_of_the_time_that_a_search_has(tmp_path: Path) -> None:
    class Slow(Uploads):
        def read(self, digest: str) -> bytes:
            time.sleep(0.1)
            return super().read(digest)

    service, uploads = TellingService(), Slow(Store(str(tmp_path / "uploads")))
    digest = uploads.put(b"GIF89a.")
    with calling(telling_app(service, tmp_path, uploads=uploads)) as call:
        for timeout_ms in (60_000, None):
            wanted = {"uploads": [digest], "timeout_ms": timeout_ms}
            assert call("POST", "/v1/search", json=wanted).status_code == 200
    (timed, _, _), (untimed, _, _) = service.asked
    assert timed.timeout_ms is not None and timed.timeout_ms <= 59_900
    assert untimed.timeout_ms is None


def test_no_path_leads_out_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "inner").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "inner" / "a.js").write_text("1")
    (folder / "notes.secret").write_text("secret")
    (tmp_path / "outside.js").write_text("secret")
    names = (
        "../outside.js", "..%2Foutside.js", "%2e%2e%2foutside.js", "..%5Coutside.js", "inner/a.js", "inner",
        "notes.secret", "", "%2e%2e", "%00", "index.html%00.js", "/etc/passwd", "index.html/",
    )  # fmt: skip
    with calling(telling_app(TellingService(), tmp_path, page=folder)) as call:
        assert call("GET", "/static/index.html").status_code == 200
        for name in names:
            response = call("GET", f"http://127.0.0.1/static/{name}")
            assert response.status_code == 404 and "secret" not in response.text, name
    with calling(telling_app(TellingService(), tmp_path, page=tmp_path / "nothing")) as call:
        checked(call("GET", "/"), "not-found")
