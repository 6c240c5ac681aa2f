"""What stands in paths and query strings."""

from typing import Annotated

from fastapi import Path, Request
from pydantic import BaseModel, ConfigDict, Field

from serve.api import MOST_TOP, Digest, SearchOptions
from serve.http.problems import Refused

MOST_ID = 2**63 - 1

IdInPath = Annotated[
    str,
    Path(
        pattern=r"^(0|[1-9][0-9]{0,18})$",
        description="an image of the gallery",
        examples=["3941654959055551396"],
    ),
]
DigestInPath = Annotated[Digest, Path()]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SimilarQuery(SearchOptions):
    """The options of a search, in a query string."""

    where: str | None = Field(
        default=None,
        max_length=10_000,
        description='only images whose metadata fit: `year >= 1990 and city = "Rome"`',
    )


class DuplicatesQuery(_Query):
    """How alike, and how many."""

    threshold: float | None = Field(
        default=None, ge=-1, le=1, description="similarity of stored vectors; default: the server's"
    )
    top: int = Field(default=100, ge=1, le=MOST_TOP, description="images to find at most")


class SizeQuery(_Query):
    """How large a thumbnail is."""

    size: int = Field(
        default=256, ge=64, le=1024, description="pixels of the longest side; rounded up to a power of two"
    )


async def each_once(request: Request) -> None:
    """Refuses a query that gives a parameter twice: which one counts, readers of queries do not agree on."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):
        raise Refused("invalid", "a parameter of the query is given twice")


def number_of(image_id: str) -> int:
    """An image's id as a number; ids beyond 63 bits are nobody's."""
    number = int(image_id)
    if number > MOST_ID:
        raise Refused("not-found", f"there is no image {image_id}")
    return number
