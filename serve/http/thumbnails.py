"""Small pictures of gallery images and of uploads: decoded in a child process, written anew as JPEG.

Nothing of the file but its pixels comes out: no EXIF, no place, no profile, no comment. A gallery's image is
shown only while its file is the one that was described: what was replaced since is another image.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from index.generation import read_generation
from ingest.catalogue import Catalogue, read_catalogue
from ingest.decode import Decoded, DecodeSettings
from ingest.decoder import Decoder
from ingest.errors import NotFound
from ingest.feature_reader import Place
from ingest.gallery import Gallery, features_path
from ingest.outcomes import Outcome, Rejected
from ingest.records import sha256
from ingest.sources import Source, open_source
from ingest.tables import read_table
from serve.refusals import ImageRejected

SIZES = (64, 128, 256, 512, 1024)
"""Pixels of the longest side that there are; what is asked for is rounded up."""

_DECODED = (256, 1024)  # what the decoders reduce to; the rest is reduced from there
_QUALITY = 82
_PARTS_KEPT = 256
_VIEWS_KEPT = 2


class Thumbnail(NamedTuple):
    """data: a JPEG file. etag: of its content, with the quotes of the header."""

    data: bytes
    etag: str


class NoThumbnail(NotFound):
    """There is an image, and no picture of it; `reason` is a word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class _View:
    """What is needed of a generation. features: their digest; None for ready-made vectors."""

    features: str | None
    catalogue: Catalogue
    limits: DecodeSettings


class Thumbnails:
    """Makes thumbnails and keeps the last ones. Thread-safe; calls block. A context manager.

    Args:
        cache_bytes: of thumbnails that are kept in memory.
        decoders: decoding processes of either kind (small, large), started when they are first needed.
        limits: of uploads, and of whatever is shown.
    """

    def __init__(
        self,
        gallery: Gallery,
        cache_bytes: int = 64 * 2**20,
        decoders: int = 1,
        limits: DecodeSettings | None = None,
    ) -> None:
        self._gallery = gallery
        self._limits = limits or DecodeSettings()
        self._cache = _Cache(cache_bytes)
        self._pools = {side: _Decoders(_settings(self._limits, side), decoders) for side in _DECODED}
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._sources: dict[tuple[str, str], Source] = {}
        self._checksums: OrderedDict[tuple[str, str], list[str | None]] = OrderedDict()
        self._lock = threading.Lock()

    def of_image(self, generation: int, place: Place, key: str, size: int) -> Thumbnail:
        """A picture of an image of the gallery.

        Args:
            generation: one that has the image; `place` and `key`: of its row.
            size: pixels of the longest side, rounded up to one of `SIZES`.

        Raises:
            NoThumbnail: its file is gone, was replaced or cannot be decoded, or the vectors came ready-made.
            NotFound, Corrupt: what is stored about it is gone, or damaged.
            Unavailable: the store, or the source, did not answer.
        """
        chosen = rounded(size)
        found = self._cache.get((*place, chosen))
        if found is None:
            picture = self._picture(self._read(generation, place, key), chosen)
            if isinstance(picture, Rejected):
                raise NoThumbnail(str(picture.reason), f"{key} cannot be shown: {picture.detail}")
            found = picture
            self._cache.put((*place, chosen), found)
        return found

    def of_upload(self, digest: str, data: bytes, size: int) -> Thumbnail:
        """A picture of an upload.

        Raises:
            ImageRejected: it cannot be decoded.
        """
        chosen = rounded(size)
        found = self._cache.get((digest, -1, chosen))
        if found is None:
            picture = self._picture(data, chosen)
            if isinstance(picture, Rejected):
                raise ImageRejected("the upload", picture)
            found = picture
            self._cache.put((digest, -1, chosen), found)
        return found

    def _read(self, generation: int, place: Place, key: str) -> bytes:
        """The file, if it is the one that was described."""
        view = self._view(generation)
        if view.features is None:
            raise NoThumbnail(
                "no_images", "the gallery holds ready-made vectors: there are no images to show"
            )
        if place.part not in view.catalogue.position:
            raise NotFound(f"generation {generation} has no part {place.part}: ask for the image again")
        checksum = self._checksum(view.features, place)
        name = view.catalogue.parts[view.catalogue.position[place.part]].source
        try:
            data = self._source(name, view.catalogue.sources[name]).read(key, view.limits.max_bytes)
        except NotFound:
            raise NoThumbnail(str(Outcome.MISSING), f"{key} is not in {name} any more") from None
        if sha256(data) != checksum:
            message = f"{key} in {name} is not the file that was described any more: ingest it again"
            raise NoThumbnail(str(Outcome.CHANGED), message)
        return data

    def _picture(self, data: bytes, size: int) -> Thumbnail | Rejected:
        side = next(side for side in _DECODED if side >= size)
        with self._pools[side].one() as decoder:
            decoded = decoder.decode(data)
        return decoded if isinstance(decoded, Rejected) else _encoded(decoded, size)

    def _view(self, number: int) -> _View:
        with self._lock:
            if number in self._views:
                return self._views[number]
        generation = read_generation(self._gallery, number)
        recipe = generation.recipe
        limits = self._limits if recipe.features is None else recipe.features.decode
        catalogue = read_catalogue(self._gallery, generation.catalogue)
        view = _View(generation.models.features, catalogue, limits)
        with self._lock:
            self._views[number] = view
            while len(self._views) > _VIEWS_KEPT:
                self._views.popitem(last=False)
        return view

    def _checksum(self, features: str, place: Place) -> str | None:
        with self._lock:
            if (features, place.part) in self._checksums:
                self._checksums.move_to_end((features, place.part))
                return self._checksums[features, place.part][place.row]
        table = read_table(self._gallery.store, features_path(features, place.part))
        checksums: list[str | None] = table["sha256"].to_pylist()
        with self._lock:
            self._checksums[features, place.part] = checksums
            while len(self._checksums) > _PARTS_KEPT:
                self._checksums.popitem(last=False)
        return checksums[place.row]

    def _source(self, name: str, url: str) -> Source:
        with self._lock:
            if (name, url) not in self._sources:
                source = open_source(f"{name}={url}")
                if not isinstance(source, Source):
                    raise NoThumbnail("no_images", f"{name} holds vectors: there are no images to show")
                self._sources[name, url] = source
            return self._sources[name, url]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def __enter__(self) -> "Thumbnails":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rounded(size: int) -> int:
    """The least of `SIZES` that is as large; the largest where none is."""
    return next((each for each in SIZES if each >= size), SIZES[-1])


