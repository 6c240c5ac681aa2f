"""The catalogue: which parts make up the collection now, which sources they came from, what was taken down.

A part is a list of images, one row each, named by its content and never cut again. A catalogue is a
numbered commit that names parts; the later row of an image replaces its earlier ones.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ingest.errors import BadInput, Conflict
from ingest.gallery import Gallery
from ingest.tables import ObjectRef, decode_table, read_manifest, read_object, write_manifest

FORMAT = 1

PARTS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("part", pa.string()),
        ("source", pa.string()),
        ("ready_made", pa.string()),
    ]
)
DELETED_SCHEMA = pa.schema([("image_id", pa.int64())])
METADATA_PREFIX = "metadata."
READERS = 16  # small objects read at once: a store's latency, not its bandwidth, is what costs


@dataclass(frozen=True)
class PartRef:
    """A part as a catalogue names it.

    Attributes:
        part: its digest; `source`: the name of its source; `ref`: its object.
        ready_made: digest of the vectors that it came with; empty for images.
    """

    part: str
    source: str
    ref: ObjectRef
    ready_made: str = ""

    def __str__(self) -> str:
        return f"part {self.part} ({self.ref.rows} images of {self.source})"


@dataclass(frozen=True)
class Catalogue:
    """One commit of the catalogue.

    Attributes:
        number: of the commit; 0 for the empty catalogue before the first.
        sources: URL by name.
        parts: in the order they came; a later row of an image replaces an earlier one.
        deleted: sorted ids of the images that were taken down; they stay down until restored.
    """

    number: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[PartRef, ...] = ()
    deleted: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        """Rows of all parts, replaced and deleted ones included."""
        return sum(part.ref.rows for part in self.parts)

    @cached_property
    def position(self) -> dict[str, int]:
        """The place of each part in `parts`, by its digest."""
        return {part.part: place for place, part in enumerate(self.parts)}

    def same_as(self, other: "Catalogue") -> bool:
        return (
            self.sources == other.sources
            and self.parts == other.parts
            and np.array_equal(self.deleted, other.deleted)
        )

    def with_parts(self, parts: list[PartRef], source: str, url: str) -> "Catalogue":
        """This catalogue with some parts last, so that their rows are in force.

        A part that it has already (images went back to an older version) moves to the end.
        """
        last = {part.part for part in parts}
        before = (part for part in self.parts if part.part not in last)
        return replace(self, parts=(*before, *parts), sources={**self.sources, source: url})

    def with_deleted(self, ids: Int64[np.ndarray, " n"]) -> "Catalogue":
        return replace(self, deleted=np.union1d(self.deleted, ids))

    def without_deleted(self, ids: Int64[np.ndarray, " n"]) -> "Catalogue":
        return replace(self, deleted=np.setdiff1d(self.deleted, ids))


def read_catalogue(gallery: Gallery, number: int | None = None) -> Catalogue:
    """A commit of the catalogue, the newest by default; the empty one before the first."""
    number = gallery.catalogue.newest() if number is None else number
    if number == 0:
        return Catalogue()
    record = gallery.catalogue.read(number)
    if record["format"] != FORMAT:
        raise BadInput(
            f"catalogue {number} of {gallery.store.url} has format {record['format']} and this Reseen reads "
            f"{FORMAT}: install the version that wrote it, or a newer one"
        )
    parts = tuple(_part_refs(read_manifest(gallery.store, record["parts"])))
    deleted = np.empty(0, np.int64)
    if record["deleted"] is not None:
        deleted = read_manifest(gallery.store, record["deleted"])["image_id"].to_numpy()
    return Catalogue(number, record["sources"], parts, deleted)


def _part_refs(table: pa.Table) -> list[PartRef]:
    return [
        PartRef(
            row["part"],
            row["source"],
            ObjectRef(row["name"], row["size"], row["sha256"], row["rows"]),
            row["ready_made"],
        )
        for row in table.to_pylist()
    ]


def commit_catalogue(gallery: Gallery, change: Callable[[Catalogue], Catalogue]) -> Catalogue:
    """Applies a change to the newest catalogue and commits it, again and again until nobody is faster.

    Args:
        change: from a catalogue to the wanted one; it is called anew after every lost race, so that it
            unites its own wish with whatever the winners did.

    Returns:
        The catalogue in force, also where the change changes nothing.
    """
    for _ in range(1000):
        newest = read_catalogue(gallery)
        wanted = replace(change(newest), number=newest.number + 1)
        if newest.number and wanted.same_as(newest):
            return newest
        if gallery.catalogue.append(wanted.number, _record(gallery, wanted)):
            return wanted
    raise Conflict(f"{gallery.store.url} changes faster than this commit can follow; run again later")


def _record(gallery: Gallery, catalogue: Catalogue) -> dict[str, Any]:
    names = [part.part for part in catalogue.parts]
    if len(set(names)) < len(names):
        raise ValueError("a catalogue names every part once")
    parts = [
        {
            **vars(part.ref),
            "part": part.part,
            "source": part.source,
            "ready_made": part.ready_made,
        }
        for part in catalogue.parts
    ]
    deleted = None
    if len(catalogue.deleted):
        ids = [{"image_id": int(image)} for image in catalogue.deleted]
        deleted = write_manifest(gallery.store, ids, DELETED_SCHEMA)
    return {
        "format": FORMAT,
        "sources": dict(catalogue.sources),
        "parts": write_manifest(gallery.store, parts, PARTS_SCHEMA),
        "rows": catalogue.rows,
        "deleted": deleted,
    }


def read_part(gallery: Gallery, part: PartRef, columns: list[str] | None = None) -> pa.Table:
    """A part's rows: image_id, id_check, key, size, version and `metadata.*` columns."""
    data = read_object(gallery.store, part.ref)
    return decode_table(data, gallery.store.where(part.ref.name), columns)


