"""The OpenAPI document: bodies that are read by hand, every problem of every route, and who needs a key."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.api import CompareRequest, Problem, SearchRequest
from serve.http.doors import DOORS
from serve.http.problems import KINDS, MEDIA_TYPE

_REF = "#/components/schemas/"
_DESCRIPTION = """Finds every image of the same thing.

Errors are problem documents (RFC 9457); programs go by their `code`. An `X-Request-Id` that is sent comes
back and stands in the server's log. Where keys are required, each has scopes: `search`, `read`, `metrics`.
"""
_VECTOR = {"vectors": [[0.6, 0.0, -0.8]], "top": 5}
_BY_ID = {
    "image_ids": ["3941654959055551396"],
    "where": 'year >= 1990 and city = "Rome"',
    "allow_partial": False,
}


def _json_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    content = {
        "schema": {"$ref": _REF + model.__name__},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _form_body(properties: dict[str, Any], content_types: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["image"],
        "additionalProperties": False,
    }
    return {"schema": schema, "encoding": content_types}


_FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
SEARCH_BODY = _json_body(SearchRequest, {"by vector": _VECTOR, "like an image, filtered": _BY_ID})
COMPARE_BODY = _json_body(
    CompareRequest, {"two images of the gallery": {"query_id": "7", "image_id": "3941654959055551396"}}
)
SEARCH_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _form_body(
                {
                    "image": {
                        "type": "array",
                        "items": _FILE,
                        "minItems": 1,
                        "maxItems": 16,
                        "description": "image files",
                    },
                    "request": {"$ref": _REF + "SearchRequest"},
                },
                {"request": {"contentType": "application/json"}},
            )
        },
    }
}
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/tiff", "image/bmp")
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _form_body({"image": _FILE}, {}),
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
        },
    }
}

_ALWAYS = (
    "bad-request",
    "method-not-allowed",
    "forbidden",
    "too-large",
    "headers-too-large",
    "body-timeout",
    "overloaded",
    "internal",
)
_OTHER_EXAMPLES: dict[str, dict[str, Any]] = {
    "image-rejected": {"reason": "truncated", "reason_detail": "JPEG: the data ends early"},
    "overloaded": {"retry_after_s": 0.4},
    "partial-refused": {"coverage": 0.75, "missing_shards": ["8c0f…"], "skipped_steps": []},
}


def problems(
    answer: type[BaseModel] | None,
    *codes: str,
    status: int = 200,
    content: dict[str, Any] | None = None,
    description: str = "the answer",
) -> dict[int | str, dict[str, Any]]:
    """What a route answers: its model, or other content, and its problems besides those of every route."""
    found: dict[int | str, dict[str, Any]] = {status: {"description": description}}
    if answer is not None:
        found[status]["model"] = answer
    if content is not None:
        found[status]["content"] = content
    for code in dict.fromkeys((*codes, *_ALWAYS)):
        _add_problem(found, code)
    return found


def _add_problem(responses: dict[int | str, dict[str, Any]], code: str) -> None:
    kind = KINDS[code]
    entry = responses.setdefault(
        kind.status,
        {
            "description": "",
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}, "examples": {}}},
        },
    )
    entry["description"] = f"{entry['description']}; {kind.title}" if entry["description"] else kind.title
    entry["content"][MEDIA_TYPE]["examples"][code] = {"value": _example(code)}
    if kind.status in (429, 503):
        entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}


def _example(code: str) -> dict[str, Any]:
    return {
        "type": f"urn:reseen:problem:{code}",
        "code": code,
        "title": KINDS[code].title,
        "status": KINDS[code].status,
        "detail": "what happened, where, and what to do",
        "request_id": "8f14e45fceea167a",
        "extra": _OTHER_EXAMPLES.get(code, {}),
    }


def document(app: FastAPI, keys_required: bool) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` is to be: made when it is first asked for."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, keys_required)
        return app.openapi_schema

    return made


def _document(app: FastAPI, keys_required: bool) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    models: list[tuple[type[BaseModel], Any]] = [
        (SearchRequest, "validation"),
        (CompareRequest, "validation"),
        (Problem, "serialization"),
    ]
    _, ours = models_json_schema(models, ref_template=_REF + "{model}")
    schemas.update(ours["$defs"])
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    needed = {door.path: door.scope for door in DOORS}
    for path, operations in found["paths"].items():
        scope = needed[path]
        for operation in operations.values():
            if scope is not None:
                _say_scope(operation, str(scope), keys_required)
    return found


def _say_scope(operation: dict[str, Any], scope: str, keys_required: bool) -> None:
    operation["description"] = f"{operation.get('description', '')}\n\nScope of the key: `{scope}`.".strip()
    _add_problem(operation["responses"], "unauthorized")
    # OpenAPI's keys of responses are strings; ours above are numbers.
    operation["responses"] = {str(status): each for status, each in operation["responses"].items()}
    operation["security"] = [{"bearer": [scope]}, {"header": [scope]}] + ([] if keys_required else [{}])
