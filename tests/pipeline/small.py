"""Image galleries small enough for tests: recipes, whole runs, what lies in a gallery, equal answers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.build import BuildOptions, build
from index.encodings import read_encodings
from index.generation import Generation, read_generation
from index.opened import open_generation
from index.recipe import Recipe, with_read_weights
from ingest.catalogue import live_rows, read_catalogue
from ingest.decode import Box, Decoded, DecodeSettings, decode
from ingest.engine import Engine, InlineEngine
from ingest.errors import NotFound
from ingest.extract import extract
from ingest.gallery import Gallery, create_gallery
from ingest.job import Job
from ingest.outcomes import Rejected
from ingest.parts import ListingReport, PartSizes, ingest_source
from ingest.progress import SilentProgress
from ingest.records import sha256
from ingest.sources import Listed, Skipped, Source, open_source
from ingest.store import Store

CONTENT = ("parts", "features", "models", "encodings", "shards", "manifests")
COMMITS = ("catalogue", "generations")
TIE = 1e-6  # DESIGN.md: scores this close are equal

_IVFADC = {"kind": "ivfadc", "lists": 4, "nprobe": 2, "code_bytes": 8}


def small_recipe(
    kind: str = "flat", shard_rows: int = 1000, longest_side: int = 96, words: int = 8
) -> Recipe:
    """Forty key points, eight words, 16 dimensions: a few milliseconds an image."""
    return Recipe.model_validate(
        {
            "name": f"small-{kind}",
            "features": {
                "decode": {"longest_side": 96},
                "describe": {"local": {"kind": "sift", "max_keypoints": 40}},
            },
            "encoder": {"kind": "vlad", "codebook": {"words": words, "sample_descriptors": 4000}},
            "projection": {"kind": "pca", "dim": 16},
            "quantizer": _IVFADC if kind == "ivfadc" else {"kind": kind},
            "shard_rows": shard_rows,
            "gate": {"recall": 0.0, "queries": 8},
        }
    )


def cnn_recipe(kind: str = "flat", shard_rows: int = 1000, longest_side: int = 96, words: int = 8) -> Recipe:
    """Three labels at once, two of them by one network, each its own part of a fused vector.

    SIFT as in `small_recipe`; EfficientNet-Lite0 pooled by regions at two scales, and columns of an earlier
    map: some 10 ms an image of 64 pixels.
    """
    sift = small_recipe(kind, shard_rows, longest_side, words)
    assert sift.features is not None
    network = {"name": "efficientnet-lite0"}
    describe = {
        "local": sift.features.describe["local"],
        "global": {
            "kind": "cnn-global",
            "network": network,
            "regions": {"kind": "sfrs"},
            "scales": [1.0, 0.7071],
        },
        "columns": {"kind": "cnn-columns", "network": network, "layer": "reduction_3", "max_columns": 20},
    }
    vlad = {"kind": "vlad", "codebook": {"words": words, "sample_descriptors": 4000}}
    parts = [
        {"encoder": vlad, "weight": 2.0},
        {"encoder": {"kind": "pooled"}, "projection": {"kind": "pca", "dim": 12}},
        {"encoder": {**vlad, "reads": "columns", "prepare": "l2"}},
    ]
    return Recipe.model_validate(
        {
            **sift.model_dump(),
            "name": f"small-cnn-{kind}",
            "features": {"decode": sift.features.decode, "describe": describe},
            "encoder": {"kind": "fused", "parts": parts},
        }
    )


RECIPES: Mapping[str, Callable[..., Recipe]] = {"sift": small_recipe, "cnn": cnn_recipe}


def images_of(text: str, options: Mapping[str, Any] | None = None) -> Source:
    source = open_source(text, options=options)
    assert isinstance(source, Source)
    return source


def job_on(store: Store | str, engine: Engine | None = None) -> Job:
    """A job on the gallery of a store, made if there is none."""
    store = Store(store) if isinstance(store, str) else store
    return Job(create_gallery(store), engine or InlineEngine(), SilentProgress())


def ingest(job: Job, source: Source, recipe: Recipe, most_images: int = 50) -> ListingReport:
    """Lists a source, and describes what the catalogue then has of it."""
    recipe, weights = with_read_weights(recipe, job.gallery)
    weights.keep(job.gallery)
    report = ingest_source(job.gallery, source, job.progress, PartSizes(most_images))
    assert recipe.features is not None
    extract(job, read_catalogue(job.gallery), recipe.features, {source.name: source}, max_rejects=1.0)
    return report


def build_images(job: Job, recipe: Recipe, *sources: Source, **options: bool) -> Generation:
    named = {source.name: source for source in sources}
    return build(job, recipe, named, BuildOptions(max_rejects=1.0, **options))


# -- what lies in a gallery -----------------------------------------------------------------------------


def contents(store: Store) -> dict[str, str]:
    """Every object but the commits, the pins and the gallery's own record: sha256 by path."""
    return {info.path: sha256(store.read(info.path)) for folder in CONTENT for info in store.listing(folder)}


