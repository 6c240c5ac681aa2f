"""The whole API against its own description: whatever is sent, no 5xx, and answers as documented."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from schemathesis.transport.serialization import Binary

from ingest.records import image_identity
from serve.http.key_file import add_key
from serve.http.keys import Keys
from serve.http.uploads import Uploads
from tests.serve.embedded_server import embedded
from tests.serve.http_server import TellingService, telling_app
from tests.serve.served import Served, served_gallery

load_all_checks()


@schemathesis.serializer("image/bmp", "image/tiff")
def as_it_is(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_gallery(str(tmp_path_factory.mktemp("schemathesis") / "gallery"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(keys: Path) -> str:
    _, text = add_key(keys, "schemathesis")
    return text


@pytest.fixture(scope="module")
def url(served: Served, keys: Path, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with embedded(served.job.gallery, folder, keys=keys) as found:
        yield found


def images() -> st.SearchStrategy[Binary]:
    """Files of bytes that are an image, or the beginning of one, or anything."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((120, 120)).save(file, "PNG")
    whole = file.getvalue()
    return st.one_of(st.just(whole), st.integers(0, 200).map(lambda end: whole[:end]), st.binary()).map(
        Binary
    )


schemathesis.openapi.format("binary", images())


def described() -> Any:
    """The API as any application describes it, with keys; where it is served is told later."""
    app = telling_app(TellingService(), Path(), keys=Keys.__new__(Keys), uploads=Uploads(None))
    config = schemathesis.Config.from_dict(
        {
            "generation": {
                "mode": "all",
                "deterministic": True,
                "no-shrink": True,
                "with-security-parameters": False,
            },
            "phases": {"coverage": {"unexpected-methods": ["DELETE", "TRACE"]}},
            "checks": {
                # 422 for what no schema can say (nothing to search with, no such column); 504 for a timeout
                # of a millisecond.
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"enabled": False},
            },
        }
    )
    return schemathesis.openapi.from_dict(app.openapi(), config=config)


schema = described()


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_every_operation_answers_as_it_is_documented(
    case: schemathesis.Case, served: Served, key: str, url: str
) -> None:
    if case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE:
        _make_real(case, served)
    # A form has no lists: a list is sent as parts of one name, of which none or one is as it should be.
    listed = isinstance(case.body, dict) and isinstance(case.body.get("request"), list)
    unseen = [negative_data_rejection] if listed else []
    response = case.call_and_validate(base_url=url, headers={"X-API-Key": key}, excluded_checks=unseen)
    late = response.status_code == 504 and response.json()["code"] == "deadline-exceeded"
    hurried = "timeout_ms" in str(case.body) or "timeout_ms" in (case.query or {})
    partial = response.status_code == 503 and response.json().get("code") == "partial-refused"
    assert response.status_code < 500 or (hurried and (late or partial)), response.text


def _make_real(case: schemathesis.Case, served: Served) -> None:
    """Puts in things that are there, half of the time, so that answers are seen and not only refusals."""
    drawn = random.Random(repr((case.path_parameters, case.query, case.body)))
    ids = [str(image_identity("synthetic", key)[0]) for key in served.files]
    if "image_id" in (case.path_parameters or {}) and drawn.random() < 0.5:
        case.path_parameters["image_id"] = drawn.choice(ids)
    if case.media_type != "application/json" or not isinstance(case.body, dict) or drawn.random() < 0.3:
        return
    body = dict(case.body)  # cases share their parts
    for name in ("image_ids", "unlike_ids", "exclude_ids"):
        if name in body:
            body[name] = drawn.sample(ids, drawn.randint(0, 3))
    if "vectors" in body:
        body["vectors"] = [[drawn.gauss(0, 1) for _ in range(16)] for _ in range(drawn.randint(0, 2))]
    for name in ("image_id", "query_id"):
        if name in body:
            body[name] = drawn.choice(ids)
    if "where" in body:
        body["where"] = drawn.choice([None, 'source = "synthetic"', {"column": "key", "op": "exists"}])
    case.body = body


def test_the_description_is_complete(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"] and operation["description"] and operation["tags"], where
            for status, answer in operation["responses"].items():
                assert answer["description"], where
                if int(status) >= 400 and path != "/readyz":
                    content = answer["content"]["application/problem+json"]
                    assert content["schema"]["$ref"].endswith("/Problem"), where
                    assert all(
                        each["value"]["status"] == int(status) for each in content["examples"].values()
                    )
            if method == "post":
                assert operation["requestBody"]["content"], where
            if path.startswith("/v1/") or path == "/metrics":
                assert operation["security"] and "401" in operation["responses"], where
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (where, parameter["name"])
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert {"SearchRequest", "SearchResponse", "Problem"} <= set(document["components"]["schemas"])
