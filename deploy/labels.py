"""Labels out of names: which images show the same thing, by a regular expression over their keys."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from index.exact import Collection
from ingest.catalogue import read_parts
from ingest.errors import BadInput
from ingest.gallery import Gallery
from ingest.records import decode_key

UNLABELLED = -1


def label_reader(pattern: str, option: str = "--label-pattern") -> Callable[[str], str | None]:
    """A function from a name to its label, None where the pattern is not found in it.

    The label is what the pattern's first group took, or the whole match where it has no group. A name is
    `SOURCE/KEY`: the source's name, a slash, and the image's path relative to the source's root.

    Raises:
        BadInput: the pattern is no regular expression.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise BadInput(
            f"{option} {pattern!r} is no regular expression ({error}): names are SOURCE/KEY, so "
            r"'([^/]+)/[^/]+$' takes the name of an image's folder"
        ) from None

    def read(name: str) -> str | None:
        found = regex.search(name)
        if found is None:
            return None
        return (found[1] if regex.groups else found[0]) or None

    return read


@dataclass(frozen=True)
class Labels:
    """The labels of a collection's images, in the order of its rows in force (by image id).

    Attributes:
        of: number of each image's label; -1 for a distractor.
        sizes: images of each label.
        asked: which images are queries.
        junk: which images count neither as right nor as wrong; they have no label, and are no queries.
        example: the name of some image, for messages.
    """

    of: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " labels"]
    asked: Bool[np.ndarray, " n"]
    junk: Bool[np.ndarray, " n"]
    example: str


def read_labels(
    gallery: Gallery,
    collection: Collection,
    label_pattern: str,
    query_pattern: str | None = None,
    junk_pattern: str | None = None,
) -> Labels:
    """Reads the label of every image out of its name.

    Queries are the labelled images, or those of them in whose name the query pattern is found.

    Memory: 9 bytes an image, and the distinct labels.

    Raises:
        BadInput: a pattern is no regular expression, no image has a label, or no labelled image is a query.
    """
    label_of = label_reader(label_pattern)
    is_query = label_reader(query_pattern, "--queries") if query_pattern is not None else label_of
    is_junk = label_reader(junk_pattern, "--junk-pattern") if junk_pattern is not None else None
    numbers: dict[str, int] = {}
    of = np.full(len(collection.live.image_id), UNLABELLED, np.int64)
    asked, junk = np.zeros(len(of), bool), np.zeros(len(of), bool)
    example = ""
    placed = list(collection.by_part())
    tables = read_parts(gallery, [part for part, _ in placed], ["key"])
    for (part, places), table in zip(placed, tables, strict=True):
        keys = table["key"].take(collection.live.row[places]).to_pylist()
        for place, key in zip(places.tolist(), keys, strict=True):
            example = f"{part.source}/{decode_key(key)}"
            junk[place] = is_junk is not None and is_junk(example) is not None
            label = None if junk[place] else label_of(example)
            if label is not None:
                of[place] = numbers.setdefault(label, len(numbers))
                asked[place] = is_query is label_of or is_query(example) is not None
    seen = f"names are SOURCE/KEY, such as {example!r}"
    if not numbers:
        raise BadInput(f"--label-pattern {label_pattern!r} is found in no name of {len(of)} images: {seen}")
    if not asked.any():
        raise BadInput(f"--queries {query_pattern!r} is found in no name of a labelled image: {seen}")
    return Labels(of, np.bincount(of[of >= 0], minlength=len(numbers)), asked, junk, example)
