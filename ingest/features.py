"""Extraction: every image of a part is read, decoded and described; the outcome of each is stored.

`features/<digest>/<part>.parquet` has one row for each row of the part. The arrays of the images that are
`ok` lie one after the other in `<part>.<checksum>.blob`: for each image and label a safetensors record with
its own sha256, so that what a reranker wants of one image is one ranged, checked read. The blob is written
first: a table that is there is complete.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from ingest.catalogue import PartRef, read_part
from ingest.compute import Compute
from ingest.decode import DECODE_VERSION, Decoded, DecodeSettings
from ingest.decoder_pool import DecoderPool
from ingest.describe import DescribeSettings, ImageDescriber
from ingest.errors import Corrupt, NotFound
from ingest.freed_memory import keep_freed_memory
from ingest.gallery import Gallery, blob_path, features_path
from ingest.image_features import ImageFeatures, packed
from ingest.outcomes import Outcome, Rejected
from ingest.records import decode_key, digest_of, sha256
from ingest.sift import SiftSettings
from ingest.sources import Source
from ingest.tables import ObjectRef, decode_table, encode_table, read_table, write_object
from ingest.weights import network_of, weights_digests, weights_loader, without_sources

FORMAT = 2

RECORD = pa.struct(
    [
        ("label", pa.string()),
        ("offset", pa.int64()),  # in the blob
        ("length", pa.int64()),
        ("checksum", pa.string()),  # sha256
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("sha256", pa.string()),  # of the image file
        ("width", pa.int32()),  # of the original, after EXIF orientation
        ("height", pa.int32()),
        ("scale", pa.float64()),  # original pixels a pixel of the image as it was described
        ("records", pa.list_(RECORD)),
    ]
)


def _sift_alone() -> dict[str, DescribeSettings]:
    return {"local": SiftSettings()}


class FeatureSettings(BaseModel):
    """How images become features: everything here changes the output, so it is part of the digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode: DecodeSettings = Field(default_factory=DecodeSettings, description="limits and size of images")
    describe: dict[str, DescribeSettings] = Field(
        default_factory=_sift_alone,
        min_length=1,
        description="what is looked for in an image, by label; encoders and steps name the label that they "
        "read (`reads`): `local` for local features, `global` for pooled ones, `pyramid` for CVNet's, if not "
        "told",
    )

    @property
    def digest(self) -> str:
        """The name of the folder of these features.

        Raises:
            BadInput: a network's weights have not been read yet (`ingest.weights.read_describers_weights`).
        """
        versions = {"format": FORMAT, "decode": DECODE_VERSION}
        settings = without_sources(self.model_dump(mode="json"))
        return digest_of({"stage": "features", **versions, "settings": settings})

    @property
    def stored(self) -> dict[str, DescribeSettings]:
        """What is stored, by label; the rest is computed from the image when it is looked at again."""
        return {
            label: settings
            for label, settings in self.describe.items()
            if getattr(settings, "storage", None) != "none"
        }

    @property
    def weights(self) -> set[str]:
        """The digests of the weights of all networks."""
        return weights_digests(self.describe.values())


@dataclass(frozen=True)
class PartFeatures:
    """What extraction found in a part: its rows, and their count by outcome.

    seconds: by stage (read, decode, describe, write), what this run spent on it; empty where an earlier run
        did the work. Reading and decoding go on while images are described: of decoding, what was waited for.
    """

    part: str
    rows: int
    outcomes: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def rejects(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != Outcome.OK)


@dataclass(frozen=True)
class ExtractWorker:
    """Extracts parts; runs in any engine. What is there already, intact, is adopted."""

    gallery: Gallery
    sources: Mapping[str, Source]
    settings: FeatureSettings
    compute: Compute = field(default_factory=Compute)

    @property
    def wants_gpu(self) -> bool:
        networks = map(network_of, self.settings.stored.values())
        return self.compute.device != "cpu" and any(network is not None for network in networks)

    def start(self) -> "_Extractor":
        return _Extractor(self)


