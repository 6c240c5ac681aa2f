"""Which images a learned whitening is fitted on: those of one label together, for it learns from pairs.

Of a million images of a hundred thousand things, four thousand drawn one by one hold next to no pairs. So
things are drawn, and with each some of its images; what room is left goes to any image.
"""

import numpy as np
from jaxtyping import Int64

from index.exact import Collection
from index.learned_whitening import labels_of
from index.sampling import ranks
from ingest.catalogue import read_parts
from ingest.job import Job
from ingest.records import decode_key

UNLABELLED = -1
_OF_A_LABEL = 16  # images drawn together: 15 others to be paired with are more than pairs are drawn


def read_label_numbers(job: Job, collection: Collection, pattern: str) -> Int64[np.ndarray, " n"]:
    """For each image in force a number for the label in its `SOURCE/KEY`; -1 for images without one.

    Every part's keys are read. Memory: 8 bytes an image, and the distinct labels.
    """
    numbers: dict[str, int] = {}
    found = np.full(len(collection.live.image_id), UNLABELLED, np.int64)
    placed = list(collection.by_part())
    tables = read_parts(job.gallery, [part for part, _ in placed], ["key"])
    with job.progress.stage("read labels", len(found)) as stage:
        for (part, places), table in zip(placed, tables, strict=True):
            keys = table["key"].take(collection.live.row[places]).to_pylist()
            labels = labels_of([f"{part.source}/{decode_key(key)}" for key in keys], pattern)
            for place, label in zip(places.tolist(), labels, strict=True):
                if label is not None:
                    found[place] = numbers.setdefault(label, len(numbers))
            stage.advance(len(places))
    return found


def groups_first(
    image_ids: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], count: int, seed: int
) -> Int64[np.ndarray, " m"]:
    """Positions of `count` images, ascending; all of them if there are fewer.

    First come up to 16 images of each label that more than one image bears, a label after the other in random
    order (large ones no earlier than small ones), then all others, by rank (`index.sampling`).

    Args:
        labels: number of each image's label, -1 for none.
    """
    order = ranks(image_ids, seed)
    place = _place_in_label(order, labels)
    sizes = np.bincount(labels + 1)
    grouped = (labels != UNLABELLED) & (sizes[labels + 1] > 1) & (place < _OF_A_LABEL)
    first_ids = np.full(len(sizes), np.iinfo(np.int64).max)
    np.minimum.at(first_ids, labels + 1, image_ids)
    group = np.where(grouped, ranks(first_ids, seed)[labels + 1], 0)
    chosen: np.ndarray = np.sort(np.lexsort((order, group, ~grouped))[:count])
    return chosen


def _place_in_label(order: np.ndarray, labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many images of each image's label come before it in an order."""
    by_label = np.lexsort((order, labels))
    starts = np.searchsorted(labels[by_label], labels[by_label])
    place = np.empty(len(labels), np.int64)
    place[by_label] = np.arange(len(labels)) - starts
    return place
