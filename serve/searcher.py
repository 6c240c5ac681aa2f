"""Search in one generation: images or vectors in, ranked images with their place and metadata out."""

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from index.cache import Cache
from index.encodings import read_encodings
from index.opened import OpenGeneration, open_generation
from index.projection import l2_normalised
from index.rerank import Hit
from index.steps import Evidence, Query, StepSettings
from ingest.catalogue import METADATA_PREFIX, READERS, Catalogue, read_catalogue
from ingest.compute import Compute
from ingest.errors import BadInput, NotFound
from ingest.feature_reader import FeatureReader, Place
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected
from ingest.records import decode_key
from ingest.sources import KINDS
from ingest.tables import decode_table, read_object
from serve.query import QUERY_COMPUTE, ImageQuery, QueryEncoder, open_query_encoder
from serve.steps import Steps, hits_of

_PARTS_KEPT = 256  # listings of parts in memory: at most 1,024 rows each, some 50 MB in all


@dataclass(frozen=True)
class Result:
    """One image that was found.

    score: the similarity, and what steps added to it.
    similarity: inner product with the query as the index estimates it, in [-1, 1].
    evidence: what each step that looked at the pair found; empty where none did.
    uri: where it lay when it was listed; whether it is still there was not looked at.
    key: its path relative to the root of its source.
    metadata: what came with it in the listing.
    rank: 1 for the best.
    """

    image_id: int
    score: float
    uri: str
    source: str
    key: str
    metadata: Mapping[str, Any]
    rank: int
    similarity: float
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was found for one query, best first; or why the query could not be used.

    seen: what steps saw of the query's image, for `Searcher.correspondence`; None where there was no step.
    """

    query: str
    results: tuple[Result, ...] = ()
    rejected: Rejected | None = None
    seen: Query | None = field(default=None, repr=False, compare=False)


class Searcher:
    """An opened generation that answers. A context manager; may be shared by threads.

    Attributes:
        opened: the generation, in memory.
        catalogue: the commit that it covers.
    """

    def __init__(
        self,
        gallery: Gallery,
        opened: OpenGeneration,
        catalogue: Catalogue,
        cache: Cache | None,
        compute: Compute = QUERY_COMPUTE,
    ) -> None:
        self.gallery, self.opened, self.catalogue = gallery, opened, catalogue
        self._compute = compute
        self._listings = _Listings(gallery, catalogue, cache)
        self._opening = Lock()
        self._encoders: dict[frozenset[str], QueryEncoder] = {}
        self._steps: dict[tuple[StepSettings, ...], Steps] = {}
        self._reader: FeatureReader | None = None

    @property
    def encoder(self) -> QueryEncoder:
        """What turns query images into vectors; opened when it is first asked for.

        Raises:
            BadInput: the gallery's vectors came ready-made.
        """
        return self._encoder(frozenset())

    def _encoder(self, labels: frozenset[str]) -> QueryEncoder:
        with self._opening:
            if labels not in self._encoders:
                self._encoders[labels] = open_query_encoder(
                    self.gallery, self.opened.generation, labels, self._compute
                )
            return self._encoders[labels]

    def encoder_for(self, steps: Sequence[StepSettings]) -> QueryEncoder:
        """The encoder of queries that some steps will look at; `encoder` where there are none."""
        return self._encoder(self.steps(steps).labels if steps else frozenset())

    def steps(self, settings: Sequence[StepSettings] | None = None) -> Steps:
        """Opened steps, the recipe's by default.

        Raises:
            BadInput: a step reads features that the recipe does not describe.
        """
        chosen = self.opened.generation.recipe.steps if settings is None else tuple(settings)
        with self._opening:
            if chosen not in self._steps:
                self._steps[chosen] = Steps(self.gallery, self.opened, chosen, self._read, self._compute)
            return self._steps[chosen]

    @property
    def reader(self) -> FeatureReader:
        """The way to the features of the gallery's images.

        Raises:
            BadInput: the gallery's vectors came ready-made.
        """
        features = self.opened.generation.recipe.features
        if features is None:
            raise BadInput(
                f"{self.gallery.store.url} holds ready-made vectors: there are no images to look at"
            )
        with self._opening:
            if self._reader is None:
                self._reader = FeatureReader(self.gallery, features, self.catalogue, self._compute)
            return self._reader

    def _read(self, places: Sequence[Place], labels: Collection[str]) -> list[ImageFeatures | Rejected]:
        return self.reader.read(places, labels)

    def search_images(
        self,
        queries: Sequence[ImageQuery],
        top: int = 10,
        nprobe: int | None = None,
        steps: Sequence[StepSettings] | None = None,
    ) -> list[Answer]:
        """The `top` best images for each query image; fewer only if the gallery has fewer.

        Args:
            nprobe: lists to read first, instead of the recipe's number.
            steps: what is done with the answers, instead of the recipe's steps; () for nothing.

        Raises:
            BadInput: `top` is below 1, a box lies outside its image, the vectors came ready-made, or a step
                reads features that the recipe does not describe.
        """
        opened = self.steps(steps) if (self._recipe_steps if steps is None else steps) else None
        encoded = self._encoder(opened.labels if opened else frozenset()).encode(queries)
        used = [query for query in encoded if not isinstance(query, Rejected)]
        answers = iter(self._search(used, top, nprobe, opened))
        return [
            Answer(query.name, rejected=found)
            if isinstance(found, Rejected)
            else Answer(query.name, next(answers), seen=found if opened else None)
            for query, found in zip(queries, encoded, strict=True)
        ]

    def correspondence(
        self, query: Query, image_id: int, steps: Sequence[StepSettings]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Where a query and an image correspond, by the last of the steps that can tell it.

        Args:
            query: `Answer.seen` of a search with these steps.

        Returns:
            Heat in [0, 1] over the query (h, w) and over the image (i, j); None if no step tells it, or the
            image's features cannot be had.
        """
        return self.steps(steps).correspondence(query, Place(*self.opened.locate(image_id)))

    @property
    def _recipe_steps(self) -> tuple[StepSettings, ...]:
        return self.opened.generation.recipe.steps

    def search_vectors(
        self,
        vectors: Float32[np.ndarray, "q d"],
        top: int = 10,
        nprobe: int | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Answer]:
        """The `top` best images for each vector, which is L2-normalised first, by the index alone: no steps.

        Args:
            names: of the queries; their row numbers by default.

        Raises:
            BadInput: the vectors' dimension is not the gallery's, or they are not finite.
        """
        named = [str(row) for row in range(len(vectors))] if names is None else names
        hits = self._hits(l2_normalised(np.asarray(vectors, np.float32)), top, nprobe)
        return [Answer(name, results) for name, results in zip(named, self._results(hits), strict=True)]

    def similar_to(
        self,
        image_id: int,
        top: int = 10,
        nprobe: int | None = None,
        steps: Sequence[StepSettings] | None = None,
    ) -> Answer:
        """The `top` best images for an image of the gallery, by what is stored of it; itself left out.

        Raises:
            NotFound: the generation has no such image.
        """
        place = Place(*self.opened.locate(image_id))
        rows, _, vectors = read_encodings(self.gallery, self.opened.generation.models.encodings, place.part)
        opened = self.steps(steps) if (self._recipe_steps if steps is None else steps) else None
        depth = max(top, opened.depth if opened else 0)
        vector = vectors[rows == place.row]
        (found,) = self._hits(vector, depth + 1, nprobe)
        hits = [hit for hit in found if hit.image_id != image_id]
        if opened is not None:
            features = self.reader.read([place], opened.labels)[0] if opened.labels else None
            if not isinstance(features, Rejected):
                query = Query(vector[0], features or ImageFeatures(0, 0, 1.0, {}))
                hits = opened.apply(query, hits, nprobe, own=image_id)
        return Answer(str(image_id), self._results([hits[:top]])[0])

    def image(self, image_id: int, score: float = 1.0, rank: int = 0) -> Result:
        """Where an image of the generation lies, and what came with it; `NotFound` if it has none such."""
        place = Place(*self.opened.locate(image_id))
        return self._result(
            Hit(image_id, place, score, score), rank, self._listings.read([place.part])[place.part]
        )

    def _search(
        self, queries: Sequence[Query], top: int, nprobe: int | None, steps: Steps | None
    ) -> list[tuple[Result, ...]]:
        if not queries:
            return []
        depth = max(top, steps.depth) if steps else top
        found = self._hits(np.stack([query.vector for query in queries]), depth, nprobe)
        if steps is not None:
            found = [steps.apply(query, hits, nprobe) for query, hits in zip(queries, found, strict=True)]
        return self._results([hits[:top] for hits in found])

    def _hits(self, vectors: np.ndarray, top: int, nprobe: int | None) -> list[list[Hit]]:
        live = max(1, self.opened.generation.counts["live"])
        return hits_of(self.opened, self.opened.search(vectors, min(top, live), nprobe))

    def _results(self, answers: Sequence[Sequence[Hit]]) -> list[tuple[Result, ...]]:
        listings = self._listings.read({hit.place.part for hits in answers for hit in hits})
        return [
            tuple(self._result(hit, rank, listings[hit.place.part]) for rank, hit in enumerate(hits, start=1))
            for hits in answers
        ]

    def _result(self, hit: Hit, rank: int, listing: "_Listing") -> Result:
        source, row = listing.source, hit.place.row
        key = decode_key(listing.table["key"][row].as_py())
        values = {name: listing.table[METADATA_PREFIX + name][row].as_py() for name in listing.metadata}
        return Result(
            image_id=hit.image_id,
            score=hit.score,
            uri=uri_of(self.catalogue.sources[source], key),
            source=source,
            key=key,
            metadata={name: value for name, value in values.items() if value is not None},
            rank=rank,
            similarity=hit.similarity,
            evidence=hit.evidence,
        )

    def close(self) -> None:
        """Ends decoding processes, if there are some."""
        with self._opening:
            for encoder in self._encoders.values():
                encoder.close()
            if self._reader is not None:
                self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_searcher(
    gallery: Gallery,
    number: int | None = None,
    cache: Cache | None = None,
    compute: Compute = QUERY_COMPUTE,
) -> Searcher:
    """Opens a generation for search, the newest by default.

    Raises:
        NotFound: there is no such generation, or it was collected.
        Corrupt: an object is not what its manifest names; it is named.
    """
    opened = open_generation(gallery, number, cache)
    return Searcher(gallery, opened, read_catalogue(gallery, opened.generation.catalogue), cache, compute)


