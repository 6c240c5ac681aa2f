"""Uploads: images that searches can name."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from ingest.decode import DecodeSettings, refuse_unread
from serve.api import UploadInfo
from serve.http.forms import read_form
from serve.http.messages import json_response, media_type
from serve.http.openapi import IMAGE_TYPES, UPLOAD_BODY, problems
from serve.http.parts import Parts
from serve.http.pictures import PICTURE, picture_response
from serve.http.problems import Refused, too_large
from serve.http.queries import DigestInPath, SizeQuery, each_once
from serve.http.uploads import UploadsOff
from serve.refusals import ImageRejected

_STORE = ("store-unavailable", "deadline-exceeded")
_OTHER_TYPES = ("image/jpg", "image/x-ms-bmp", "application/octet-stream")


def upload_routes(parts: Parts) -> APIRouter:
    """The routes of uploads."""
    router = APIRouter(tags=["uploads"], dependencies=[Depends(each_once)])

    @router.post(
        "/v1/uploads",
        status_code=201,
        summary="Keep an image for a while",
        response_model=None,
        responses=problems(
            UploadInfo,
            "bad-request",
            "uploads-off",
            "unsupported-media-type",
            "invalid",
            "image-rejected",
            *_STORE,
            status=201,
            description="it is kept; the same bytes again have the same digest",
        ),
        openapi_extra=UPLOAD_BODY,
    )
    async def upload(request: Request) -> Response:
        """The image alone as the body, or in a part `image` of a form. Its digest names it in searches."""
        if not parts.uploads.on:
            raise UploadsOff
        data = _image_of(request, await request.body())
        if len(data) > parts.settings.max_image_bytes:
            raise too_large("the image is", parts.settings.max_image_bytes)
        rejected = refuse_unread(data, DecodeSettings(max_bytes=parts.settings.max_image_bytes))
        if rejected is not None:
            raise ImageRejected("the upload", rejected)
        async with parts.in_time():
            digest = await parts.upload_threads.run(parts.uploads.put, data)
        info = UploadInfo(digest=digest, bytes=len(data), kept_s=int(parts.uploads.max_age_s))
        return json_response(info, 201)

    @router.get(
        "/v1/uploads/{digest}/thumbnail",
        summary="A small picture of an upload",
        response_class=Response,
        response_model=None,
        responses=problems(
            None,
            "not-found",
            "uploads-off",
            "invalid",
            "image-rejected",
            "not-ready",
            *_STORE,
            content=PICTURE,
            description="a JPEG without metadata",
        ),
    )
    async def upload_thumbnail(
        request: Request, digest: DigestInPath, query: Annotated[SizeQuery, Query()]
    ) -> Response:
        """Decoded and written anew: nothing of the file but its pixels."""
        async with parts.in_time():
            data = await parts.upload_threads.run(parts.uploads.read, digest)
            picture = await parts.thumbnail_threads.run(parts.thumbnails.of_upload, digest, data, query.size)
        return picture_response(request, picture)

    return router


def _image_of(request: Request, body: bytes) -> bytes:
    kind = media_type(request)
    if kind in IMAGE_TYPES or kind in _OTHER_TYPES:
        return body
    if kind != "multipart/form-data":
        raise Refused(
            "unsupported-media-type",
            f"send an image ({', '.join(IMAGE_TYPES)}) or a form (multipart/form-data) with a part `image`",
        )
    form = read_form(request.headers["content-type"], body, ("image",), 1)
    if not form:
        raise Refused("invalid", "the form needs a part `image`")
    return form[0].data
