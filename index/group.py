"""A group of shards that answers scans: the unit of fan-out, and what a replica holds in memory.

A scan reads exactly the lists that it is told to. Whether they were enough is decided over all groups, by
who merges (`enough`, `list_schedule`): so any grouping of the shards gives what one group gives, to the bit.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from index.cache import Cache
from index.filters import Filter, filter_json, united_columns
from index.generation import Generation
from index.kept import Kept
from index.masks import live_bitmap
from index.nearest import count_rows, list_schedule, search_parameters
from index.scan import Scan, Scanned, enough, merge_scanned
from index.segment import Segment, load_segment
from index.shard_rows import Row, masks_kept
from index.shards import Shard
from ingest.errors import BadInput, NotFound
from ingest.feature_reader import Place
from ingest.gallery import Gallery

if TYPE_CHECKING:
    import faiss

__all__ = [
    "Row",
    "Scan",
    "Scanned",
    "ShardGroup",
    "assign_shards",
    "enough",
    "list_schedule",
    "merge_scanned",
    "new_bytes",
    "open_group",
    "search_groups",
]

_MOST_SEGMENTS = 4  # more cost more than merging anew
_TABLE_EXPANSION = 4  # a row table in memory, of its compressed bytes
_ROW_BYTES = 40


class _View:
    """A segment as a generation sees it: with its masks."""

    def __init__(self, segment: Segment, generation: Generation) -> None:
        self.segment = segment
        self.live = live_bitmap(segment.shards, generation.masks)
        count = len(segment.rows)
        self.live_rows = count if self.live is None else count_rows(self.live, count)
        self._selections: Kept[tuple[faiss.SearchParameters | None, int]] = Kept(masks_kept(count))

    def selection(self, where: Filter | None, lists: int) -> "tuple[faiss.SearchParameters | None, int]":
        """How to search what masks and a filter let through, and how many rows that are."""
        key = (lists, None if where is None else filter_json(where))
        return self._selections.get(key, lambda: self._selected(where, lists))

    def _selected(self, where: Filter | None, lists: int) -> "tuple[faiss.SearchParameters | None, int]":
        index, rows = self.segment.index, self.segment.rows
        if index is None:
            return None, 0
        selector = self.live
        if where is not None:
            selector = rows.bitmap(where) if selector is None else selector & rows.bitmap(where)
        allowed = len(rows) if selector is None else count_rows(selector, len(rows))
        chosen = None if self.segment.flat else min(lists, self.segment.lists)
        return search_parameters(index, chosen, selector), allowed

    def scan(self, vector: Float32[np.ndarray, " d"], asked: Scan) -> Scanned:
        parameters, allowed = self.selection(asked.where, asked.lists)
        scores, rows = self.segment.nearest(vector, asked.k, parameters, allowed)
        known = self.segment.rows
        details = tuple(known.rows(rows[: asked.detail]))
        return Scanned(scores, known.image_ids[rows], tuple(known.places(rows)), allowed, details)

    def row_of(self, image_id: int) -> int | None:
        """The row of an image that may be found."""
        for row in self.segment.rows.of_image(image_id).tolist():
            if self.live is None or self.live[row // 8] >> (row % 8) & 1:
                return int(row)
        return None


@dataclass(frozen=True, eq=False)
class ShardGroup:
    """Some shards of a generation, in memory. Read-only; safe to share by threads.

    Attributes:
        shards: in the order of the generation.
        rows: that can be found. lists: inverted lists; 1 where the index is flat.
        dim: components of its vectors; 0 where there are none.
        columns: what filters may name, and its type (`index.filters`).
    """

    generation: Generation
    shards: tuple[Shard, ...]
    segments: tuple[Segment, ...]
    _views: tuple[_View, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_views", tuple(_View(each, self.generation) for each in self.segments))

    @cached_property
    def rows(self) -> int:
        return sum(view.live_rows for view in self._views)

    @cached_property
    def lists(self) -> int:
        return max((segment.lists for segment in self.segments), default=1)

    @cached_property
    def dim(self) -> int:
        return max((segment.dim for segment in self.segments), default=0)

    @cached_property
    def columns(self) -> Mapping[str, str]:
        return united_columns(segment.rows.columns for segment in self.segments)

    def scan(self, asked: Scan) -> Scanned:
        """The best images that `asked.lists` lists of each segment hold, up to `asked.k`.

        A filter that names a column which no shard here has finds it absent; check filters with
        `index.filters.check_filter` before.

        Raises:
            BadInput: the vector's dimension is not the group's, it is not finite, or k or lists is below 1.
        """
        began = time.perf_counter()
        vector = self._checked(asked)
        some = [view.scan(vector, asked) for view in self._views]
        whole = some[0] if len(some) == 1 else merge_scanned(some, asked.k, asked.detail)
        return replace(whole, seconds=time.perf_counter() - began)

    def rows_of(self, image_ids: Iterable[int]) -> list[Row | None]:
        """What is known of some images; None for those that cannot be found here."""
        return [self._row_of(int(image)) for image in image_ids]

    def locate(self, image_id: int) -> Place:
        """Part, and row in it, of an image that can be found; `NotFound` if it cannot."""
        for view in self._views:
            row = view.row_of(image_id)
            if row is not None:
                return view.segment.rows.places(np.array([row]))[0]
        raise NotFound(f"generation {self.generation.number} has no image {image_id}")

    def _row_of(self, image_id: int) -> Row | None:
        for view in self._views:
            row = view.row_of(image_id)
            if row is not None:
                return view.segment.rows.rows(np.array([row]))[0]
        return None

    def _checked(self, asked: Scan) -> Float32[np.ndarray, " d"]:
        if asked.k < 1:
            raise BadInput(f"top {asked.k} is no answer: ask for 1 or more")
        if asked.lists < 1:
            raise BadInput(f"nprobe is {asked.lists}: read at least 1 list")
        if self.dim and asked.vector.shape != (self.dim,):
            raise BadInput(f"the query has {asked.vector.size} dimensions, and the gallery {self.dim}")
        if not np.isfinite(asked.vector).all():
            raise BadInput("a query vector has NaN or infinite components; check what made it")
        return np.ascontiguousarray(asked.vector, np.float32)


def search_groups(
    groups: Sequence[ShardGroup],
    vector: Float32[np.ndarray, " d"],
    k: int,
    nprobe: int,
    where: Filter | None = None,
    detail: int = 0,
) -> Scanned:
    """The k best images of some groups of one generation, read as deep as it takes to find k if k exist."""
    most = max((group.lists for group in groups), default=1)
    for lists in list_schedule(nprobe, most):
        asked = Scan(vector, k, lists, where, detail)
        merged = merge_scanned([group.scan(asked) for group in groups], k, detail)
        if enough(merged, k):
            break
    return merged


# -- loading --------------------------------------------------------------------------------------------


def assign_shards(shards: Sequence[Shard], groups: int) -> list[tuple[Shard, ...]]:
    """Which shards each group has: every shard goes to the group with the fewest rows so far, in order.

    Shards that are added later change nothing for those before. Groups beyond the shards are empty.
    """
    if groups < 1:
        raise BadInput(f"{groups} groups hold nothing: ask for 1 or more")
    assigned: list[list[Shard]] = [[] for _ in range(groups)]
    rows = [0] * groups
    for shard in shards:
        group = rows.index(min(rows))
        assigned[group].append(shard)
        rows[group] += shard.count
    return [tuple(each) for each in assigned]


def open_group(
    gallery: Gallery,
    generation: Generation,
    shards: Sequence[Shard],
    cache: Cache | None,
    near: Sequence[ShardGroup] = (),
) -> ShardGroup:
    """Fetches, checks and merges some shards of a generation.

    Args:
        near: groups whose segments are shared instead of loaded again, where all their shards are wanted.

    Raises:
        NotFound, Corrupt: an object is gone, or is not what its manifest names; it is named.
        BadInput: the shards were built by an older version of Reseen.
    """
    shared, rest = _split(shards, near)
    if rest or not shared:
        shared.append(load_segment(gallery, rest, cache))
    return ShardGroup(generation, tuple(shards), tuple(shared))


def new_bytes(generation: Generation, shards: Sequence[Shard], near: Sequence[ShardGroup] = ()) -> int:
    """What `open_group` would add to memory, estimated."""
    _, rest = _split(shards, near)
    return sum(
        shard.index.size + _TABLE_EXPANSION * shard.rows.size + _ROW_BYTES * shard.count for shard in rest
    )


def _split(shards: Sequence[Shard], near: Sequence[ShardGroup]) -> tuple[list[Segment], list[Shard]]:
    """Segments to share, and the shards that are in none of them."""
    wanted = {shard.shard for shard in shards}
    shared: list[Segment] = []
    candidates = {id(segment): segment for group in near for segment in group.segments}
    for segment in sorted(candidates.values(), key=lambda each: -len(each.rows)):
        digests = {shard.shard for shard in segment.shards}
        if digests and digests <= wanted:
            shared.append(segment)
            wanted -= digests
    rest = [shard for shard in shards if shard.shard in wanted]
    if len(shared) + bool(rest) > _MOST_SEGMENTS:
        return [], list(shards)
    return shared, rest