def uri_of(url: str, key: str) -> str:
    """Where an image of a source lies: what its `Source.uri` says, also when the source is gone."""
    kind, colon, _ = url.partition(":")
    if colon and kind in KINDS:
        return f"{url}#{key}"
    path = url.removeprefix("file://").removeprefix("file:")
    root = url if "://" in path else os.path.realpath(path)
    return f"{root.rstrip('/')}/{key}"


@dataclass(frozen=True)
class _Listing:
    """The rows of a part and the source that they come from."""

    source: str
    table: pa.Table

    @cached_property
    def metadata(self) -> list[str]:
        names = self.table.column_names
        return [name.removeprefix(METADATA_PREFIX) for name in names if name.startswith(METADATA_PREFIX)]


@dataclass
class _Listings:
    """The listings of parts, read when they are needed; the ones used last are kept."""

    gallery: Gallery
    catalogue: Catalogue
    cache: Cache | None
    kept: OrderedDict[str, _Listing] = field(default_factory=OrderedDict)
    lock: Lock = field(default_factory=Lock)

    def read(self, parts: Iterable[str]) -> dict[str, _Listing]:
        """The listings of some parts, by part; those that are not kept are fetched side by side."""
        wanted = sorted(set(parts))
        with self.lock:
            found = {part: self.kept[part] for part in wanted if part in self.kept}
        missing = [part for part in wanted if part not in found]
        if missing:
            with ThreadPoolExecutor(min(READERS, len(missing))) as pool:
                found.update(zip(missing, pool.map(self._fetch, missing), strict=True))
        with self.lock:
            for part in wanted:
                self.kept[part] = found[part]
                self.kept.move_to_end(part)
            while len(self.kept) > _PARTS_KEPT:
                self.kept.popitem(last=False)
        return found

    def _fetch(self, part: str) -> _Listing:
        place = self.catalogue.position.get(part)
        if place is None:
            raise NotFound(
                f"catalogue {self.catalogue.number} of {self.gallery.store.url} does not name part {part}"
            )
        named, store = self.catalogue.parts[place], self.gallery.store
        data = read_object(store, named.ref) if self.cache is None else self.cache.read(store, named.ref)
        return _Listing(named.source, decode_table(data, store.where(named.ref.name)))
