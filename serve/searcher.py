"""Search in one generation: images or vectors in, ranked images with their place and metadata out."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from index.cache import Cache
from index.filters import Filter, check_filter
from index.generation import Generation
from index.group import Row, ShardGroup, open_group, search_groups
from index.opened import newest_whole
from index.projection import l2_normalised
from index.rerank import Hit, hits_of
from index.steps import Evidence, Query, StepSettings
from index.stored_vectors import StoredVectors
from ingest.catalogue import Catalogue, read_catalogue
from ingest.compute import Compute
from ingest.errors import BadInput
from ingest.feature_reader import FeatureReader, Place
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.outcomes import Rejected
from ingest.sources import KINDS
from serve.query import QUERY_COMPUTE, ImageQuery, QueryEncoder, open_query_encoder
from serve.steps import Search, Steps


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
        opened: the generation, in memory, as one group of all its shards.
        catalogue: the commit that it covers.
    """

    def __init__(
        self,
        gallery: Gallery,
        opened: ShardGroup,
        catalogue: Catalogue,
        compute: Compute = QUERY_COMPUTE,
    ) -> None:
        self.gallery, self.opened, self.catalogue = gallery, opened, catalogue
        self._compute = compute
        self._vectors = StoredVectors(gallery, opened.generation.models.encodings)
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
                self._steps[chosen] = Steps(
                    self.gallery, self.opened.generation, chosen, self._read, self._compute
                )
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
        where: Filter | None = None,
    ) -> list[Answer]:
        """The `top` best images for each query image; fewer only if the gallery has fewer.

        Args:
            nprobe: lists to read first, instead of the recipe's number.
            steps: what is done with the answers, instead of the recipe's steps; () for nothing.
            where: only images that it lets through.

        Raises:
            BadInput: `top` is below 1, a box lies outside its image, the vectors came ready-made, a step
                reads features that the recipe does not describe, or the filter names no column.
        """
        search = self._searching(nprobe, where)
        opened = self.steps(steps) if (self._recipe_steps if steps is None else steps) else None
        encoded = self._encoder(opened.labels if opened else frozenset()).encode(queries)
        answers = []
        for query, found in zip(queries, encoded, strict=True):
            if isinstance(found, Rejected):
                answers.append(Answer(query.name, rejected=found))
            else:
                results = self._answered(found, top, opened, search)
                answers.append(Answer(query.name, results, seen=found if opened else None))
        return answers

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
        return self.steps(steps).correspondence(query, self.opened.locate(image_id))

    @property
    def _recipe_steps(self) -> tuple[StepSettings, ...]:
        return self.opened.generation.recipe.steps

    def search_vectors(
        self,
        vectors: Float32[np.ndarray, "q d"],
        top: int = 10,
        nprobe: int | None = None,
        names: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> list[Answer]:
        """The `top` best images for each vector, which is L2-normalised first, by the index alone: no steps.

        Args:
            names: of the queries; their row numbers by default.
            where: only images that it lets through.

        Raises:
            BadInput: the vectors' dimension is not the gallery's, they are not finite, or the filter names no
                column.
        """
        named = [str(row) for row in range(len(vectors))] if names is None else names
        search = self._searching(nprobe, where)
        # One at a time: the last bits of a norm depend on how many vectors are normalised at once.
        normal = [l2_normalised(np.asarray(vector, np.float32)[None])[0] for vector in vectors]
        return [
            Answer(name, self._results(search(vector, top)))
            for name, vector in zip(named, normal, strict=True)
        ]

    def similar_to(
        self,
        image_id: int,
        top: int = 10,
        nprobe: int | None = None,
        steps: Sequence[StepSettings] | None = None,
        where: Filter | None = None,
    ) -> Answer:
        """The `top` best images for an image of the gallery, by what is stored of it; itself left out.

        Raises:
            NotFound: the generation has no such image.
        """
        place = self.opened.locate(image_id)
        search = self._searching(nprobe, where)
        opened = self.steps(steps) if (self._recipe_steps if steps is None else steps) else None
        depth = max(top, opened.depth if opened else 0)
        (vector,) = self._vectors.read([place])
        hits = [hit for hit in search(vector, depth + 1) if hit.image_id != image_id][:depth]
        if opened is not None:
            features = self.reader.read([place], opened.labels)[0] if opened.labels else None
            if not isinstance(features, Rejected):
                query = Query(vector, features or ImageFeatures(0, 0, 1.0, {}))
                hits = opened.apply(query, hits, search, own=image_id)
        return Answer(str(image_id), self._results(hits[:top]))

    def image(self, image_id: int, score: float = 1.0, rank: int = 0) -> Result:
        """Where an image of the generation lies, and what came with it; `NotFound` if it has none such."""
        place = self.opened.locate(image_id)
        (row,) = self.opened.rows_of([image_id])
        assert row is not None, "it was located"
        return self._result(Hit(image_id, place, score, score), row, rank)

    def _searching(self, nprobe: int | None, where: Filter | None) -> Search:
        """What gives the hits of a vector."""
        if where is not None:
            check_filter(where, self.opened.columns)
        lists = self.opened.generation.recipe.nprobe or 1 if nprobe is None else nprobe
        return partial(self._hits, lists, where)

    def _hits(
        self, nprobe: int, where: Filter | None, vector: Float32[np.ndarray, " d"], top: int
    ) -> list[Hit]:
        top = min(top, max(1, self.opened.rows))
        return hits_of(search_groups([self.opened], vector, top, nprobe, where))

    def _answered(self, query: Query, top: int, steps: Steps | None, search: Search) -> tuple[Result, ...]:
        hits = search(query.vector, max(top, steps.depth) if steps else top)
        if steps is not None:
            hits = steps.apply(query, hits, search)
        return self._results(hits[:top])

    def _results(self, hits: Sequence[Hit]) -> tuple[Result, ...]:
        rows = self.opened.rows_of(hit.image_id for hit in hits)
        return tuple(
            self._result(hit, row, rank)
            for rank, (hit, row) in enumerate(zip(hits, rows, strict=True), start=1)
            if row is not None
        )

    def _result(self, hit: Hit, row: Row, rank: int) -> Result:
        return Result(
            image_id=hit.image_id,
            score=hit.score,
            uri=uri_of(self.catalogue.sources[row.source], row.key),
            source=row.source,
            key=row.key,
            metadata=row.metadata,
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

    def opened(generation: Generation) -> Searcher:
        group = open_group(gallery, generation, generation.shards, cache)
        return Searcher(gallery, group, read_catalogue(gallery, generation.catalogue), compute)

    return newest_whole(gallery, number, opened)


def uri_of(url: str, key: str) -> str:
    """Where an image of a source lies: what its `Source.uri` says, also when the source is gone."""
    kind, colon, _ = url.partition(":")
    if colon and kind in KINDS:
        return f"{url}#{key}"
    path = url.removeprefix("file://").removeprefix("file:")
    root = url if "://" in path else os.path.realpath(path)
    return f"{root.rstrip('/')}/{key}"
