"""A generation: one published index, a small record that points to manifests.

Writing `generations/<number>.json`, create-only, is the commit: everything that it names is there before.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from index.recipe import Recipe
from index.shards import Shard
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.gallery import Gallery
from ingest.tables import ObjectRef, read_manifest, write_manifest

FORMAT = 1

SHARDS_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("name", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("parts", pa.list_(pa.string())),  # on the row table's line; the index's line has none
    ]
)
MASKS_SCHEMA = pa.schema([("shard", pa.string()), ("masked", pa.int64()), ("bitmap", pa.binary())])


@dataclass(frozen=True)
class Models:
    """Digests of what turns images into codes; `None` where the recipe has no such step."""

    features: str | None
    encoder: str | None
    projection: str | None
    encodings: str
    quantizer: str

    @property
    def fitted(self) -> dict[str, str]:
        """The digests of fitted models, by kind."""
        kinds = {"encoder": self.encoder, "projection": self.projection, "quantizer": self.quantizer}
        return {kind: digest for kind, digest in kinds.items() if digest is not None}


@dataclass(frozen=True)
class Generation:
    """One published index.

    Attributes:
        number: of the commit; 0 for one that is not published yet.
        action: what published it: build, rollback, delete, restore or purge.
        recipe: how it was built; `models` what was fitted for it.
        catalogue: the commit whose parts its shards cover.
        deletions: the commit whose deletion list its masks apply.
        shards: in the order in which fan-out and merging see them.
        masks: by shard digest, True where a row must not be found; shards without masked rows are absent.
        counts: `rows` of the shards, `masked` and `live` of them, `rejected` images.
        gate: what was measured before publishing.
        versions: of the libraries that decide results.
        parent: the number that was newest when it was published.
    """

    number: int
    action: str
    recipe: Recipe
    models: Models
    catalogue: int
    deletions: int
    shards: tuple[Shard, ...]
    masks: Mapping[str, Bool[np.ndarray, " n"]]
    counts: Mapping[str, int]
    gate: Mapping[str, Any]
    versions: Mapping[str, str]
    parent: int
    manifests: Mapping[str, str | None] = field(default_factory=dict)
    writer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> set[str]:
        """The parts that its shards cover."""
        return {part for shard in self.shards for part in shard.parts}


def write_manifests(gallery: Gallery, generation: Generation) -> Generation:
    """Writes the lists of shards and masks; returns the generation with their digests."""
    lines: list[dict[str, Any]] = []
    for shard in generation.shards:
        lines.append({"shard": shard.shard, **asdict(shard.index), "parts": None})
        lines.append({"shard": shard.shard, **asdict(shard.rows), "parts": list(shard.parts)})
    masks: str | None = None
    if generation.masks:
        bitmaps = [
            {
                "shard": shard,
                "masked": int(mask.sum()),
                "bitmap": np.packbits(mask, bitorder="little").tobytes(),
            }
            for shard, mask in sorted(generation.masks.items())
        ]
        masks = write_manifest(gallery.store, bitmaps, MASKS_SCHEMA)
    shards = write_manifest(gallery.store, lines, SHARDS_SCHEMA)
    return replace(generation, manifests={"shards": shards, "masks": masks})


def commit(gallery: Gallery, generation: Generation) -> bool:
    """Publishes a generation whose manifests are written; False if another writer took its number."""
    record = {
        "format": FORMAT,
        "action": generation.action,
        "recipe": generation.recipe.model_dump(mode="json"),
        "recipe_digest": generation.recipe.digest,
        "vectors_digest": generation.recipe.vectors_digest,
        "models": asdict(generation.models),
        "catalogue": generation.catalogue,
        "deletions": generation.deletions,
        "manifests": dict(generation.manifests),
        "counts": dict(generation.counts),
        "gate": dict(generation.gate),
        "versions": dict(generation.versions),
        "parent": generation.parent,
    }
    return gallery.generations.append(generation.number, record)


def read_generation(gallery: Gallery, number: int | None = None) -> Generation:
    """A published generation, the newest by default, with its lists of shards and masks.

    Raises:
        NotFound: there is none, or garbage collection or a purge took what it names.
        Corrupt: its record or a manifest is damaged.
    """
    number = gallery.generations.newest() if number is None else number
    if number == 0:
        raise NotFound(
            f"{gallery.store.url} has no published generation yet: "
            f"run reseen build --gallery {gallery.store.url}"
        )
    record = gallery.generations.read(number)
    if record["format"] != FORMAT:
        raise BadInput(f"generation {number} has format {record['format']} and this Reseen reads {FORMAT}")
    try:
        shards = _read_shards(gallery, record["manifests"]["shards"])
        masks = _read_masks(gallery, record["manifests"]["masks"], shards)
    except NotFound as error:
        raise NotFound(
            f"generation {number} of {gallery.store.url} was collected or purged: only its record is left; "
            "choose another (reseen generations list)"
        ) from error
    return Generation(
        number=number,
        recipe=_recipe(record["recipe"], number),
        models=Models(**record["models"]),
        shards=shards,
        masks=masks,
        **{name: record[name] for name in _PLAIN},
    )


def _recipe(settings: dict[str, Any], number: int) -> Recipe:
    from pydantic import ValidationError

    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"generation {number} was built by a recipe that this Reseen does not know ({first['msg']} at "
            f"{first['loc']}): install the version that built it, or a newer one"
        ) from error


_PLAIN = ("action", "catalogue", "deletions", "counts", "gate", "versions", "parent", "manifests", "writer")


def _read_shards(gallery: Gallery, digest: str) -> tuple[Shard, ...]:
    lines = read_manifest(gallery.store, digest).to_pylist()
    refs = [ObjectRef(line["name"], line["size"], line["sha256"], line["rows"]) for line in lines]
    return tuple(
        Shard(line["shard"], refs[at - 1], refs[at], tuple(line["parts"]))
        for at, line in enumerate(lines)
        if line["parts"] is not None
    )


def _read_masks(
    gallery: Gallery, digest: str | None, shards: tuple[Shard, ...]
) -> dict[str, Bool[np.ndarray, " n"]]:
    if digest is None:
        return {}
    counts = {shard.shard: shard.count for shard in shards}
    masks = {}
    for line in read_manifest(gallery.store, digest).to_pylist():
        if line["shard"] not in counts:
            raise Corrupt(f"mask manifest {digest} names shard {line['shard']}, which the generation has not")
        bits = np.unpackbits(np.frombuffer(line["bitmap"], np.uint8), bitorder="little")
        masks[line["shard"]] = bits[: counts[line["shard"]]].astype(bool)
    return masks


_DECIDING = (
    *("reseen", "faiss-cpu", "faiss-gpu", "numpy"),
    *("opencv-python-headless", "opencv-python", "pillow", "torch"),
)


@cache
def library_versions() -> Mapping[str, str]:
    """The versions of the libraries that decide results, for query and gallery to be compared."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return MappingProxyType(found)
