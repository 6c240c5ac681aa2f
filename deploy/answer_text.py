"""Answers as people read them, whether they were found here or by a server."""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.terminal import table
from ingest.errors import BadInput, ReseenError


def answer_text(answer: Mapping[str, Any]) -> str:
    """The query and its ranked images as a table; or why it could not be used.

    Args:
        answer: as `--json` has it: `query`, `results`, `rejected`.
    """
    if answer["rejected"]:
        return (
            f"{answer['query']}: not usable ({answer['rejected']['reason']}: {answer['rejected']['detail']})"
        )
    rows = [["rank", "score", "image_id", "uri"]]
    rows += [
        [str(found["rank"]), f"{found['score']:.4f}", str(found["image_id"]), found["uri"]]
        for found in answer["results"]
    ]
    return f"{answer['query']}\n{table(rows)}"


def all_refused(answers: Sequence[Mapping[str, Any]]) -> ReseenError | None:
    """The error of a command whose images could all not be used."""
    if not all(answer["rejected"] for answer in answers):
        return None
    first = answers[0]
    return BadInput(f"{first['query']} cannot be used: {first['rejected']['detail']}; give another image")