class _Extractor:
    def __init__(self, job: ExtractWorker) -> None:
        self.job = job
        keep_freed_memory()
        self.describer = ImageDescriber(job.settings.stored, weights_loader(job.gallery), job.compute)
        processes = job.compute.decoding_processes(self.describer.devices)
        self.decoder = DecoderPool(job.settings.decode, processes)
        # Here, while the decoder starts, instead of in the first part.
        import cv2  # noqa: F401
        import safetensors.numpy  # noqa: F401

    def __call__(self, part: PartRef) -> PartFeatures:
        digest, store = self.job.settings.digest, self.job.gallery.store
        try:
            return existing_features(self.job.gallery, digest, part)
        except NotFound:
            pass
        clock = _Clock()
        rows, blob = self._extract(part, clock)
        with clock.measure("write"):
            checksum = sha256(blob)
            blob_ref = write_object(store, blob_path(digest, part.part, checksum), blob, checksum=checksum)
            table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(blob_metadata(blob_ref))
            path = features_path(digest, part.part)
            if not store.create(path, encode_table(table, path)):
                # Somebody else was first. Outcomes may differ where files came and went: the first holds.
                return existing_features(self.job.gallery, digest, part)
        outcomes = Counter(row["outcome"] for row in rows)
        return PartFeatures(part.part, table.num_rows, outcomes, clock.seconds)

    def _extract(self, part: PartRef, clock: "_Clock") -> tuple[list[dict[str, Any]], bytes]:
        listed = read_part(self.job.gallery, part, ["image_id", "key", "size", "version"]).to_pylist()
        source = self.job.sources[part.source]
        hashes: list[str | None] = []
        records: list[Record] = []
        rows: list[dict[str, Any]] = []
        images = _read_images(source, listed, hashes, self.job.settings.decode, clock)
        decoded = self.decoder.decode_ahead(images)
        while window := self._window(decoded, clock):
            with clock.measure("describe"):
                found = self._describe(window)
            for image, features in zip(window, found, strict=True):
                row = listed[len(rows)]
                entry = {"image_id": row["image_id"], "sha256": hashes[len(rows)]}
                if isinstance(image, Decoded):
                    entry |= {"width": image.width, "height": image.height}
                rows.append(entry | _outcome(features, records))
        return rows, laid_out(records)

    def _window(self, decoded: Iterator[Decoded | Rejected], clock: "_Clock") -> list[Decoded | Rejected]:
        """The next images; what was waited for beyond reading counts as decoding."""
        read = clock.seconds.get("read", 0.0)
        with clock.measure("decode"):
            window = list(islice(decoded, self.describer.window))
        if self.decoder.processes == 1:  # reading was part of the waiting
            clock.seconds["decode"] -= clock.seconds.get("read", 0.0) - read
        return window

    def _describe(self, window: list[Decoded | Rejected]) -> list[ImageFeatures | Rejected]:
        described = iter(self.describer.describe([image for image in window if isinstance(image, Decoded)]))
        return [next(described) if isinstance(image, Decoded) else image for image in window]

    def close(self) -> None:
        self.decoder.close()


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


Record = tuple[dict[str, Any], bytes]  # its place, as the table has it, and its bytes


def _outcome(features: ImageFeatures | Rejected, records: list[Record]) -> dict[str, Any]:
    """What the table says of an image; its arrays are appended to the records."""
    if isinstance(features, Rejected):
        return {"outcome": str(features.reason), "detail": features.detail}
    places = []
    for label, arrays in sorted(features.by_label.items()):
        record = packed(arrays)
        places.append({"label": label, "length": len(record), "checksum": sha256(record)})
        records.append((places[-1], record))
    return {"outcome": "ok", "scale": features.scale, "records": places}


def laid_out(records: Sequence[Record]) -> bytes:
    """The blob: records label by label, so that one label of all images is one range; sets their offsets."""
    placed = sorted(records, key=lambda pair: pair[0]["label"])  # stable: the order of rows stays
    offset = 0
    for place, record in placed:
        place["offset"] = offset
        offset += len(record)
    return b"".join(record for _, record in placed)


