"""Searches: by JSON, by a form with images, and what is similar to an image of the gallery; comparisons."""

import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from serve.api import Box, CompareRequest, CompareResponse, DuplicatesResponse, SearchRequest, SearchResponse
from serve.http.forms import read_form
from serve.http.messages import json_response, media_type, need_json, read_json
from serve.http.openapi import COMPARE_BODY, SEARCH_BODY, SEARCH_FORM, problems
from serve.http.parts import Parts
from serve.http.problems import Refused, too_large
from serve.http.queries import DuplicatesQuery, IdInPath, SimilarQuery, each_once, number_of
from serve.logs import note_generation, request_id
from serve.query import ImageQuery

_WITH_BODY = ("bad-request", "not-found", "unsupported-media-type", "invalid", "image-rejected")
_WORK = ("overloaded", "not-ready", "partial-refused", "store-unavailable", "deadline-exceeded", "internal")


def search_routes(parts: Parts) -> APIRouter:
    """The routes that search."""
    router = APIRouter(tags=["search"], dependencies=[Depends(each_once)])

    @router.post(
        "/v1/search",
        summary="Search by uploads, images of the gallery or vectors",
        response_model=None,
        responses=problems(SearchResponse, *_WITH_BODY, *_WORK),
        openapi_extra=SEARCH_BODY,
    )
    async def search(request: Request) -> Response:
        """Finds the images of the same thing. `uploads` are digests of images posted to /v1/uploads."""
        need_json(request)
        wanted = read_json(SearchRequest, await request.body())
        return await _search(parts, wanted, ())

    @router.post(
        "/v1/search/upload",
        summary="Search by images sent along",
        response_model=None,
        responses=problems(SearchResponse, *_WITH_BODY, *_WORK),
        openapi_extra=SEARCH_FORM,
    )
    async def search_upload(request: Request) -> Response:
        """As /v1/search, with one or more parts `image`, and the rest as JSON in a part `request`."""
        if media_type(request) != "multipart/form-data":
            raise Refused("unsupported-media-type", "send a form, as Content-Type: multipart/form-data")
        wanted, images = _read_search_form(parts, request.headers["content-type"], await request.body())
        return await _search(parts, wanted, images)

    @router.get(
        "/v1/images/{image_id}/similar",
        summary="Images similar to one of the gallery",
        response_model=None,
        responses=problems(SearchResponse, "not-found", "invalid", *_WORK),
    )
    async def similar(image_id: IdInPath, options: Annotated[SimilarQuery, Query()]) -> Response:
        """The same as a search by this image alone, itself left out."""
        wanted = SearchRequest(**options.model_dump(), image_ids=[image_id], exclude_ids=[image_id])
        return await _search(parts, wanted, ())

    @router.get(
        "/v1/images/{image_id}/duplicates",
        summary="Near-duplicates of an image of the gallery",
        response_model=None,
        responses=problems(DuplicatesResponse, "not-found", "invalid", *_WORK),
    )
    async def duplicates(image_id: IdInPath, options: Annotated[DuplicatesQuery, Query()]) -> Response:
        """The images whose stored vectors are so close to this one's that they repeat it."""
        answer = await parts.service.duplicates(number_of(image_id), options.threshold, options.top)
        note_generation(answer.generation)
        return json_response(answer)

    @router.post(
        "/v1/compare",
        summary="The closest look at one pair",
        response_model=None,
        responses=problems(CompareResponse, *_WITH_BODY, *_WORK),
        openapi_extra=COMPARE_BODY,
    )
    async def compare(request: Request) -> Response:
        """What each step finds between a query and an image of the gallery: points, homography, heat."""
        need_json(request)
        wanted = read_json(CompareRequest, await request.body())
        for image_id in (wanted.image_id, wanted.query_id):
            if image_id is not None:
                number_of(image_id)
        uploads = [] if wanted.upload is None else await _uploaded(parts, [wanted.upload], wanted.box)
        image = uploads[0] if uploads else None
        answer = await parts.service.compare(wanted, image, request_id())
        note_generation(answer.generation)
        return json_response(answer)

    return router


async def _search(parts: Parts, wanted: SearchRequest, sent: Sequence[ImageQuery]) -> Response:
    """Reads the uploads that a search names, and searches."""
    for image_id in (*wanted.image_ids, *wanted.unlike_ids, *wanted.exclude_ids):
        number_of(image_id)
    images = len(wanted.uploads) + len(sent)
    if images > parts.settings.max_images:
        raise Refused("invalid", f"at most {parts.settings.max_images} images in one search")
    named = []
    if wanted.uploads:
        begun = time.perf_counter()
        named = await _uploaded(parts, wanted.uploads, wanted.box, wanted.timeout_ms)
        if wanted.timeout_ms is not None:
            left = wanted.timeout_ms - int(1000 * (time.perf_counter() - begun))
            wanted = wanted.model_copy(update={"timeout_ms": max(1, left)})
    answer = await parts.service.search(wanted, [*named, *sent], request_id())
    note_generation(answer.generation)
    return json_response(answer)


async def _uploaded(
    parts: Parts, digests: Sequence[str], box: Box | None, timeout_ms: int | None = None
) -> list[ImageQuery]:
    """The images that digests name, together no more than a form may bring."""
    begun, total = time.perf_counter(), 0
    found = []
    async with parts.in_time(timeout_ms and timeout_ms / 1000):
        for digest in digests:
            data = await parts.upload_threads.run(parts.uploads.read, digest)
            total += len(data)
            if total > parts.settings.max_multipart_bytes:
                raise too_large("the uploads together are", parts.settings.max_multipart_bytes)
            found.append(ImageQuery(data, box, digest))
    parts.metrics.observe("read", time.perf_counter() - begun)
    return found


def _read_search_form(parts: Parts, content_type: str, body: bytes) -> tuple[SearchRequest, list[ImageQuery]]:
    form = read_form(content_type, body, ("image", "request"), parts.settings.max_images + 1)
    asked = [part.data for part in form if part.name == "request"]
    if len(asked) > 1:
        raise Refused("invalid", "the form may have one part `request`")
    if asked and len(asked[0]) > parts.settings.max_json_bytes:
        raise too_large("the part `request` is", parts.settings.max_json_bytes)
    wanted = read_json(SearchRequest, asked[0]) if asked else SearchRequest()
    images = [part for part in form if part.name == "image"]
    if not images:
        raise Refused("invalid", "the form needs a part `image`")
    for part in images:
        if len(part.data) > parts.settings.max_image_bytes:
            raise too_large("an image is", parts.settings.max_image_bytes)
    return wanted, [
        ImageQuery(part.data, wanted.box, part.filename or f"image {number}")
        for number, part in enumerate(images, 1)
    ]
