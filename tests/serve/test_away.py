"""What is away is told as such, by its name, and never taken for the storage."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.errors import Unavailable
from ingest.gallery import Gallery
from ingest.store import Store
from serve.cluster.backend import RayEncoder
from serve.http.thumbnails import Thumbnails
from serve.query import ImageQuery
from serve.refusals import Away
from serve.replicas import encoder_server
from serve.replicas.encoder_server import EncoderServer

GALLERY = Gallery(Store("memory://nothing"), "none")


def no_process(*_: Any, **__: Any) -> None:
    raise OSError(11, "planted: Resource temporarily unavailable")


def test_an_encoder_that_cannot_decode_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoder(_: ImageQuery) -> None:
        raise Unavailable("planted: the decoding process does not start")

    generation = SimpleNamespace(
        recipe=SimpleNamespace(features=None, encoder=None),
        models=SimpleNamespace(features=None, encoder=None, projection=None),
    )
    server = EncoderServer(GALLERY)
    monkeypatch.setattr(server._generations, "get", lambda _: generation)
    opened = SimpleNamespace(encode_timed=no_decoder, close=lambda: None)
    monkeypatch.setattr(encoder_server, "open_query_encoder", lambda *_: opened)
    with pytest.raises(Away, match=r"^the encoder") as raised:
        server.encode(1, ImageQuery(b"GIF89a."), ())
    assert "planted" not in str(raised.value)


def test_pictures_that_cannot_be_decoded_now_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.decoder.subprocess.Popen", no_process)
    with Thumbnails(GALLERY) as thumbnails, pytest.raises(Away, match=r"^thumbnails") as raised:
        thumbnails.of_upload("0" * 64, b"GIF89a.", 64)
    assert "planted" not in str(raised.value)


class Handle:
    """A handle of a deployment whose calls end as told."""

    def __init__(self, error: BaseException) -> None:
        async def ended() -> None:
            raise error

        self.encode = self
        self._ended = ended

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, *_: Any) -> Any:
        return asyncio.ensure_future(self._ended())


@pytest.mark.parametrize("error", [RuntimeError("planted: 10.0.0.7"), asyncio.CancelledError()])
def test_a_deployment_that_does_not_answer_is_away(error: BaseException) -> None:
    async def ask() -> None:
        await RayEncoder("the encoder", Handle(error)).encode(1, ImageQuery(b""), ())

    with pytest.raises(Away, match=r"^the encoder") as raised:
        asyncio.run(ask())
    assert "planted" not in str(raised.value)
