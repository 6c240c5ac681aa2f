"""Images of the gallery: their rows and their pictures."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from ingest.errors import NotFound
from serve.api import FoundImage
from serve.http.messages import json_response
from serve.http.openapi import problems
from serve.http.parts import Parts
from serve.http.pictures import PICTURE, picture_response
from serve.http.queries import IdInPath, SizeQuery, each_once, number_of
from serve.http.thumbnails import NoThumbnail, Thumbnail
from serve.logs import note_generation

_WORK = ("not-ready", "store-unavailable", "deadline-exceeded")


def image_routes(parts: Parts) -> APIRouter:
    """The routes that show images of the gallery."""
    router = APIRouter(tags=["images"], dependencies=[Depends(each_once)])

    @router.get(
        "/v1/images/{image_id}",
        summary="An image's row",
        response_model=None,
        responses=problems(FoundImage, "not-found", "invalid", *_WORK),
    )
    async def image(image_id: IdInPath) -> Response:
        """Where the image lies, and its metadata. Images that were taken down are not found."""
        found = await parts.service.image(number_of(image_id))
        note_generation(parts.service.generation().number)
        return json_response(found)

    @router.get(
        "/v1/images/{image_id}/thumbnail",
        summary="A small picture of an image",
        response_class=Response,
        response_model=None,
        responses=problems(
            None, "not-found", "invalid", *_WORK, content=PICTURE, description="a JPEG without metadata"
        ),
    )
    async def thumbnail(
        request: Request, image_id: IdInPath, query: Annotated[SizeQuery, Query()]
    ) -> Response:
        """Made of the file where it was ingested from, if it is still the one that was described.

        Else 404, and `extra.reason` says why: `missing`, `changed`, `no_images`, or why it cannot be decoded.
        """
        begun = time.perf_counter()
        async with parts.in_time():
            picture = await _picture(parts, number_of(image_id), query.size)
        parts.metrics.observe("thumbnail", time.perf_counter() - begun)
        return picture_response(request, picture)

    return router


async def _picture(parts: Parts, image_id: int, size: int) -> Thumbnail:
    """The picture of an image; again, once, where the generation changed between its row and its file."""
    for last in (False, True):
        row = await parts.service.row(image_id)
        number = parts.service.generation().number
        note_generation(number)
        try:
            work = parts.thumbnails.of_image
            return await parts.thumbnail_threads.run(work, number, row.place, row.key, size)
        except NoThumbnail:
            raise
        except NotFound:
            if last:
                raise
    raise AssertionError("unreachable")
