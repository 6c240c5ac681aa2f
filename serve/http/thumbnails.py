"""Small pictures of gallery images and of uploads: decoded in a child process, written anew as JPEG.

Nothing of the file but its pixels comes out: no EXIF, no place, no profile, no comment. A gallery's image is
shown only while its file is the one that was described: what was replaced since is another image.
"""

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from index.generation import read_generation
from index.kept import Kept
from ingest.catalogue import Catalogue, read_catalogue
from ingest.decode import Decoded, DecodeSettings
from ingest.decoder_pool import DecoderPool
from ingest.errors import NotFound, Unavailable
from ingest.feature_reader import Place
from ingest.gallery import Gallery, features_path
from ingest.outcomes import Outcome, Rejected
from ingest.records import sha256
from ingest.sources import Source, open_source
from ingest.tables import read_table
from serve.refusals import Away, ImageRejected

SIZES = (64, 128, 256, 512, 1024)
"""Pixels of the longest side that there are; what is asked for is rounded up."""

_DECODED = (256, 1024)  # what the decoders reduce to; the rest is reduced from there
_QUALITY = 82
_PARTS_KEPT = 256
_VIEWS_KEPT = 2
_SOURCES_KEPT = 64


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
        self._processes = decoders
        self._pools: dict[int, DecoderPool] = {}
        self._views: Kept[_View] = Kept(_VIEWS_KEPT)
        self._sources: Kept[Source] = Kept(_SOURCES_KEPT)
        self._checksums: Kept[list[str | None]] = Kept(_PARTS_KEPT)
        self._lock = threading.Lock()
        self._closed = False

    def of_image(self, generation: int, place: Place, key: str, size: int) -> Thumbnail:
        """A picture of an image of the gallery.

        Args:
            generation: one that has the image; `place` and `key`: of its row.
            size: pixels of the longest side, rounded up to one of `SIZES`.

        Raises:
            NoThumbnail: its file is gone, was replaced or cannot be decoded, or the vectors came ready-made.
            NotFound, Corrupt: what is stored about it is gone, or damaged.
            Unavailable: the store, or the source, did not answer. Away: nothing can be decoded now.
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
            ImageRejected: it cannot be decoded. Away: nothing can be decoded now.
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
        view = self._views.get(generation, lambda: self._view(generation))
        features = view.features
        if features is None:
            raise NoThumbnail(
                "no_images", "the gallery holds ready-made vectors: there are no images to show"
            )
        if place.part not in view.catalogue.position:
            raise NotFound(f"generation {generation} has no part {place.part}: ask for the image again")
        part = self._checksums.get((features, place.part), lambda: self._checksums_of(features, place.part))
        name = view.catalogue.parts[view.catalogue.position[place.part]].source
        url = view.catalogue.sources[name]
        source = self._sources.get((name, url), lambda: _opened(name, url))
        try:
            data = source.read(key, view.limits.max_bytes)
        except NotFound:
            raise NoThumbnail(str(Outcome.MISSING), f"{key} is not in {name} any more") from None
        if sha256(data) != part[place.row]:
            message = f"{key} in {name} is not the file that was described any more: ingest it again"
            raise NoThumbnail(str(Outcome.CHANGED), message)
        return data

    def _picture(self, data: bytes, size: int) -> Thumbnail | Rejected:
        side = next(side for side in _DECODED if side >= size)
        try:
            decoded = self._decoders(side).decode(data)
        except Unavailable as error:
            raise Away("thumbnails cannot start their decoding process: try again soon") from error
        return decoded if isinstance(decoded, Rejected) else _encoded(decoded, size)

    def _decoders(self, side: int) -> DecoderPool:
        """Those that reduce images to that side, started when they are first needed."""
        with self._lock:
            if self._closed:
                raise Away("the server is ending")
            if side not in self._pools:
                self._pools[side] = DecoderPool(_settings(self._limits, side), self._processes)
            return self._pools[side]

    def _view(self, number: int) -> _View:
        generation = read_generation(self._gallery, number)
        recipe = generation.recipe
        limits = self._limits if recipe.features is None else recipe.features.decode
        catalogue = read_catalogue(self._gallery, generation.catalogue)
        return _View(generation.models.features, catalogue, limits)

    def _checksums_of(self, features: str, part: str) -> list[str | None]:
        """Of the files of a part as they were described, by row."""
        table = read_table(self._gallery.store, features_path(features, part))
        checksums: list[str | None] = table["sha256"].to_pylist()
        return checksums

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for pool in self._pools.values():
                pool.close()

    def __enter__(self) -> "Thumbnails":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(name: str, url: str) -> Source:
    source = open_source(f"{name}={url}")
    if not isinstance(source, Source):
        raise NoThumbnail("no_images", f"{name} holds vectors: there are no images to show")
    return source


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
