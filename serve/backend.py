"""Where the work of a search is done: the seams between the service and what computes for it.

The service (`serve.service`) is written against these protocols only. Two backends give them: this process
(`serve.replicas.embedded`) and Ray Serve (`serve.cluster.backend`). Whatever crosses a seam is a plain value
that pickles.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from index.group import Row
from index.rerank import Hit
from index.steps import Evidence, PairSettings, Query, StepSettings
from ingest.feature_reader import Place
from ingest.outcomes import Rejected
from serve.query import ImageQuery


@dataclass(frozen=True)
class GroupState:
    """One generation as a replica of a group of shards has it in memory.

    shards: digests, in the order of the generation.
    rows: that can be found (published and not masked). lists: inverted lists; 1 where the index is flat.
    dim: components of its vectors. columns: what filters may name, and its type (`index.filters`).
    code_bytes: memory of its lists and row tables, without what it shares with those loaded before it.
    seconds: that loading took.
    """

    generation: int
    group: int
    shards: tuple[str, ...]
    rows: int
    lists: int
    dim: int
    columns: Mapping[str, str]
    code_bytes: int
    seconds: float


class Replica(Protocol):
    """One replica of one group of shards, wherever it runs.

    Every method may raise `Unavailable` (the replica is gone or restarting) and `NotFound` (it has not, or no
    longer, that generation). Calls are cancelled by cancelling the task that awaits them.
    """

    @property
    def name(self) -> str:
        """`<group>/<replica>`, for messages and metrics."""

    async def scan(self, generation: int, batch: bytes) -> bytes:
        """Answers a batch of scans (`serve.wire`), each as if it were alone."""

    async def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        """The rows of some images; None for those that this group has not."""

    async def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        """Loads and verifies a generation beside those that are there; the same again does nothing.

        Args:
            replace: drop the others first, for want of memory.
            keep: the generation that is served, which is dropped last.

        Raises:
            OverBudget: both do not fit into the memory allowed; try with `replace`.
            NotFound, Corrupt, BadInput: the generation cannot be served; what is loaded goes on serving.
        """

    async def states(self) -> list[GroupState]:
        """The generations that are loaded; each has just answered a real query."""


class Encoder(Protocol):
    """Query images to vectors and features. Any method may raise `Unavailable` and `Away`, see `Reranker`."""

    async def encode(
        self, generation: int, image: ImageQuery, labels: Collection[str]
    ) -> "Encoded | Rejected": ...

    async def warm(self, generation: int) -> None:
        """Opens what a generation's queries need, before any come.

        Raises:
            NotFound, Corrupt, BadInput: the generation cannot be served.
        """


@dataclass(frozen=True)
class Encoded:
    """A query image as vector and features, and the seconds of each stage (`decode`, `encode`)."""

    query: Query
    seconds: Mapping[str, float] = field(default_factory=dict)
    warning: str | None = None


class Reranker(Protocol):
    """All that reads the features, vectors and images of the gallery.

    Any method may raise `Unavailable` (the store did not answer) and `Away` (nobody is there to ask it).
    """

    async def look(
        self, generation: int, settings: PairSettings, query: Query, hits: Sequence[Hit]
    ) -> list[Hit]:
        """The hits after a pair step (`index.rerank.look_again`)."""

    async def expand(
        self, generation: int, settings: StepSettings, query: Query, hits: Sequence[Hit]
    ) -> Query:
        """The query mixed with its nearest results (`index.expansion`)."""

    async def stored(self, generation: int, place: Place, labels: Collection[str]) -> Query | Rejected:
        """An image of the gallery as a query, by what is stored of it."""

    async def vectors(self, generation: int, places: Sequence[Place]) -> Float32[np.ndarray, "n d"]:
        """The stored vectors of some images."""

    async def compare(
        self, generation: int, steps: Sequence[StepSettings], query: Query, place: Place
    ) -> "Comparison | Rejected":
        """The closest look at one pair."""


@dataclass(frozen=True)
class Comparison:
    """What the steps say about one pair, for a person to see.

    similarity: inner product of the stored vectors. evidence: of each pair step.
    width, height: of the candidate's original, pixels.
    homography: (3, 3), query to candidate in pixels of the originals, on columns (x, y, 1); None where
        nothing was fitted.
    heat: over the query (h, w) and the candidate (i, j), in [0, 1]; None without a step that tells it.
    """

    similarity: float
    evidence: tuple[Evidence, ...]
    width: int
    height: int
    homography: np.ndarray | None = None
    heat: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Backend:
    """What a service works with. `groups[g]` are the replicas of group g; every shard is in one group."""

    groups: Sequence[Sequence[Replica]]
    encoder: Encoder
    reranker: Reranker
