"""A recipe: everything that decides what a gallery's answers are, in one checked value.

The models of the parts stand beside the code that they set. What does not change results (workers,
devices, caches) is not here.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from index.expansion import ExpansionSettings
from index.fused import AnyProjectionSettings, EncoderSettings, encoders_in
from index.pooled import PooledSettings
from index.quantizer import QuantizerSettings
from index.region_scores import RegionStepSettings
from index.steps import StepSettings
from ingest.features import FeatureSettings
from ingest.gallery import Gallery
from ingest.records import digest_of
from ingest.weights import ReadWeights, read_describers_weights, without_sources

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
    features: FeatureSettings | None = Field(None, description="images to features")
    encoder: EncoderSettings | None = Field(None, description="features to one vector")
    projection: AnyProjectionSettings | None = Field(
        None, description="fewer dimensions; null: the encoder's own"
    )
    quantizer: QuantizerSettings = Field(description="vectors to codes")
    steps: tuple[StepSettings, ...] = Field(
        (), description="what is done with the answers before they are given, in this order; [] for nothing"
    )
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
        pairs = [step.kind for step in self.steps if not isinstance(step, ExpansionSettings)]
        if self.features is None and pairs:
            raise ValueError(
                f"step {pairs[0]} looks at features, and ready-made vectors have none: leave it out"
            )
        if self.features is not None and self.encoder is not None:
            _check_labels(self.features, self.encoder, self.steps)
        return self

    @property
    def weights(self) -> set[str]:
        """The digests of the weights of all networks, as `ingest.weights` keeps them."""
        return set() if self.features is None else self.features.weights

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
        """The name of what the recipe computes: not of name, shard size, gate, steps and nprobe."""
        computes = without_sources(
            self.model_dump(mode="json", exclude={"name", "shard_rows", "gate", "steps"})
        )
        computes["quantizer"].pop("nprobe", None)
        return digest_of(computes)

    @property
    def vectors_digest(self) -> str:
        """The name of what the recipe computes before the quantizer."""
        stages = {"features", "encoder", "projection"}
        return digest_of(without_sources(self.model_dump(mode="json", include=stages)))


_LOCAL = frozenset(["sift", "cnn-columns", "cnn-patches"])
_READABLE = {  # kinds of features that each encoder and step can read
    "vlad": _LOCAL,
    "netvlad": _LOCAL,
    "geometry": _LOCAL,
    "pooled": frozenset(["cnn-global"]),
    "regions": frozenset(["cnn-global"]),
    "cvnet": frozenset(["cvnet-pyramid"]),
}


def _check_labels(features: FeatureSettings, encoder: EncoderSettings, steps: Sequence[StepSettings]) -> None:
    """Whatever is read is described, and of a kind that can be read: `ValueError` for pydantic if not."""
    readers = [*encoders_in(encoder), *(step for step in steps if not isinstance(step, ExpansionSettings))]
    for reader in readers:
        described = features.describe.get(reader.reads)
        if described is None:
            raise ValueError(
                f"{reader.kind} reads the features {reader.reads}, and features.describe has only: "
                f"{', '.join(sorted(features.describe))}; describe them, or set `reads`"
            )
        if described.kind not in _READABLE[reader.kind]:
            raise ValueError(
                f"{reader.kind} cannot read {reader.reads}, which is {described.kind}: it reads "
                f"{', '.join(sorted(_READABLE[reader.kind]))}"
            )
        pooled = isinstance(encoder, PooledSettings) and encoder.reads == reader.reads
        if isinstance(reader, RegionStepSettings) and not pooled:
            raise ValueError(
                "step regions compares regions with the query's vector: let the encoder be pooled and read "
                f"{reader.reads} too, or leave the step out"
            )


def with_read_weights(recipe: Recipe, gallery: Gallery | None = None) -> tuple[Recipe, ReadWeights]:
    """The recipe with the digests of its networks' weights, and the weights that were read for that."""
    if recipe.features is None:
        return recipe, ReadWeights({}, {})
    read = read_describers_weights(recipe.features.describe, gallery)
    features = recipe.features.model_copy(update={"describe": read.describe})
    return recipe.model_copy(update={"features": features}), read