def read_parts(gallery: Gallery, parts: Sequence[PartRef], columns: list[str]) -> Iterator[pa.Table]:
    """The rows of many parts, in their order, read a few at a time ahead of the caller."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting = deque(pool.submit(read_part, gallery, part, columns) for part in parts[: 2 * READERS])
        for part in chain(parts[2 * READERS :], repeat(None, len(waiting))):
            table = waiting.popleft().result()
            if part is not None:
                waiting.append(pool.submit(read_part, gallery, part, columns))
            yield table


@dataclass(frozen=True)
class LiveRows:
    """The rows in force: for each image that is not deleted, its newest row.

    Arrays are parallel and sorted by image id. `part` is the place in `Catalogue.parts`.
    """

    image_id: Int64[np.ndarray, " n"]
    id_check: Int64[np.ndarray, " n"]
    version: Int64[np.ndarray, " n"]  # a digest of the version, not the version itself
    part: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]


def all_rows(gallery: Gallery, catalogue: Catalogue) -> LiveRows:
    """The newest row of every image, deleted ones included.

    Memory: 40 bytes a row of the collection, 150 at the peak.
    """
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    names = ["image_id", "id_check", "version_digest"]
    for place, table in enumerate(read_parts(gallery, catalogue.parts, names)):
        for column, name in zip(columns, names, strict=False):
            column.append(table[name].to_numpy())
        columns[3].append(np.full(table.num_rows, place, np.int64))
        columns[4].append(np.arange(table.num_rows, dtype=np.int64))
    joined = [np.concatenate(column) if column else np.empty(0, np.int64) for column in columns]
    # The last of equal ids wins: a stable sort keeps the order of the catalogue.
    order = np.argsort(joined[0], kind="stable")
    ids = joined[0][order]
    last = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.empty(0, bool)
    kept = order[last]
    return LiveRows(*(column[kept] for column in joined))


def live_rows(gallery: Gallery, catalogue: Catalogue) -> LiveRows:
    """The newest row of every image that is not deleted, sorted by image id."""
    rows = all_rows(gallery, catalogue)
    alive = ~np.isin(rows.image_id, catalogue.deleted)
    return LiveRows(*(getattr(rows, name)[alive] for name in LiveRows.__dataclass_fields__))
