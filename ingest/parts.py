"""Listing a source into parts: what the source has and the current catalogue has not.

A part closes at 1,024 images, or at 32 once its images come to `part_bytes`: small enough that a worker
that dies costs seconds, large enough that ten million images are some hundred thousand objects.
"""

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.catalogue import (
    METADATA_PREFIX,
    Catalogue,
    LiveRows,
    PartRef,
    all_rows,
    commit_catalogue,
    read_catalogue,
)
from ingest.errors import BadInput, Conflict
from ingest.gallery import Gallery, follow, part_path
from ingest.progress import Progress
from ingest.records import decode_key, digest_of_bytes, encode_key, image_identity, sha256
from ingest.sources import Listed, Skipped, Source
from ingest.tables import encode_table, write_object

WRITERS = 8  # small objects written at once
_RELISTINGS = 20

PART_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("id_check", pa.int64()),
        ("key", pa.binary()),  # not text: names of files need not be UTF-8
        ("size", pa.int64()),
        ("version", pa.string()),
        ("version_digest", pa.int64()),
    ]
)


@dataclass(frozen=True)
class PartSizes:
    """When a part closes. Not part of any recipe: features and vectors do not depend on it.

    most_images: rows of a part at the most.
    least_images: rows below which its bytes do not close it.
    bytes: size of its images that closes it.
    """

    most_images: int = 1024
    least_images: int = 32
    bytes: int = 4 * 2**20

    def full(self, images: int, size: int) -> bool:
        return images >= self.most_images or (images >= self.least_images and size >= self.bytes)


