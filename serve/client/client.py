"""A client of a Reseen server, synchronous and asynchronous: the HTTP API as typed methods.

    with Client("http://127.0.0.1:8000", key=key) as client:
        answer = client.search(SearchRequest(top=5), [Path("query.jpg")])

Both classes only move bytes: what is sent, what answers mean and when to ask again are the pure functions of
`calls`, `answers` and `retries`, beside this file. Errors: `serve.client.errors`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar, Unpack, cast

import httpx

from serve.api import (
    CompareRequest,
    CompareResponse,
    DuplicatesResponse,
    FoundImage,
    GenerationInfo,
    Readiness,
    SearchOptions,
    SearchRequest,
    SearchResponse,
    UploadInfo,
)
from serve.client import calls
from serve.client.answers import Answer
from serve.client.calls import Call, Image, ImageNumber
from serve.client.retries import Broken, Send
from serve.client.settings import ClientOptions, ClientSettings, Paced, answer_of, broken_by

Value = TypeVar("Value")
_DEFAULT = SearchOptions()


class Client:
    """A client that waits for each answer. A context manager; may be shared by threads.

    Every method raises the errors of `serve.client.errors`. `timeout_s` is the deadline of this call instead
    of the client's; `request_id` is what the server's log will call it, made up by default.

    Args:
        url: of the server. key: the API key; a server bound to loopback may need none.
        options: `serve.client.settings.ClientOptions`.

    Raises:
        BadInput: `url`, `key` or an option is no such thing.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        **options: Unpack[ClientOptions],
    ) -> None:
        self._settings = ClientSettings(url, key, options)
        self._sleep = sleep
        self._http = self._settings.opened(httpx.Client)

    def search(
        self,
        request: SearchRequest,
        images: Sequence[Image] = (),
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> SearchResponse:
        """Searches once, with all that `request` names and with image files; they are of one thing.

        Raises:
            ImageRefused: an image cannot be used. PartialAnswer: and the request does not allow it.
        """
        return self._run(calls.search(request, images), timeout_s, request_id)

    def upload(self, image: Image) -> UploadInfo:
        """Leaves an image with the server; its digest names it in searches for a while."""
        return self._run(calls.upload(image))

    def upload_thumbnail(self, digest: str, size: int | None = None) -> bytes:
        """An uploaded image, small, as JPEG; `size` is its longest side in pixels."""
        return self._run(calls.upload_thumbnail(digest, size))

    def image(self, image_id: ImageNumber) -> FoundImage:
        """The row of an image of the gallery."""
        return self._run(calls.image(image_id))

    def thumbnail(self, image_id: ImageNumber, size: int | None = None) -> bytes:
        """An image of the gallery, small, as JPEG; `size` is its longest side in pixels."""
        return self._run(calls.thumbnail(image_id, size))

    def similar(
        self,
        image_id: ImageNumber,
        options: SearchOptions = _DEFAULT,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> SearchResponse:
        """Searches with an image of the gallery, which is not among the results."""
        return self._run(calls.similar(image_id, options), timeout_s, request_id)

    def duplicates(
        self, image_id: ImageNumber, threshold: float | None = None, top: int | None = None
    ) -> DuplicatesResponse:
        """The images that repeat one: their stored vectors are at least so similar."""
        return self._run(calls.duplicates(image_id, threshold, top))

    def compare(
        self, request: CompareRequest, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> CompareResponse:
        """The closest look at one pair of images."""
        return self._run(calls.compare(request), timeout_s, request_id)

    def generation(self) -> GenerationInfo:
        """What is served now."""
        return self._run(calls.generation())

    def live(self) -> None:
        """Returns if the server's process answers at all."""
        self._run(calls.live())

    def ready(self) -> Readiness:
        """Whether every shard of one generation answers; that it does not is no error."""
        return self._run(calls.ready())

    def metrics(self) -> str:
        """The metrics, in the text format of Prometheus."""
        return self._run(calls.metrics())

    def _run(self, call: Call[Value], timeout_s: float | None = None, request_id: str | None = None) -> Value:
        steps = self._settings.talk(call, timeout_s, request_id)
        outcome: Answer | Broken | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: Value = done.value
                return value
            if isinstance(step, Send):
                outcome = self._sent(step)
            else:
                outcome = None
                self._sleep(step.seconds)

    def _sent(self, step: Send) -> Answer | Broken:
        clock = self._settings.surroundings.clock
        try:
            request = self._http.build_request(**self._settings.arguments(step))
            request.stream = Paced(cast(httpx.SyncByteStream, request.stream), clock, step.deadline)
            response = self._http.send(request, stream=True)
            try:
                body = bytearray()
                for chunk in response.iter_bytes():  # as in `Paced`
                    body += chunk
                    if clock() > step.deadline:
                        return Broken("", late=True)
                return answer_of(response, bytes(body), step)
            finally:
                response.close()
        except httpx.HTTPError as error:
            return broken_by(error)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. Cancelling one closes its connection."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Unpack[ClientOptions],
    ) -> None:
        self._settings = ClientSettings(url, key, options)
        self._sleep = sleep
        self._http = self._settings.opened(httpx.AsyncClient)

    async def search(
        self,
        request: SearchRequest,
        images: Sequence[Image] = (),
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> SearchResponse:
        call = await asyncio.to_thread(calls.search, request, images)  # it reads files
        return await self._run(call, timeout_s, request_id)

    async def upload(self, image: Image) -> UploadInfo:
        return await self._run(await asyncio.to_thread(calls.upload, image))

    async def upload_thumbnail(self, digest: str, size: int | None = None) -> bytes:
        return await self._run(calls.upload_thumbnail(digest, size))

    async def image(self, image_id: ImageNumber) -> FoundImage:
        return await self._run(calls.image(image_id))

    async def thumbnail(self, image_id: ImageNumber, size: int | None = None) -> bytes:
        return await self._run(calls.thumbnail(image_id, size))

    async def similar(
        self,
        image_id: ImageNumber,
        options: SearchOptions = _DEFAULT,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> SearchResponse:
        return await self._run(calls.similar(image_id, options), timeout_s, request_id)

    async def duplicates(
        self, image_id: ImageNumber, threshold: float | None = None, top: int | None = None
    ) -> DuplicatesResponse:
        return await self._run(calls.duplicates(image_id, threshold, top))

    async def compare(
        self, request: CompareRequest, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> CompareResponse:
        return await self._run(calls.compare(request), timeout_s, request_id)

    async def generation(self) -> GenerationInfo:
        return await self._run(calls.generation())

    async def live(self) -> None:
        await self._run(calls.live())

    async def ready(self) -> Readiness:
        return await self._run(calls.ready())

    async def metrics(self) -> str:
        return await self._run(calls.metrics())

    async def _run(
        self, call: Call[Value], timeout_s: float | None = None, request_id: str | None = None
    ) -> Value:
        steps = self._settings.talk(call, timeout_s, request_id)
        outcome: Answer | Broken | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: Value = done.value
                return value
            if isinstance(step, Send):
                outcome = await self._sent(step)
            else:
                outcome = None
                await self._sleep(step.seconds)

    async def _sent(self, step: Send) -> Answer | Broken:
        try:
            async with asyncio.timeout(step.left_s):
                request = self._http.build_request(**self._settings.arguments(step))
                response = await self._http.send(request)
                return answer_of(response, response.content, step)
        except TimeoutError:
            return Broken("", late=True)
        except httpx.HTTPError as error:
            return broken_by(error)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
