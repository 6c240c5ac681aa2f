"""Features of single images, wherever they lie: stored ones by a ranged read, others from the image.

What a recipe does not store (`storage: none`) is computed from the image on demand, and kept in memory,
oldest out first: a server and an evaluation ask for the same candidates again and again.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import NamedTuple, Self

from ingest.catalogue import READERS, Catalogue, read_part
from ingest.compute import Compute
from ingest.decode import Decoded
from ingest.decoder import Decoder
from ingest.describe import ImageDescriber
from ingest.errors import NotFound, Unavailable
from ingest.features import FeatureSettings, FeatureTable
from ingest.gallery import Gallery
from ingest.image_features import Arrays, ImageFeatures
from ingest.outcomes import Outcome, Rejected
from ingest.records import decode_key, sha256
from ingest.sources import Source, VectorSource, open_source
from ingest.weights import weights_loader

_ROWS_KEPT = 65_536  # of tables of features, some 1.5 kB each


class Place(NamedTuple):
    """Where an image's row is: the digest of its part, and the row in it."""

    part: str
    row: int


class FeatureReader:
    """Reads the features of single images. A context manager; may be shared by threads.

    Args:
        catalogue: whose parts are read, and whose sources have the images of what must be computed.
        cache_bytes: of computed arrays that are kept.
    """

    def __init__(
        self,
        gallery: Gallery,
        settings: FeatureSettings,
        catalogue: Catalogue,
        compute: Compute,
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        self._gallery, self._settings = gallery, settings
        self._tables: OrderedDict[str, FeatureTable] = OrderedDict()
        self._lock = Lock()
        self._computer = _Computer(gallery, settings, catalogue, compute, cache_bytes)

    def read(self, places: Sequence[Place], labels: Collection[str]) -> list[ImageFeatures | Rejected]:
        """The features of each place under some labels, in the order of the places.

        Returns:
            A rejection for an image that has none, or that cannot be computed any more (its file is
            gone, or is another one now).

        Raises:
            NotFound, Corrupt: what is stored is gone, or damaged.
        """
        stored = set(labels) & self._settings.stored.keys()
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda place: self._stored(place, stored), places))
        computed = set(labels) - stored
        if not computed:
            return found
        return [
            features
            if isinstance(features, Rejected)
            else self._computer.added(place, features, computed, self._table(place.part).sha256(place.row))
            for place, features in zip(places, found, strict=True)
        ]

    def _stored(self, place: Place, labels: Collection[str]) -> ImageFeatures | Rejected:
        for _, features in self._table(place.part).read([place.row], labels):
            return features
        return self._table(place.part).rejected(place.row)

    def _table(self, part: str) -> FeatureTable:
        with self._lock:
            if part in self._tables:
                self._tables.move_to_end(part)
                return self._tables[part]
        table = FeatureTable(self._gallery, self._settings.digest, part)
        with self._lock:
            self._tables[part] = table
            while (
                len(self._tables) > 1 and sum(len(kept.rows) for kept in self._tables.values()) > _ROWS_KEPT
            ):
                self._tables.popitem(last=False)
        return table

    def close(self) -> None:
        self._computer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Computer:
    """Describes single images anew, and keeps what it computed."""

    def __init__(
        self,
        gallery: Gallery,
        settings: FeatureSettings,
        catalogue: Catalogue,
        compute: Compute,
        cache_bytes: int,
    ) -> None:
        self._gallery, self._settings, self._compute = gallery, settings, compute
        self._catalogue = catalogue
        self._sources: dict[str, Source | VectorSource] = {}
        self._cache: OrderedDict[tuple[Place, str], Arrays] = OrderedDict()
        self._left = cache_bytes
        self._lock = Lock()
        self._decoder: Decoder | None = None
        self._closed = False
        self._describers: dict[frozenset[str], ImageDescriber] = {}

    def added(
        self, place: Place, features: ImageFeatures, labels: Collection[str], checksum: str
    ) -> ImageFeatures | Rejected:
        """The features with those of more labels.

        Args:
            checksum: sha256 of the image's file as it was described.
        """
        with self._lock:  # one image at a time: a network uses all threads
            missing = frozenset(label for label in labels if (place, label) not in self._cache)
            if missing:
                described = self._describe(place, missing, checksum)
                if isinstance(described, Rejected):
                    return described
                for label in missing:
                    self._cache[place, label] = described.of(label)
                    self._left -= _size(described.of(label))
            more = {label: self._cache[place, label] for label in labels}
            for label in labels:
                self._cache.move_to_end((place, label))
            while self._left < 0 and self._cache:
                self._left += _size(self._cache.popitem(last=False)[1])
        return replace(features, by_label={**features.by_label, **more})

    def _describe(self, place: Place, labels: frozenset[str], checksum: str) -> ImageFeatures | Rejected:
        image = self._image(place, checksum)
        if isinstance(image, Rejected):
            return image
        if labels not in self._describers:
            chosen = {label: self._settings.describe[label] for label in sorted(labels)}
            self._describers[labels] = ImageDescriber(chosen, weights_loader(self._gallery), self._compute)
        return self._describers[labels].describe([image])[0]

    def _image(self, place: Place, checksum: str) -> Decoded | Rejected:
        part = self._catalogue.parts[self._catalogue.position[place.part]]
        key = read_part(self._gallery, part, ["key"])["key"][place.row].as_py()
        try:
            data = self._source(part.source).read(decode_key(key), self._settings.decode.max_bytes)
        except NotFound:
            return Rejected(Outcome.MISSING, "it was listed, and is gone")
        if sha256(data) != checksum:
            return Rejected(Outcome.CHANGED, "it is not the file that was described any more")
        if self._closed:  # or its new decoding process would be nobody's to end
            raise Unavailable("this reader was closed meanwhile; ask again")
        if self._decoder is None:
            self._decoder = Decoder(self._settings.decode)
        return self._decoder.decode(data)

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = open_source(f"{name}={self._catalogue.sources[name]}")
        source = self._sources[name]
        assert isinstance(source, Source), "features are of images"
        return source

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._decoder is not None:
                self._decoder.close()
                self._decoder = None


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