def commits(store: Store) -> dict[str, dict[str, Any]]:
    """Every commit by path, without its writer and the checksum that covers it."""
    records = {}
    for folder in COMMITS:
        for info in store.listing(folder):
            record = json.loads(store.read(info.path))
            del record["writer"], record["checksum"]
            records[info.path] = record
    return records


def assert_same_gallery(one: Store, other: Store) -> None:
    """Every object of the two is byte-identical, commits but for their writer."""
    a, b = contents(one), contents(other)
    assert {path.partition("/")[0] for path in a} >= {"parts", "features", "manifests"}
    assert sorted(a) == sorted(b)
    assert [path for path in a if a[path] != b[path]] == []
    assert commits(one) == commits(other)


# -- answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Answers to queries: (q, k) scores, and ids, -1 where there are no more."""

    scores: np.ndarray
    ids: np.ndarray


def stored_vectors(gallery: Gallery, number: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of all images in force, sorted by id."""
    generation = read_generation(gallery, number)
    catalogue = read_catalogue(gallery, generation.catalogue)
    rows = live_rows(gallery, catalogue)
    ids, vectors = [], []
    for place, part in enumerate(catalogue.parts):
        at, image_ids, found = read_encodings(gallery, generation.models.encodings, part.part)
        alive = np.isin(at, rows.row[rows.part == place])
        ids.append(image_ids[alive])
        vectors.append(found[alive])
    joined = np.concatenate(ids)
    order = np.argsort(joined)
    return joined[order], np.concatenate(vectors)[order]


def answers(gallery: Gallery, queries: np.ndarray, k: int = 10, number: int | None = None) -> Ranked:
    hits = open_generation(gallery, number).search(queries, k)
    return Ranked(hits.scores, hits.image_ids)


def assert_same_answers(one: Ranked, other: Ranked) -> None:
    """DESIGN.md's rule: scores within 1e-6; ids equal, except inside ties at the cut."""
    assert one.scores.shape == other.scores.shape
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=TIE)
    for q in range(len(one.ids)):
        a, b = _scored(one, q), _scored(other, q)
        cut = min(one.scores[q, -1], other.scores[q, -1]) + 2 * TIE
        for mine, theirs in ((a, b), (b, a)):
            for image, score in mine.items():
                assert image in theirs or score <= cut, f"query {q}: only one side found {image} at {score}"
                assert abs(theirs.get(image, score) - score) <= TIE, f"query {q}: two scores for {image}"


def _scored(ranked: Ranked, q: int) -> dict[int, float]:
    pairs = zip(ranked.ids[q].tolist(), ranked.scores[q].tolist(), strict=True)
    found = [(image, score) for image, score in pairs if image >= 0]
    assert len(dict(found)) == len(found), f"query {q}: an image was found twice"
    return dict(found)


# -- stand-ins ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Album:
    """Images in memory, by key."""

    name: str
    images: Mapping[str, bytes]
    version: str = "1"

    @property
    def url(self) -> str:
        return f"album:{self.name}"

    def listing(self) -> Iterator[Listed | Skipped]:
        for key, data in self.images.items():
            yield Listed(key, len(data), sha256(data)[:16])

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        if key not in self.images:
            raise NotFound(f"{self.url} has no {key}")
        return self.images[key] if max_bytes is None else self.images[key][: max_bytes + 1]

    def uri(self, key: str) -> str:
        return f"{self.url}#{key}"


class HereDecoder:
    """`ingest.decoder_pool.DecoderPool` without its processes, which take a third of a second to start."""

    processes = 1

    def __init__(self, settings: DecodeSettings, processes: int = 1) -> None:
        self.settings = settings

    def decode(self, data: bytes, box: Box | None = None) -> Decoded | Rejected:
        return decode(data, self.settings, box)

    def decode_ahead(self, images: Iterator[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        for image in images:
            yield image if isinstance(image, Rejected) else decode(image, self.settings)

    def close(self) -> None: ...


def rendered(text: str, count: int | None = None) -> dict[str, bytes]:
    """The first images of a `synthetic:` source as files, by key."""
    source = images_of(text)
    keys: Sequence[str] = [entry.key for entry in source.listing() if isinstance(entry, Listed)]
    return {key: source.read(key) for key in keys[:count]}
