"""What a server says of itself: alive, ready, generation, metrics; and the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from ingest.errors import NotFound
from ingest.records import sha256
from serve.api import GenerationInfo, Readiness
from serve.http.messages import json_response
from serve.http.openapi import problems
from serve.http.parts import Parts
from serve.http.pictures import has_etag
from serve.logs import note_generation

PAGE = Path(__file__).parents[1] / "page"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}


class _File(NamedTuple):
    data: bytes
    kind: str
    etag: str


def server_routes(parts: Parts) -> APIRouter:
    """The routes about the server."""
    router = APIRouter(tags=["server"])

    @router.get(
        "/livez",
        summary="Whether the server lives",
        response_model=None,
        responses=problems(None, content={"text/plain": {"schema": {"type": "string"}}}),
    )
    async def livez() -> Response:
        """200 as long as the event loop runs."""
        return Response("alive\n", media_type="text/plain")

    @router.get(
        "/readyz",
        summary="Whether searches will be answered whole",
        response_model=None,
        responses={
            **problems(Readiness),
            503: {"model": Readiness, "description": "not now; what is missing is named"},
        },
    )
    async def readyz() -> Response:
        """200 while every shard of one generation is loaded, verified, and answers a real query."""
        readiness = await parts.service.readiness()
        return json_response(readiness, 200 if readiness.ready else 503)

    @router.get(
        "/v1/generation",
        summary="What is served now",
        response_model=None,
        responses=problems(GenerationInfo, "not-ready"),
    )
    async def generation() -> Response:
        """The published index that answers, its columns and steps, and newer ones that were refused."""
        info = parts.service.generation()
        note_generation(info.number)
        return json_response(info)

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_model=None,
        responses=problems(
            None,
            "not-found",
            content={"text/plain": {"schema": {"type": "string"}}},
            description="text format",
        ),
    )
    async def metrics() -> Response:
        """Counters, gauges and histograms of this process."""
        text = parts.metrics.text()
        if text is None:
            raise NotFound("these metrics are collected elsewhere (under Ray: at each node's metrics port)")
        return Response(text, headers={"Content-Type": _TEXT})

    return router


def page_routes(folder: Path = PAGE) -> APIRouter:
    """The page: the files of one folder as they are now, in memory, so that no path can lead out of it."""
    files = _read_page(folder)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return _file_response(request, files, "index.html")

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        return _file_response(request, files, name)

    return router


def _read_page(folder: Path) -> dict[str, _File]:
    found = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        kind = _TYPES.get(file.suffix)
        if kind is not None and file.is_file():
            data = file.read_bytes()
            found[file.name] = _File(data, kind, f'"{sha256(data)[:32]}"')
    return found


def _file_response(request: Request, files: Mapping[str, _File], name: str) -> Response:
    file = files.get(name)
    if file is None:
        raise NotFound("there is no such file")
    headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Type": file.kind}
    if has_etag(request, file.etag):
        return Response(None, 304, headers)
    return Response(file.data, 200, headers)