def _settings(limits: DecodeSettings, side: int) -> DecodeSettings:
    return limits.model_copy(update={"longest_side": side, "shortest_side_least": 1})


def _encoded(decoded: Decoded, size: int) -> Thumbnail:
    image = Image.fromarray(decoded.pixels)
    if size < max(image.size):
        scale = size / max(decoded.width, decoded.height)
        width, height = (max(1, round(side * scale)) for side in (decoded.width, decoded.height))
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(file.getvalue(), f'"{sha256(file.getvalue())[:32]}"')


class _Decoders:
    """Decoders of one kind, lent to one caller at a time, the one used last first."""

    def __init__(self, settings: DecodeSettings, most: int) -> None:
        self._settings = settings
        self._free: list[Decoder] = []
        self._room = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        with self._room:
            with self._lock:
                decoder = self._free.pop() if self._free else Decoder(self._settings)
            try:
                yield decoder
            finally:
                with self._lock:
                    self._free.append(decoder)
                    if self._closed:
                        decoder.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for decoder in self._free:
                decoder.close()


class _Cache:
    """Thumbnails by what they show, the last used ones, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._kept: OrderedDict[tuple[str, int, int], Thumbnail] = OrderedDict()
        self._left = most_bytes
        self._lock = threading.Lock()

    def get(self, name: tuple[str, int, int]) -> Thumbnail | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: tuple[str, int, int], thumbnail: Thumbnail) -> None:
        with self._lock:
            before = self._kept.pop(name, None)
            self._left += 0 if before is None else len(before.data)
            self._kept[name] = thumbnail
            self._left -= len(thumbnail.data)
            while self._left < 0 and self._kept:
                self._left += len(self._kept.popitem(last=False)[1].data)
