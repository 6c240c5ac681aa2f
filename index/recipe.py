"""A recipe: everything that decides what a gallery's answers are, in one checked value.

The models of the parts stand beside the code that they set. What does not change results (workers,
devices, caches) is not here.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from index.encoders import EncoderSettings
from index.projection import ProjectionSettings
from index.quantizer import QuantizerSettings
from ingest.features import FeatureSettings
from ingest.records import digest_of

_ANY_VECTORS = 1024  # also for kinds that fit nothing: a few images drawn might all be rejects


class GateSettings(BaseModel):
    """What a generation must show before it is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recall: float = Field(
        0.9,
        ge=0,
        le=1,
        description="least share of held-out queries whose exact nearest neighbour is in the top 100",
    )
    queries: int = Field(
        256,
        ge=1,
        description="held-out queries; the exact search reads every vector once, whatever their number",
    )


class Recipe(BaseModel):
    """How photographs become ranked images. No `features` and `encoder`: the vectors come ready-made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="letters, digits, - and _", pattern=r"^[A-Za-z0-9_-]+$")
    features: FeatureSettings | None = Field(None, description="images to local features")
    encoder: EncoderSettings | None = Field(None, description="local features to one vector")
    projection: ProjectionSettings | None = Field(
        None, description="fewer dimensions; null: the encoder's own"
    )
    quantizer: QuantizerSettings = Field(description="vectors to codes")
    shard_rows: int = Field(
        1_000_000, ge=1, description="most vectors of a shard; memory while building = their codes, twice"
    )
    gate: GateSettings = Field(default_factory=GateSettings, description="what publishing demands")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.features is None) != (self.encoder is None):
            raise ValueError("features and encoder go together: give both, or neither for ready-made vectors")
        if self.features is None and self.projection is not None:
            raise ValueError("ready-made vectors are not projected: reduce them before, or use opq_dim")
        return self

    @property
    def ready_made(self) -> bool:
        """Whether vectors come from a source instead of images."""
        return self.features is None

    @property
    def nprobe(self) -> int | None:
        """Lists that a query reads unless it says otherwise; None where there are no lists."""
        return getattr(self.quantizer, "nprobe", None)

    @property
    def sample_vectors(self) -> int:
        """Vectors that the quantizer is fitted on, at most."""
        return max(_ANY_VECTORS, self.quantizer.sample_vectors)

    @property
    def digest(self) -> str:
        """The name of what the recipe computes; its own name, shard size, gate and nprobe are no part."""
        computes = self.model_dump(mode="json", exclude={"name", "shard_rows", "gate"})
        computes["quantizer"].pop("nprobe", None)
        return digest_of(computes)

    @property
    def vectors_digest(self) -> str:
        """The name of what the recipe computes before the quantizer."""
        return digest_of(self.model_dump(mode="json", include={"features", "encoder", "projection"}))
