"""A gallery: one prefix of a store, and where everything in it lies."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ingest.commits import CommitLog, writer
from ingest.errors import BadInput, Conflict, NotFound
from ingest.records import seal, unseal
from ingest.store import Store, probe_create_only

FORMAT = 1
_RECORD = "gallery.json"
_FOLLOWS = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Gallery:
    """An opened gallery. Cheap to pickle: workers get one."""

    store: Store
    id: str

    @property
    def catalogue(self) -> CommitLog:
        return CommitLog(self.store, "catalogue")

    @property
    def generations(self) -> CommitLog:
        return CommitLog(self.store, "generations")


def part_path(part: str) -> str:
    return f"parts/{part}.parquet"


def features_path(features: str, part: str) -> str:
    return f"features/{features}/{part}.parquet"


def blob_path(features: str, part: str, checksum: str) -> str:
    """A part's arrays. Outcomes may differ between two extractions (a file that vanishes), so the content is
    part of the name; the table says which blob is its own."""
    return f"features/{features}/{part}.{checksum[:16]}.blob"


def model_path(model: str) -> str:
    return f"models/{model}/model.safetensors"


def encodings_path(encodings: str, part: str) -> str:
    return f"encodings/{encodings}/{part}.parquet"


def shard_index_path(shard: str) -> str:
    return f"shards/{shard}/index.faiss"


def shard_rows_path(shard: str) -> str:
    return f"shards/{shard}/rows.parquet"


def follow(gallery: Gallery, work: Callable[[], T]) -> T:
    """Does work that reads the gallery; again if what it read was taken away because the gallery moved on.

    A purge deletes what newer commits no longer name. Who had read the older commit finds objects missing,
    and finds everything after reading again. Work must be safe to repeat.

    Raises:
        NotFound: something is missing although nothing was committed meanwhile.
    """
    for _ in range(_FOLLOWS):
        before = gallery.catalogue.newest(), gallery.generations.newest()
        try:
            return work()
        except NotFound:
            if before == (gallery.catalogue.newest(), gallery.generations.newest()):
                raise
    raise Conflict(f"{gallery.store.url} changes faster than this can follow; run again later")


def create_gallery(store: Store) -> Gallery:
    """Opens the gallery at a prefix, making it if there is none.

    Raises:
        BadInput: the store does not honour create-only writes.
    """
    if not store.exists(_RECORD):
        probe_create_only(store)
        store.create(_RECORD, seal({"format": FORMAT, "id": uuid.uuid4().hex, "writer": writer()}))
    return open_gallery(store)


def open_gallery(store: Store) -> Gallery:
    """Opens an existing gallery.

    Raises:
        NotFound: there is no gallery at this prefix.
        BadInput: it was written by a newer version of Reseen.
        Corrupt: its record is damaged.
    """
    try:
        record = unseal(store.read(_RECORD), store.where(_RECORD))
    except NotFound:
        raise NotFound(
            f"there is no gallery at {store.url}; make one: reseen ingest SOURCE --gallery {store.url}"
        ) from None
    if record.get("format") != FORMAT:
        raise BadInput(
            f"the gallery at {store.url} has format {record.get('format')} and this Reseen reads {FORMAT}: "
            "install the version that wrote it, or a newer one"
        )
    return Gallery(store, record["id"])
