"""Search in one generation: images or vectors in, ranked images with their place and metadata out."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
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
from index.opened import Hits, OpenGeneration, open_generation
from index.projection import l2_normalised
from ingest.catalogue import METADATA_PREFIX, READERS, Catalogue, read_catalogue
from ingest.errors import NotFound
from ingest.gallery import Gallery
from ingest.outcomes import Rejected
from ingest.records import decode_key
from ingest.sources import KINDS
from ingest.tables import decode_table, read_object
from serve.query import ImageQuery, QueryEncoder, open_query_encoder

_PARTS_KEPT = 256  # listings of parts in memory: at most 1,024 rows each, some 50 MB in all


@dataclass(frozen=True)
class Result:
    """One image that was found.

    score: inner product with the query as the index estimates it, in [-1, 1].
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


@dataclass(frozen=True)
class Answer:
    """What was found for one query, best first; or why the query could not be used."""

    query: str
    results: tuple[Result, ...] = ()
    rejected: Rejected | None = None


class Searcher:
    """An opened generation that answers. A context manager; may be shared by threads.

    Attributes:
        opened: the generation, in memory.
        catalogue: the commit that it covers.
    """

    def __init__(
        self, gallery: Gallery, opened: OpenGeneration, catalogue: Catalogue, cache: Cache | None
    ) -> None:
        self.gallery, self.opened, self.catalogue = gallery, opened, catalogue
        self._listings = _Listings(gallery, catalogue, cache)
        self._opening = Lock()
        self._encoder: QueryEncoder | None = None

    @property
    def encoder(self) -> QueryEncoder:
        """What turns query images into vectors; opened when it is first asked for.

        Raises:
            BadInput: the gallery's vectors came ready-made.
        """
        with self._opening:
            if self._encoder is None:
                self._encoder = open_query_encoder(self.gallery, self.opened.generation)
            return self._encoder

    def search_images(
        self, queries: Sequence[ImageQuery], top: int = 10, nprobe: int | None = None
    ) -> list[Answer]:
        """The `top` best images for each query image; fewer only if the gallery has fewer.

        Args:
            nprobe: lists to read first, instead of the recipe's number.

        Raises:
            BadInput: `top` is below 1, a box lies outside its image, or the vectors came ready-made.
        """
        encoded = self.encoder.encode(queries)
        used = [vector for vector in encoded if not isinstance(vector, Rejected)]
        found = iter(self._search(np.stack(used), top, nprobe) if used else ())
        return [
            Answer(query.name, rejected=vector)
            if isinstance(vector, Rejected)
            else Answer(query.name, next(found))
            for query, vector in zip(queries, encoded, strict=True)
        ]

    def search_vectors(
        self,
        vectors: Float32[np.ndarray, "q d"],
        top: int = 10,
        nprobe: int | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Answer]:
        """The `top` best images for each vector, which is L2-normalised first.

        Args:
            names: of the queries; their row numbers by default.

        Raises:
            BadInput: the vectors' dimension is not the gallery's, or they are not finite.
        """
        named = [str(row) for row in range(len(vectors))] if names is None else names
        found = self._search(l2_normalised(np.asarray(vectors, np.float32)), top, nprobe)
        return [Answer(name, results) for name, results in zip(named, found, strict=True)]

    def similar_to(self, image_id: int, top: int = 10, nprobe: int | None = None) -> Answer:
        """The `top` best images for an image of the gallery, by its stored vector; itself left out.

        Raises:
            NotFound: the generation has no such image.
        """
        part, row = self.opened.locate(image_id)
        rows, _, vectors = read_encodings(self.gallery, self.opened.generation.models.encodings, part)
        hits = self.opened.search(vectors[rows == row], top + 1, nprobe)
        others = np.flatnonzero(hits.image_ids[0] != image_id)[:top]
        kept = Hits(hits.scores[:, others], hits.image_ids[:, others])
        return Answer(str(image_id), self._results(kept)[0])

    def image(self, image_id: int, score: float = 1.0, rank: int = 0) -> Result:
        """Where an image of the generation lies, and what came with it; `NotFound` if it has none such."""
        part, row = self.opened.locate(image_id)
        return self._result(image_id, score, rank, part, self._listings.read([part])[part], row)

    def _search(self, vectors: np.ndarray, top: int, nprobe: int | None) -> list[tuple[Result, ...]]:
        live = max(1, self.opened.generation.counts["live"])
        return self._results(self.opened.search(vectors, min(top, live), nprobe))

    def _results(self, hits: Hits) -> list[tuple[Result, ...]]:
        places = {
            int(image): self.opened.locate(int(image)) for image in np.unique(hits.image_ids) if image >= 0
        }
        listings = self._listings.read({part for part, _ in places.values()})
        answers = []
        for scores, ids in zip(hits.scores.tolist(), hits.image_ids.tolist(), strict=True):
            found = [(image, score) for image, score in zip(ids, scores, strict=True) if image >= 0]
            answers.append(
                tuple(
                    self._result(
                        image, score, rank, places[image][0], listings[places[image][0]], places[image][1]
                    )
                    for rank, (image, score) in enumerate(found, start=1)
                )
            )
        return answers

    def _result(
        self, image_id: int, score: float, rank: int, part: str, listing: "_Listing", row: int
    ) -> Result:
        source = listing.source
        key = decode_key(listing.table["key"][row].as_py())
        values = {name: listing.table[METADATA_PREFIX + name][row].as_py() for name in listing.metadata}
        metadata = {name: value for name, value in values.items() if value is not None}
        return Result(
            image_id, score, uri_of(self.catalogue.sources[source], key), source, key, metadata, rank
        )

    def close(self) -> None:
        """Ends the encoder's decoding process, if there is one."""
        with self._opening:
            if self._encoder is not None:
                self._encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_searcher(gallery: Gallery, number: int | None = None, cache: Cache | None = None) -> Searcher:
    """Opens a generation for search, the newest by default.

    Raises:
        NotFound: there is no such generation, or it was collected.
        Corrupt: an object is not what its manifest names; it is named.
    """
    opened = open_generation(gallery, number, cache)
    return Searcher(gallery, opened, read_catalogue(gallery, opened.generation.catalogue), cache)


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
