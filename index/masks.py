"""Masks: which rows of which shards must not be found.

A row is live if it is its image's row in force (`ingest.catalogue.live_rows`) and no earlier shard covers
its part already. Everything else is masked: replaced images, deleted ones, parts that were purged, and
parts that two publishers indexed at the same time.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8

from index.nearest import selector_bitmap
from index.shards import Shard
from ingest.catalogue import LiveRows


def live_bitmap(
    shards: Sequence[Shard], masks: Mapping[str, Bool[np.ndarray, " n"]]
) -> UInt8[np.ndarray, " bytes"] | None:
    """The rows of some shards, in one bitmap, that may be found; None if all may."""
    if not any(shard.shard in masks for shard in shards):
        return None
    live = [~masks.get(shard.shard, np.zeros(shard.count, bool)) for shard in shards]
    return selector_bitmap(np.concatenate(live))


def compute_masks(
    shards: Sequence[Shard], tables: Sequence[pa.Table], live: LiveRows, places: Mapping[str, int]
) -> dict[str, Bool[np.ndarray, " n"]]:
    """The masks of a list of shards.

    Args:
        tables: the shards' row tables, in the same order.
        live: the rows in force, sorted by image id.
        places: the place of each part in the catalogue that `live` refers to.

    Returns:
        By shard digest, True where a row is masked; only shards that have masked rows.
    """
    masks: dict[str, Bool[np.ndarray, " n"]] = {}
    covered: set[str] = set()
    for shard, table in zip(shards, tables, strict=True):
        usable = {part: places.get(part, -1) if part not in covered else -1 for part in shard.parts}
        mask = ~_live(table, usable, live)
        covered.update(shard.parts)
        if mask.any():
            masks[shard.shard] = mask
    return masks


def _live(table: pa.Table, usable: Mapping[str, int], live: LiveRows) -> Bool[np.ndarray, " n"]:
    ids = table["image_id"].to_numpy()
    if not len(ids) or not len(live.image_id):
        return np.zeros(len(ids), bool)
    parts = table["part"].combine_chunks().dictionary_encode()
    if isinstance(parts, pa.ChunkedArray):
        parts = parts.combine_chunks()
    place_of = np.array([usable[part] for part in parts.dictionary.to_pylist()], np.int64)
    place = place_of[parts.indices.to_numpy()]
    at = np.minimum(np.searchsorted(live.image_id, ids), len(live.image_id) - 1)
    same_row = (live.part[at] == place) & (live.row[at] == table["row"].to_numpy())
    return np.asarray((live.image_id[at] == ids) & (place >= 0) & same_row)