@dataclass
class ListingReport:
    """What listing a source found: counts of images by what became of them."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0  # on the gallery's deletion list: left out
    skipped: Counter[str] = field(default_factory=Counter)
    parts: int = 0


def ingest_source(
    gallery: Gallery, source: Source, progress: Progress, sizes: PartSizes | None = None, moved: bool = False
) -> ListingReport:
    """Lists a source and commits a catalogue with the parts that are new.

    Stopped at any moment, it leaves at most parts that no catalogue names; the next run finds the same
    names and goes on.

    Args:
        moved: the source's name is known with another URL, and that is meant.

    Raises:
        BadInput: the name is taken by another URL, or two images have one id.
    """
    for _ in range(_RELISTINGS):
        try:
            return _list_once(gallery, source, progress, sizes or PartSizes(), moved)
        except TakenDownMeanwhile:
            continue
    raise Conflict(f"{gallery.store.url} changes faster than {source.name} can be listed; run again later")


def _list_once(
    gallery: Gallery, source: Source, progress: Progress, sizes: PartSizes, moved: bool
) -> ListingReport:
    catalogue, newest_rows = follow(gallery, lambda: _newest_rows(gallery))
    check_source(catalogue, source.name, source.url, moved)
    report = ListingReport()
    known = _Known(newest_rows, catalogue)
    with progress.stage(f"list {source.name}", None) as stage, ThreadPoolExecutor(WRITERS) as pool:
        parts: list[PartRef] = []
        writing: deque[Future[PartRef]] = deque()
        for rows in _cut(_fresh(source, known, report), sizes):
            writing.append(pool.submit(_write_part, gallery, source.name, rows))
            if len(writing) > 2 * WRITERS:  # the store is slower than the listing: do not pile up
                parts.append(writing.popleft().result())
            stage.advance(len(rows))
        parts += [written.result() for written in writing]
    known.check_collisions(source)
    report.parts = len(parts)
    commit_parts(gallery, parts, np.array(known.new_ids, np.int64), source.name, source.url, moved)
    return report


class TakenDownMeanwhile(Exception):
    """An image of new parts was put on the deletion list after the listing: list again, without it.

    The parts must not be committed: a purge may have deleted them already, and would not come back.
    """


def commit_parts(
    gallery: Gallery, parts: list[PartRef], image_ids: np.ndarray, source: str, url: str, moved: bool
) -> Catalogue:
    """Commits a catalogue with new parts of a source; what was true of the listing is checked again.

    Args:
        image_ids: of all rows of the parts.
    """

    def change(newest: Catalogue) -> Catalogue:
        check_source(newest, source, url, moved)
        if np.isin(image_ids, newest.deleted).any():
            raise TakenDownMeanwhile
        kinds = {part.ready_made for part in (*newest.parts, *parts)}
        if len(kinds) > 1:
            raise BadInput(
                f"{gallery.store.url} holds images, or vectors of another dimension, and {url} does not fit: "
                "put it into a gallery of its own"
            )
        return newest.with_parts(parts, source, url)

    return commit_catalogue(gallery, change)


def _newest_rows(gallery: Gallery) -> tuple[Catalogue, LiveRows]:
    catalogue = read_catalogue(gallery)
    return catalogue, all_rows(gallery, catalogue)


def check_source(catalogue: Catalogue, name: str, url: str, moved: bool) -> None:
    """`BadInput` if the catalogue knows the name with another URL, unless the source moved."""
    known = catalogue.sources.get(name, url)
    if known != url and not moved:
        raise BadInput(
            f"the gallery has a source {name!r} at {known}, and this one is at {url}: give it another name "
            f"(OTHER={url}), or say --moved if it is the same collection in a new place"
        )


def _fresh(source: Source, known: "_Known", report: ListingReport) -> Iterator[dict[str, Any]]:
    for listed in source.listing():
        if isinstance(listed, Skipped):
            report.skipped[str(listed.why)] += 1
            continue
        row = _row(source.name, listed)
        kind = known.compare(row)
        setattr(report, kind, getattr(report, kind) + 1)
        if kind in ("new", "changed"):
            yield row


def _row(source: str, listed: Listed) -> dict[str, Any]:
    image_id, check = image_identity(source, listed.key)
    version = int(sha256(listed.version.encode())[:16], 16) >> 1
    row = {
        "image_id": image_id,
        "id_check": check,
        "key": encode_key(listed.key),
        "size": listed.size,
        "version": listed.version,
        "version_digest": version,
    }
    return row | {METADATA_PREFIX + name: value for name, value in listed.metadata.items()}


class _Known:
    """Look-up of the images that the catalogue has, and a check that no two new ones share an id."""

    def __init__(self, rows: LiveRows, catalogue: Catalogue) -> None:
        self.rows = rows
        self.deleted = catalogue.deleted
        self.new_ids = array("q")  # 16 bytes an image, the two together
        self.new_checks = array("q")

    def compare(self, row: Mapping[str, Any]) -> str:
        """`new`, `changed`, `unchanged` or `deleted`."""
        if _find(self.deleted, row["image_id"]) is not None:
            return "deleted"
        at = _find(self.rows.image_id, row["image_id"])
        self.new_ids.append(row["image_id"])
        self.new_checks.append(row["id_check"])
        if at is None:
            return "new"
        if self.rows.id_check[at] != row["id_check"]:
            raise _collision(decode_key(row["key"]))
        return "unchanged" if self.rows.version[at] == row["version_digest"] else "changed"

    def check_collisions(self, source: Source) -> None:
        ids, checks = np.array(self.new_ids, np.int64), np.array(self.new_checks, np.int64)
        order = np.lexsort((checks, ids))
        same = ids[order][1:] == ids[order][:-1]
        if np.any(same & (checks[order][1:] != checks[order][:-1])):
            raise _collision(source.url)


def _collision(where: str) -> BadInput:
    return BadInput(
        f"{where}: two images have the same 63-bit id, which happens once in 10^12 for ten million; "
        "ingest this source under another name (NAME=URL)"
    )


def _find(ids: np.ndarray, image_id: int) -> int | None:
    at = int(np.searchsorted(ids, image_id))
    return at if at < len(ids) and ids[at] == image_id else None


def _cut(rows: Iterator[dict[str, Any]], sizes: PartSizes) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        part.append(row)
        size += row["size"]
        if sizes.full(len(part), size):
            yield part
            part, size = [], 0
    if part:
        yield part


def _write_part(gallery: Gallery, source: str, rows: list[dict[str, Any]]) -> PartRef:
    data = encode_table(part_table(rows))
    part = digest_of_bytes(data)
    ref = write_object(gallery.store, part_path(part), data, len(rows))
    return PartRef(part, source, ref)


def part_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows of a part as its table: the fixed columns, then metadata by name; absent values are null."""
    names = sorted({name for row in rows for name in row if name.startswith(METADATA_PREFIX)})
    columns = {
        column.name: pa.array([row[column.name] for row in rows], column.type) for column in PART_SCHEMA
    }
    return pa.table(columns | {name: pa.array([row.get(name) for row in rows]) for name in names})
