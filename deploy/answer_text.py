"""An answer to one query as people read it, whether it was found here or by a server."""

from collections.abc import Mapping
from typing import Any

from deploy.terminal import table


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
