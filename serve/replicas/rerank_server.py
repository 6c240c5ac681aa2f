"""All that reads features, vectors and images of the gallery: second looks, expansion, comparisons.

Everything that is opened is kept by what decides it (features, models, catalogue), so that a flip to a
generation that shares it costs nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32

from index.cvnet_step import CvnetStep
from index.expansion import ExpansionSettings
from index.generation import Generation
from index.rerank import Hit, expanded, look_again
from index.steps import Evidence, PairSettings, PairStep, Query, StepSettings, open_pair_step
from index.stored_vectors import StoredVectors
from ingest.catalogue import read_catalogue
from ingest.compute import Compute
from ingest.errors import BadInput
from ingest.feature_reader import FeatureReader, Place
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected
from serve.backend import Comparison
from serve.query import QUERY_COMPUTE
from serve.replicas.known_generations import KnownGenerations

_READERS = 2  # the generation that is served, and the one before
_STEPS = 8
_COMPUTED_BYTES = 256 * 2**20  # kept by each reader of what it computed

T = TypeVar("T")


class RerankServer:
    """See `serve.backend.Reranker`. May be shared by threads."""

    def __init__(self, gallery: Gallery, compute: Compute = QUERY_COMPUTE) -> None:
        self._gallery, self._compute = gallery, compute
        self._generations = KnownGenerations(gallery)
        self._readers: _Opened[FeatureReader] = _Opened(_READERS, FeatureReader.close)
        self._vectors: _Opened[StoredVectors] = _Opened(_READERS)
        self._steps: _Opened[PairStep] = _Opened(_STEPS)

    def look(self, generation: int, settings: PairSettings, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        """The hits after a pair step (`index.rerank.look_again`).

        Raises:
            BadInput: the generation's recipe does not describe what the step reads.
            NotFound, Corrupt, Unavailable: what is stored cannot be read.
        """
        known = self._generations.get(generation)
        step = self._step(known, settings)
        return look_again(step, settings.depth, query, hits, self._reader(known).read)

    def expand(self, generation: int, settings: StepSettings, query: Query, hits: Sequence[Hit]) -> Query:
        """The query mixed with its nearest results; as it is where there are none."""
        if not isinstance(settings, ExpansionSettings):
            raise BadInput(f"step {settings.kind} does not expand a query")
        vector = expanded(query.vector, hits, settings, lambda places: self.vectors(generation, places))
        return Query(vector, query.features)

    def stored(self, generation: int, place: Place, labels: Collection[str]) -> Query | Rejected:
        """An image of the gallery as a query, by what is stored of it.

        Returns:
            Without labels always a query; its features then hold the image's size alone (0 x 0 where the
            vectors came ready-made). With labels a rejection where their features cannot be had.
        """
        known = self._generations.get(generation)
        features: ImageFeatures | Rejected = ImageFeatures(0, 0, 1.0, {})
        if not known.recipe.ready_made:
            features = self._reader(known).read([place], labels)[0]
        if isinstance(features, Rejected):
            return features
        return Query(self._stored_vectors(known).read([place])[0], features)

    def vectors(self, generation: int, places: Sequence[Place]) -> Float32[np.ndarray, "n d"]:
        """The stored vectors of some images, n of 1 or more."""
        return self._stored_vectors(self._generations.get(generation)).read(places)

    def compare(
        self, generation: int, steps: Sequence[StepSettings], query: Query, place: Place
    ) -> Comparison | Rejected:
        """The closest look at one pair; a rejection where the image's features cannot be had.

        Raises:
            BadInput: the vectors came ready-made, or the recipe does not describe what a step reads.
        """
        known = self._generations.get(generation)
        opened = [self._step(known, each) for each in steps if not isinstance(each, ExpansionSettings)]
        labels = frozenset().union(*(step.labels for step in opened))
        features = self._reader(known).read([place], labels)[0]
        if isinstance(features, Rejected):
            return features
        similarity = float(query.vector @ self._stored_vectors(known).read([place])[0])
        evidence: list[Evidence] = []
        heat = None
        score = similarity
        for step in opened:
            evidence += step.score(query, [features], [score])
            score += evidence[-1].added
            if isinstance(step, CvnetStep):
                heat = step.correspondence(query.features, features)
        models = [each.model for each in evidence if each.model is not None]
        return Comparison(
            similarity,
            tuple(evidence),
            features.width,
            features.height,
            models[-1] if models else None,
            heat,
        )

    def close(self) -> None:
        """Ends decoding processes, if there are some."""
        self._readers.close()

    def _reader(self, generation: Generation) -> FeatureReader:
        settings = generation.recipe.features
        if settings is None:
            raise BadInput(
                f"{self._gallery.store.url} holds ready-made vectors: there are no images to look at"
            )

        def opened() -> FeatureReader:
            catalogue = read_catalogue(self._gallery, generation.catalogue)
            return FeatureReader(self._gallery, settings, catalogue, self._compute, _COMPUTED_BYTES)

        return self._readers.get((settings.digest, generation.catalogue), opened)

    def _stored_vectors(self, generation: Generation) -> StoredVectors:
        encodings = generation.models.encodings
        return self._vectors.get(encodings, lambda: StoredVectors(self._gallery, encodings))

    def _step(self, generation: Generation, settings: PairSettings) -> PairStep:
        models = generation.models
        return self._steps.get(
            (models.features, models.encoder, models.projection, settings),
            lambda: open_pair_step(self._gallery, generation, settings, self._compute),
        )


class _Opened(Generic[T]):
    """What was opened, by what decides it; what was used longest ago goes first. Opening takes turns."""

    def __init__(self, most: int, close: Callable[[T], None] | None = None) -> None:
        self._most, self._close = most, close
        self._kept: OrderedDict[object, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, opened: Callable[[], T]) -> T:
        left: list[T] = []
        with self._lock:
            if key not in self._kept:
                self._kept[key] = opened()
            self._kept.move_to_end(key)
            found = self._kept[key]
            while len(self._kept) > self._most:
                left.append(self._kept.popitem(last=False)[1])
        for each in left:  # closing waits for what it is in the middle of
            self._closed(each)
        return found

    def close(self) -> None:
        with self._lock:
            while self._kept:
                self._closed(self._kept.popitem()[1])

    def _closed(self, left: T) -> None:
        if self._close is not None:
            self._close(left)
