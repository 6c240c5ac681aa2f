"""Extraction: every image of a part is read, decoded and described; the outcome of each is stored.

`features/<digest>/<part>.parquet` has one row for each row of the part. The arrays of the images that are
`ok` lie one after the other in `<part>.<checksum>.blob`, each as a safetensors record with its own sha256, so
that one image is one ranged, checked read. The blob is written first: a table that is there is complete.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from ingest.catalogue import PartRef, read_part
from ingest.decode import DECODE_VERSION, Decoded, DecodeSettings
from ingest.decoder import Decoder
from ingest.errors import Corrupt, NotFound
from ingest.freed_memory import keep_freed_memory
from ingest.gallery import Gallery, blob_path, features_path
from ingest.outcomes import Outcome, Rejected
from ingest.records import decode_key, digest_of, sha256
from ingest.sift import SiftSettings, describe
from ingest.sources import Source
from ingest.tables import ObjectRef, decode_table, encode_table, read_table, write_object

FORMAT = 1

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("sha256", pa.string()),  # of the image file
        ("width", pa.int32()),  # of the original, after EXIF orientation
        ("height", pa.int32()),
        ("count", pa.int32()),  # local features
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("checksum", pa.string()),  # sha256 of the record in the blob
    ]
)


class FeatureSettings(BaseModel):
    """How images become features: everything here changes the output, so it is part of the digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode: DecodeSettings = Field(default_factory=DecodeSettings, description="limits and size of images")
    describe: SiftSettings = Field(default_factory=SiftSettings, description="the local features")

    @property
    def digest(self) -> str:
        """The name of the folder of these features."""
        versions = {"format": FORMAT, "decode": DECODE_VERSION}
        return digest_of({"stage": "features", **versions, "settings": self.model_dump(mode="json")})


def describe_image(image: Decoded, settings: FeatureSettings) -> dict[str, np.ndarray] | Rejected:
    """The local features of a decoded image, in pixels of the original.

    Returns:
        Arrays by name as `ingest.sift.describe` states them, keypoints and diameters scaled to the
        original image; or a rejection where there is nothing to describe.
    """
    local = describe(image.pixels, settings.describe)
    if len(local["descriptors"]) == 0:
        return Rejected(Outcome.NO_FEATURES, "no keypoint was found")
    height, width = image.pixels.shape[:2]
    corners = image.to_original(np.array([[0, 0], [width, height]], np.float32))
    scale = float(np.sqrt(np.prod((corners[1] - corners[0]) / (width, height))))
    moved = {
        "keypoints": image.to_original(local["keypoints"]),
        "diameters": (local["diameters"] * scale).astype(np.float32),
    }
    return local | moved


@dataclass(frozen=True)
class PartFeatures:
    """What extraction found in a part: its rows, and their count by outcome."""

    part: str
    rows: int
    outcomes: Mapping[str, int]

    @property
    def rejects(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != Outcome.OK)


@dataclass(frozen=True)
class ExtractWorker:
    """Extracts parts; runs in any engine. What is there already, intact, is adopted."""

    gallery: Gallery
    sources: Mapping[str, Source]
    settings: FeatureSettings

    def start(self) -> "_Extractor":
        return _Extractor(self)


class _Extractor:
    def __init__(self, job: ExtractWorker) -> None:
        self.job = job
        self.decoder = Decoder(job.settings.decode)
        keep_freed_memory()
        # Here, while the decoder starts, instead of in the first part.
        import cv2  # noqa: F401
        import safetensors.numpy  # noqa: F401

    def __call__(self, part: PartRef) -> PartFeatures:
        digest, store = self.job.settings.digest, self.job.gallery.store
        try:
            return existing_features(self.job.gallery, digest, part)
        except NotFound:
            pass
        rows, blob = self._extract(part)
        checksum = sha256(blob)
        blob_ref = write_object(store, blob_path(digest, part.part, checksum), blob, checksum=checksum)
        table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(blob_metadata(blob_ref))
        path = features_path(digest, part.part)
        if not store.create(path, encode_table(table, path)):
            # Somebody else was first. Outcomes may differ where files came and went: the first table holds.
            return existing_features(self.job.gallery, digest, part)
        return PartFeatures(part.part, table.num_rows, Counter(row["outcome"] for row in rows))

    def _extract(self, part: PartRef) -> tuple[list[dict[str, Any]], bytes]:
        from safetensors.numpy import save

        listed = read_part(self.job.gallery, part, ["image_id", "key", "size", "version"]).to_pylist()
        source = self.job.sources[part.source]
        hashes: list[str | None] = []
        rows: list[dict[str, Any]] = []
        records: list[bytes] = []
        offset = 0
        decoded = self.decoder.decode_ahead(_read_images(source, listed, hashes, self.job.settings.decode))
        for row, image in zip(listed, decoded, strict=True):
            local = image if isinstance(image, Rejected) else describe_image(image, self.job.settings)
            entry = {"image_id": row["image_id"], "sha256": hashes[len(rows)]}
            if isinstance(image, Decoded):
                entry |= {"width": image.width, "height": image.height}
            if isinstance(local, Rejected):
                rows.append(entry | {"outcome": str(local.reason), "detail": local.detail})
                continue
            record = save(local)
            place = {"offset": offset, "length": len(record), "checksum": sha256(record)}
            rows.append(entry | {"outcome": "ok", "count": len(local["descriptors"])} | place)
            records.append(record)
            offset += len(record)
        return rows, b"".join(records)

    def close(self) -> None:
        self.decoder.close()