def _read_images(
    source: Source,
    rows: list[dict[str, Any]],
    hashes: list[str | None],
    settings: DecodeSettings,
    clock: "_Clock",
) -> Iterator[bytes | Rejected]:
    """The bytes of each listed image, or why there are none; notes the sha256 of what was read."""
    for row in rows:
        try:
            with clock.measure("read"):
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
    blob = _blob_of(features, part.part, table)
    if gallery.store.info(blob).size != size:
        raise Corrupt(
            f"{gallery.store.where(blob)} is damaged: its size is not {size}; restore it from a copy"
        )
    return PartFeatures(part.part, table.num_rows, Counter(table["outcome"].to_pylist()))


def blob_metadata(blob: ObjectRef) -> dict[str, str]:
    """What a table of features says of its blob."""
    return {"blob_sha256": blob.sha256, "blob_size": str(blob.size)}


def _blob_of(features: str, part: str, table: pa.Table) -> str:
    return blob_path(features, part, table.schema.metadata[b"blob_sha256"].decode())


def read_features(
    gallery: Gallery,
    features: str,
    part: str,
    rows: list[int] | None = None,
    labels: Collection[str] | None = None,
) -> Iterator[tuple[int, ImageFeatures]]:
    """The features of a part's images that are `ok`, by row of the part, each checked against its checksum.

    Args:
        part: its digest.
        rows: only these rows of the part; by ranged reads where they are few.
        labels: only what lies under these; all by default.
    """
    return FeatureTable(gallery, features, part).read(rows, labels)


class FeatureTable:
    """The table of a part's features, and the way from it to the arrays."""

    def __init__(self, gallery: Gallery, features: str, part: str) -> None:
        self.store = gallery.store
        found = read_table(gallery.store, features_path(features, part))
        self.rows: list[dict[str, Any]] = found.to_pylist()
        self.blob = _blob_of(features, part, found)

    def rejected(self, row: int) -> Rejected:
        """Why a row that is not `ok` has no features."""
        return Rejected(Outcome(self.rows[row]["outcome"]), self.rows[row]["detail"] or "")

    def sha256(self, row: int) -> str:
        """Of the image's file, as it was described; of a row that is `ok`."""
        checksum: str = self.rows[row]["sha256"]
        return checksum

    def read(
        self, rows: list[int] | None = None, labels: Collection[str] | None = None
    ) -> Iterator[tuple[int, ImageFeatures]]:
        """See `read_features`."""
        from safetensors.numpy import load

        for number, records in self.records(rows, labels):
            row = self.rows[number]
            arrays = {label: load(record) for label, record in records.items()}
            yield number, ImageFeatures(row["width"], row["height"], row["scale"], arrays)

    def records(
        self, rows: list[int] | None = None, labels: Collection[str] | None = None
    ) -> Iterator[tuple[int, dict[str, bytes]]]:
        """As `read`, but the records by label as they are stored."""
        chosen = range(len(self.rows)) if rows is None else rows
        wanted = {
            row: [place for place in self.rows[row]["records"] if labels is None or place["label"] in labels]
            for row in chosen
            if self.rows[row]["outcome"] == "ok"
        }
        read = self._reader([place for places in wanted.values() for place in places])
        for row, places in wanted.items():
            yield row, {place["label"]: self._record(read, row, place) for place in places}

    def _record(self, read: Callable[[int, int], bytes], row: int, place: Mapping[str, Any]) -> bytes:
        record = read(place["offset"], place["length"])
        if sha256(record) != place["checksum"]:
            raise Corrupt(
                f"{self.store.where(self.blob)} is damaged at row {row}: it does not match its checksum; "
                "restore it from a copy"
            )
        return record

    def _reader(self, places: Sequence[Mapping[str, Any]]) -> Callable[[int, int], bytes]:
        """One read of all that lies between the places, unless most of it is not wanted."""
        if not places:
            return lambda offset, length: b""
        begin = min(place["offset"] for place in places)
        end = max(place["offset"] + place["length"] for place in places)
        if sum(place["length"] for place in places) * 4 < end - begin:
            return lambda offset, length: self.store.read_range(self.blob, offset, length)
        data = self.store.read_range(self.blob, begin, end - begin)
        return lambda offset, length: data[offset - begin : offset - begin + length]
