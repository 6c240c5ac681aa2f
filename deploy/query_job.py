"""Searching with image files on a server, told as `reseen search` tells what it found itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ingest.errors import BadInput, NotFound
from serve.loopback import is_loopback

if TYPE_CHECKING:
    from deploy.terminal import Output
    from serve.api import FoundImage, SearchRequest, SearchResponse, StepEvidence
    from serve.client import Client

KEY_VARIABLE = "RESEEN_API_KEY"
_MOST_BYTES = 256 * 2**20  # more than any server takes by default
_LONGEST_KEY_FILE = 4_096


def query(
    url: str,
    images: Sequence[str],
    request: "SearchRequest",
    key: str | None,
    timeout_s: float,
    output: "Output",
) -> dict[str, Any]:
    """Searches a server with each image by path or URL, one search an image.

    Returns:
        What `reseen search --json` prints, and for each query `partial`, `coverage`, `missing_shards`,
        `skipped_steps`, `warnings`, its own `generation` and the `request_id`.

    Raises:
        NotFound: there is no such image. ServerProblem: as `serve.client.errors` tells.
    """
    from serve.client import Client
    from serve.client.calls import server_url

    url = server_url(url)
    if key is not None and not stays_private(url):
        output.warn(f"{url} is not https: whoever is on the way can read the API key")
    with (
        output.working("asking the server"),
        # What stays on this machine goes through no proxy, which would see the key.
        Client(url, key, timeout_s=timeout_s, from_environment=not _stays_here(url)) as client,
    ):
        answers = [_ask(client, image, request) for image in images]
    _warn(answers, output)
    numbers = [answer["generation"] for answer in answers if answer["generation"] is not None]
    return {"generation": max(numbers, default=None), "queries": answers}


def _ask(client: "Client", image: str, request: "SearchRequest") -> dict[str, Any]:
    from deploy.search_job import read_image
    from serve.client.errors import ImageRefused

    name = "standard input" if image == "-" else image
    data = read_image(image, _MOST_BYTES)
    if len(data) > _MOST_BYTES:
        raise BadInput(f"{name} is larger than {_MOST_BYTES:,} bytes: give a smaller image")
    try:
        return answered(name, client.search(request, [(name, data)]))
    except ImageRefused as refused:
        return {
            "query": name,
            "results": [],
            "rejected": {
                "reason": refused.reason,
                "detail": str(refused.extra.get("reason_detail", refused.detail)),
            },
            "generation": None,
            "request_id": refused.request_id,
        }


def answered(name: str, found: "SearchResponse") -> dict[str, Any]:
    """A server's answer in the words of `reseen search --json`."""
    return {
        "query": name,
        "results": [_result(each) for each in found.results],
        "rejected": None,
        "generation": found.generation,
        "partial": found.partial,
        "coverage": found.coverage,
        "missing_shards": found.missing_shards,
        "skipped_steps": found.skipped_steps,
        "warnings": found.warnings,
        "request_id": found.request_id,
    }


def _result(found: "FoundImage") -> dict[str, Any]:
    return {
        "rank": found.rank,
        "image_id": int(found.image_id),
        "score": found.score,
        "similarity": found.similarity,
        "steps": [_evidence(each) for each in found.steps],
        "uri": found.uri,
        "source": found.source,
        "key": found.key,
        "metadata": found.metadata,
    }


def _evidence(found: "StepEvidence") -> dict[str, Any]:
    box = {} if found.box is None else {"box": list(found.box)}
    return {"step": found.step, "added": found.added, **found.figures, **box}


def _warn(answers: Sequence[dict[str, Any]], output: "Output") -> None:
    """What a caller must not overlook, each thing once, on standard error."""
    for answer in answers:
        if answer.get("partial"):
            output.warn(f"{answer['query']}: a partial answer: {_missing(answer)}")
    for warning in dict.fromkeys(text for answer in answers for text in answer.get("warnings", [])):
        output.warn(warning)
    numbers = sorted({answer["generation"] for answer in answers if answer["generation"] is not None})
    if len(numbers) > 1:
        told = ", ".join(map(str, numbers))
        output.warn(f"the answers are of generations {told}: a new one was published meanwhile")


def _missing(answer: dict[str, Any]) -> str:
    parts = []
    if answer["missing_shards"] or answer["coverage"] < 1:
        shards = len(answer["missing_shards"])
        parts.append(
            f"{answer['coverage']:.1%} of the images were searched, {shards} shard(s) did not answer"
        )
    if answer["skipped_steps"]:
        parts.append(f"steps left out: {', '.join(answer['skipped_steps'])}")
    return "; ".join(parts) or "the server does not say of what"


def api_key(file: Path | None) -> str | None:
    """The key in a file, else of the environment's RESEEN_API_KEY; None without either."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with file.open("rb") as opened:
            data = opened.read(_LONGEST_KEY_FILE + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no key file {file}: check the spelling") from None
    except OSError as error:
        raise BadInput(f"the key file {file} cannot be read: {error.strerror}") from error
    try:
        key = data.decode().strip()
    except UnicodeDecodeError:
        key = ""
    if not key or len(data) > _LONGEST_KEY_FILE or len(key.split()) != 1:
        raise BadInput(f"{file} is no key file: it should hold one key and nothing else")
    return key


def stays_private(url: str) -> bool:
    """Whether nobody else sees what goes to a URL: it is encrypted, or stays on this machine."""
    return urlsplit(url).scheme != "http" or _stays_here(url)


def _stays_here(url: str) -> bool:
    """Whether a URL leads to this machine by a loopback name."""
    return is_loopback(urlsplit(url).hostname or "")


def request_of(**options: Any) -> "SearchRequest":
    """A request of the options that were given; `BadInput` names the one that is wrong."""
    from pydantic import ValidationError

    from serve.api import SearchRequest

    try:
        return SearchRequest(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"--{first['loc'][0]}: {first['msg']}".replace("_", "-")) from None