def _read_images(
    source: Source, rows: list[dict[str, Any]], hashes: list[str | None], settings: DecodeSettings
) -> Iterator[bytes | Rejected]:
    """The bytes of each listed image, or why there are none; notes the sha256 of what was read."""
    for row in rows:
        try:
            data = source.read(decode_key(row["key"]), max_bytes=settings.max_bytes)
        except NotFound:
            hashes.append(None)
            yield Rejected(Outcome.MISSING, "it was listed, and is gone")
            continue
        hashes.append(sha256(data))
        if len(data) != row["size"] and len(data) <= settings.max_bytes:
            yield Rejected(Outcome.CHANGED, f"{row['size']} bytes were listed, {len(data)} were read")
        else:
            yield data


def existing_features(gallery: Gallery, features: str, part: PartRef) -> PartFeatures:
    """What an earlier run extracted of a part; `NotFound` if it did not, `Corrupt` if it is damaged."""
    path = features_path(features, part.part)
    data = gallery.store.read(path)
    table = decode_table(data, gallery.store.where(path), name=path)
    size = int(table.schema.metadata[b"blob_size"])
    blob = _blob_of(features, part, table)
    if gallery.store.info(blob).size != size:
        raise Corrupt(
            f"{gallery.store.where(blob)} is damaged: its size is not {size}; restore it from a copy"
        )
    return PartFeatures(part.part, table.num_rows, Counter(table["outcome"].to_pylist()))


def blob_metadata(blob: ObjectRef) -> dict[str, str]:
    """What a table of features says of its blob."""
    return {"blob_sha256": blob.sha256, "blob_size": str(blob.size)}


def _blob_of(features: str, part: PartRef, table: pa.Table) -> str:
    return blob_path(features, part.part, table.schema.metadata[b"blob_sha256"].decode())


def read_features(
    gallery: Gallery, features: str, part: PartRef, rows: list[int] | None = None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The arrays of a part's images that are `ok`, by row of the part, each checked against its checksum.

    Args:
        rows: only these rows of the part; by ranged reads where they are few.
    """
    from safetensors.numpy import load

    return ((row, load(record)) for row, record in read_records(gallery, features, part, rows))


def read_records(
    gallery: Gallery, features: str, part: PartRef, rows: list[int] | None = None
) -> Iterator[tuple[int, bytes]]:
    """As `read_features`, but the records as they are stored."""
    found = read_table(gallery.store, features_path(features, part.part))
    table, blob = found.to_pylist(), _blob_of(features, part, found)
    wanted = [row for row in (range(len(table)) if rows is None else rows) if table[row]["outcome"] == "ok"]
    read = _reader(gallery, blob, few=len(wanted) * 4 < len(table))
    for row in wanted:
        record = read(table[row]["offset"], table[row]["length"])
        if sha256(record) != table[row]["checksum"]:
            raise Corrupt(
                f"{gallery.store.where(blob)} is damaged at row {row}: it does not match its checksum; "
                "restore it from a copy"
            )
        yield row, record


def _reader(gallery: Gallery, blob: str, few: bool) -> Callable[[int, int], bytes]:
    if few:
        return lambda offset, length: gallery.store.read_range(blob, offset, length)
    data = gallery.store.read(blob)
    return lambda offset, length: data[offset : offset + length]
