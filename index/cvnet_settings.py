"""The settings of CVNet's second look, apart from the network: reading a recipe does not wait for torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CvnetSettings(BaseModel):
    """A second look at the first hits of a search, by CVNet's correlation network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cvnet"] = "cvnet"
    reads: str = Field(default="pyramid", description="label of the stored features with projected pyramids")
    depth: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="hits looked at, the first ones (the paper: up to 400); at 512 x 384 pixels each costs a "
        "query some 25 ms on one CPU thread and 0.7 MB to read (float16), at 1024 x 768 0.5 s and 2.75 MB",
    )
    weight: float = Field(
        default=0.5,
        ge=0,
        description="final score = similarity + weight x the probability that both are of the same thing",
    )
