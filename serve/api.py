"""The HTTP API's bodies, version 1: what programs send and get. The OpenAPI page is made of these models.

Image ids are 63-bit numbers, more than a JavaScript number can hold: they travel as decimal strings, and are
accepted as strings or integers. All coordinates are pixels of the original after EXIF orientation, the centre
of the top-left pixel (0, 0).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

MOST_TOP = 1_000
MOST_QUERIES = 16

ImageId = Annotated[
    str,
    BeforeValidator(lambda given: str(given) if type(given) is int else given),
    Field(pattern=r"^(0|[1-9][0-9]{0,18})$", examples=["3941654959055551396"]),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of an uploaded file")]
Box = tuple[float, float, float, float]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SearchOptions(_Body):
    """What is asked of any search."""

    top: int = Field(default=10, ge=1, le=MOST_TOP, description="images to find")
    where: str | dict[str, Any] | None = Field(
        default=None,
        description='only images that fit: `year >= 1990 and (city = "Rome" or not private = true)`, '
        "or as a JSON tree; applied inside the search, so that `top` images come back if they exist",
    )
    rerank: str | None = Field(
        default=None,
        max_length=200,
        description="none, or steps in their order: geometry, cvnet, regions, expand; default: the recipe's",
    )
    depth: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOP,
        description="answers that each step looks at, instead of its own number",
    )
    nprobe: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="inverted lists to read first, instead of the recipe's number",
    )
    allow_partial: bool = Field(
        default=True, description="false: 503 instead of an answer from only some of the shards or steps"
    )
    timeout_ms: int | None = Field(
        default=None, ge=1, le=120_000, description="when an answer is of no use any more"
    )
    explain: bool = Field(
        default=False, description="say the time of each stage, and the matching points of each result"
    )
    fold: bool = Field(default=False, description="mark near-duplicates among the results")


class SearchRequest(SearchOptions):
    """A search by what the server has or numbers: at least one of `uploads`, `image_ids`, `vectors`.

    Several queries are of one thing: their vectors are averaged, those of `unlike_ids` taken away, and each
    result is looked at with each query image, the best look counting.
    """

    uploads: list[Digest] = Field(
        default=[], max_length=MOST_QUERIES, description="images posted to /v1/uploads"
    )
    image_ids: list[ImageId] = Field(default=[], max_length=MOST_QUERIES, description="images of the gallery")
    vectors: list[Annotated[list[float], FailFast()]] = Field(
        default=[], max_length=MOST_QUERIES, description="of the index's dimension"
    )
    unlike_ids: list[ImageId] = Field(
        default=[], max_length=MOST_QUERIES, description="images of the gallery that show something else"
    )
    exclude_ids: list[ImageId] = Field(default=[], max_length=MOST_TOP, description="images not to return")
    box: Box | None = Field(
        default=None, description="x0, y0, x1, y1: only this part; with exactly one upload"
    )


class Problem(BaseModel):
    """What went wrong (RFC 9457), with a code that stays."""

    type: str = Field(examples=["urn:reseen:problem:not-found"])
    code: str = Field(examples=["not-found"])
    title: str
    status: int
    detail: str
    request_id: str
    extra: dict[str, Any] = Field(
        default={}, description="more for programs: reason, coverage, retry_after_s"
    )


class Verdict(BaseModel):
    """What a score means, by labelled pairs: `same` from 90 % probability on, `maybe` from 50 %."""

    label: Literal["same", "maybe", "unlikely"]
    probability: float


class StepEvidence(BaseModel):
    """What a step found: `figures` by name; `points` (query, image) with explain only; `box` of the image."""

    step: str
    added: float
    figures: dict[str, float] = {}
    points: tuple[list[tuple[float, float]], list[tuple[float, float]]] | None = None
    box: Box | None = None


class FoundImage(BaseModel):
    """A result; an image of the gallery, where `rank` is 0."""

    rank: int
    image_id: ImageId
    score: float
    similarity: float
    steps: list[StepEvidence] = []
    verdict: Verdict | None = Field(
        default=None, description="null where the recipe's scores are not calibrated"
    )
    duplicate_of: ImageId | None = Field(
        default=None, description="the best-ranked image that this one repeats"
    )
    uri: str
    source: str
    key: str
    metadata: dict[str, Any] = {}
    thumbnail: str = Field(
        description="path, below the prefix of a server that has one",
        examples=["/v1/images/3941654959055551396/thumbnail"],
    )


class QueryInfo(BaseModel):
    """How a query was understood.

    `weak`: it has so little structure that matches are chance; null where that is not known.
    """

    kind: Literal["upload", "image", "vector"]
    name: str
    width: int | None = None
    height: int | None = None
    features: dict[str, int] = Field(default={}, description="how many of each label")
    weak: bool | None = None


class SearchResponse(BaseModel):
    """The answer to a search, of one generation."""

    generation: int
    queries: list[QueryInfo]
    results: list[FoundImage]
    partial: bool = Field(description="some shards or steps did not answer in time")
    coverage: float = Field(description="rows searched / rows published")
    missing_shards: list[str] = []
    skipped_steps: list[str] = []
    warnings: list[str] = []
    request_id: str
    took_ms: float
    timings_ms: dict[str, float] = Field(default={}, description="with explain: by stage")


class UploadInfo(BaseModel):
    """An uploaded image that was kept for a while; `digest` names it in searches."""

    digest: Digest
    bytes: int
    kept_s: int = Field(description="seconds that it stays after it was last used, unless space runs out")


class CompareRequest(_Body):
    """One query image (an upload or an image of the gallery) and one image of the gallery."""

    upload: Digest | None = None
    query_id: ImageId | None = None
    box: Box | None = None
    image_id: ImageId
    rerank: str | None = Field(default=None, max_length=200)


class Heat(BaseModel):
    """Where two images correspond, in [0, 1]: rows of a coarse grid over the query, and over the image."""

    query: list[list[float]]
    image: list[list[float]]


class CompareResponse(BaseModel):
    """The closest look at one pair. `homography` maps query pixels to image pixels."""

    generation: int
    image: FoundImage
    query: QueryInfo
    width: int
    height: int
    steps: list[StepEvidence]
    homography: list[list[float]] | None
    heat: Heat | None
    request_id: str


class DuplicatesResponse(BaseModel):
    """The images that repeat one: `threshold` is the similarity of stored vectors above which they do."""

    generation: int
    image_id: ImageId
    threshold: float
    duplicates: list[FoundImage]


class GenerationInfo(BaseModel):
    """What is served now, and what stands in the way of a newer one."""

    number: int
    recipe: str
    published: str = Field(description="when, UTC")
    age_s: float
    counts: dict[str, int]
    dim: int
    columns: dict[str, str] = Field(description="what filters may name: text, integer, number or boolean")
    steps: list[str] = Field(description="the recipe's steps")
    images: bool = Field(description="false: ready-made vectors, nothing to look at")
    calibrated: bool
    groups: list[dict[str, Any]] = Field(description="shards, rows and replicas of each group")
    newest: int = Field(description="the newest generation of the gallery that was seen")
    refused: dict[str, str] = Field(default={}, description="generations that failed to load, and why")
    warning: str | None = Field(default=None, description="library versions here differ from the gallery's")


class Readiness(BaseModel):
    """`ready`: every shard of one generation is loaded, verified, and answers a real query."""

    ready: bool
    generation: int | None = None
    missing: list[str] = []
    detail: str = ""
