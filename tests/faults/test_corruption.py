"""Damaged objects are refused by name: never a wrong answer, never a crash.

Every kind of object is flipped (every byte of its header, and 500 others), truncated, extended, swapped with
another of its kind, and replaced by one of an older generation. Then whoever reads such objects reads it: a
search, `verify`, or, for pins, a collection. Either the damage is named, or the answers are exactly right.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from index.build import BuildOptions, build
from index.cache import Cache
from index.collect import collect
from index.opened import open_generation
from index.pins import Pin
from index.recipe import Recipe
from index.removal import delete
from index.verify import VerifyWorker, verify, verify_tasks
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.gallery import model_path
from ingest.job import Job
from ingest.parts import PartSizes, ingest_source
from ingest.sources import Source, open_source
from ingest.store import Store
from ingest.tables import manifest_path
from serve.query import ImageQuery
from serve.searcher import open_searcher
from tests.tiny import job_on

HEADER = 64  # bytes at the start of what has no header of a stated length
RANDOM = 500
RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "features": {
            "decode": {"longest_side": 96},
            "describe": {"local": {"kind": "sift", "max_keypoints": 40}},
        },
        "encoder": {"kind": "vlad", "codebook": {"words": 4, "sample_descriptors": 512, "iterations": 3}},
        "projection": {"kind": "pca", "dim": 4},
        "quantizer": {"kind": "flat"},
        "shard_rows": 4,
        "gate": {"recall": 0.0, "queries": 2},
    }
)


@dataclass(frozen=True)
class Whole:
    """An intact gallery of three generations, and what its newest answers: uri and score by image."""

    folder: Path
    answers: dict[int, tuple[str, float]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    job = job_on(Store(str(folder)))
    for source in _sources().values():
        ingest_source(job.gallery, source, job.progress, PartSizes(most_images=4, least_images=1))
        build(job, RECIPE, _sources())
    delete(job, [next(iter(search(job, None)))])
    for number in range(2):  # of builds in progress
        Pin(job.gallery, "build", 3600.0, prefixes={f"shards/{number}/"}).save()
    return Whole(folder, search(job, None))


def _sources() -> dict[str, Source]:
    found = {}
    for text in (
        "a=synthetic:scenes=2,views=2,distractors=2,size=96",
        "b=synthetic:seed=2,scenes=2,views=2,distractors=1,size=96",
    ):
        source = open_source(text)
        assert isinstance(source, Source)
        found[source.name] = source
    return found


def search(job: Job, cache: Cache | None) -> dict[int, tuple[str, float]]:
    """Every image that a reader finds, with its place: opens the index and the row tables."""
    with open_searcher(job.gallery, cache=cache) as searcher:
        (answer,) = searcher.search_vectors(np.full((1, 4), 0.5, np.float32), 1000)
    return {result.image_id: (result.uri, result.score) for result in answer.results}


RECORDS = ("gallery", "catalogue", "generation")
TABLES = ("part", "features", "encodings")
MODELS = ("encoder", "projection", "quantizer")
MANIFESTS = ("shards", "masks", "parts", "deleted")
KINDS = (*RECORDS, *TABLES, "blob", *MODELS, *MANIFESTS, "shard index", "shard rows", "pin")
READ_BY_SEARCH = ("generation", "shard index", "shard rows")


def header(data: bytes) -> list[int]:
    """The bytes that say how the others are to be read; safetensors and Parquet state how many they are."""
    if data.startswith(b"PAR1"):
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        return [*range(4), *range(start, len(data))]
    stated = int.from_bytes(data[:8], "little") + 8
    return list(range(min(stated if stated < len(data) else HEADER, len(data))))


def flips(data: bytes) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(len(data))
    for at in (*header(data), *generator.integers(0, len(data), RANDOM).tolist()):
        changed = bytearray(data)
        changed[at] ^= 1 << int(generator.integers(8))
        yield f"bit flipped in byte {at}", bytes(changed)


def cuts(data: bytes) -> Iterator[tuple[str, bytes]]:
    for length in {0, 1, len(data) // 2, len(data) - 1}:
        yield f"cut to {length} bytes", data[:length]
    yield "extended by a zero", data + b"\0"
    yield "extended by a space", data + b" "
    yield "extended by itself", data + data


def check(job: Job, whole: Whole, damaged: str, what: str) -> bool:
    """Whether the damage was named, by search or by verify; wrong answers fail the test."""
    named = False
    try:
        assert search(job, None) == whole.answers, f"{what} of {damaged} gave a wrong answer"
    except (Corrupt, NotFound, BadInput) as error:
        assert damaged in str(error), f"{what} of {damaged} was refused without its name: {error}"
        named = True
    return named


def verified(store: Store, damaged: str) -> bool:
    try:
        problems = verify(job_on(store)).problems
    except (Corrupt, NotFound, BadInput) as error:
        problems = (str(error),)
    return any(damaged in problem for problem in problems)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flips, cuts], ids=["flipped", "cut"])
def test_damage_is_refused_by_name(
    kind: str, damage: Callable[[bytes], Iterator[tuple[str, bytes]]], whole: Whole, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    store = Store(str(folder))
    job = job_on(store)
    name = _object(job, kind)
    path = folder / name
    data = path.read_bytes()
    look = _look(job, kind, name, whole)
    for what, changed in damage(data):
        path.write_bytes(changed)
        assert look(what), f"{what} of {name} went unnoticed"
    path.write_bytes(data)
    assert search(job, None) == whole.answers
    assert verify(job).problems == ()


def _object(job: Job, kind: str) -> str:
    """The path of an object of a kind that the newest generation needs; of the tables the largest."""
    newest = open_generation(job.gallery).generation
    catalogue = job.gallery.catalogue.read(newest.catalogue)
    deletions = job.gallery.catalogue.read(newest.deletions)
    named = {
        "gallery": "gallery.json",
        "catalogue": job.gallery.catalogue.path(newest.catalogue),
        "generation": job.gallery.generations.path(newest.number),
        "shards": manifest_path(newest.manifests["shards"] or "there are none"),
        "masks": manifest_path(newest.manifests["masks"] or "there are none"),
        "parts": manifest_path(catalogue["parts"]),
        "deleted": manifest_path(deletions["deleted"]),
        "shard index": newest.shards[0].index.name,
        "shard rows": newest.shards[0].rows.name,
    }
    named |= {model: model_path(digest) for model, digest in newest.models.fitted.items()}
    if kind in named:
        return named[kind]
    folders = {"part": "parts", "blob": "features", "pin": "pins"}
    suffix = {"blob": ".blob", "pin": ".json"}.get(kind, ".parquet")
    found = [info for info in job.gallery.store.listing(folders.get(kind, kind)) if suffix in info.path]
    return max(found, key=lambda info: (info.size, info.path)).path


def _look(job: Job, kind: str, name: str, whole: Whole) -> Callable[[str], bool]:
    """Who reads objects of a kind: a search, a collection, or the worker of `verify` that is given one."""
    if kind == "pin":
        return lambda what: _collection_refuses(job, name)
    if kind in READ_BY_SEARCH:
        return lambda what: check(job, whole, name, what)
    if kind in ("gallery", "catalogue", *MANIFESTS):
        return lambda what: check(job, whole, name, what) or verified(job.gallery.store, name)
    function = VerifyWorker(job.gallery).start()
    (task,) = [task for task in verify_tasks(job.gallery)[1] if _about(task.what, name)]
    return lambda what: any(name in problem for problem in function(task))


def _about(what: object, name: str) -> bool:
    digest = what[1] if isinstance(what, tuple) else getattr(what, "part", "-")
    return digest in name


def _collection_refuses(job: Job, name: str) -> bool:
    """Whether it names the damaged pin, and takes nothing, since the pin may have held anything."""
    before = job.gallery.store.listing("")
    with pytest.raises(Corrupt, match=name):
        collect(job.gallery, keep=1, grace_s=0)
    return job.gallery.store.listing("") == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gallery"])
def test_objects_swapped_for_others_of_their_kind_are_refused(
    kind: str, whole: Whole, tmp_path: Path
) -> None:
    """With every other object of the kind, those of older generations among them."""
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    name = _object(job, kind)
    target = folder / name
    original = target.read_bytes()
    others = [path for path in _alike(folder, kind, target) if path.read_bytes() != original]
    assert others, f"there is no other {kind} to swap with"
    look = _look(job, kind, name, whole)
    for other in others:
        target.write_bytes(other.read_bytes())
        what = f"{other.relative_to(folder)} copied over"
        assert look(what), f"{what} {name} went unnoticed"


def _alike(folder: Path, kind: str, target: Path) -> list[Path]:
    """Objects of the same kind: of the same name in a folder beside, or with the same ending in the same."""
    if kind in ("shard index", "shard rows", *MODELS):
        return sorted(target.parent.parent.glob(f"*/{target.name}"))
    return sorted(target.parent.glob(f"*{target.suffix}"))


def test_a_record_of_an_older_generation_in_the_newest_place_is_refused(whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    for kind in ("generations", "catalogue"):
        records = sorted((folder / kind).iterdir())
        kept = records[-1].read_bytes()
        records[-1].write_bytes(records[0].read_bytes())
        with pytest.raises(Corrupt, match=records[-1].name):
            search(job, None)
            verify(job)
        records[-1].write_bytes(kept)
    assert search(job, None) == whole.answers


def test_a_damaged_cache_is_not_believed(whole: Whole, tmp_path: Path) -> None:
    job = job_on(Store(str(whole.folder)))
    cache = Cache(tmp_path / "cache")
    assert search(job, cache) == whole.answers
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    for path in files:
        _flip_the_middle(path)
    assert search(job, cache) == whole.answers


@pytest.mark.parametrize("kind", ["shard index", "shard rows", "encoder", "projection"])
def test_a_search_with_an_image_stands_on_nothing_damaged(kind: str, whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    name = _object(job, kind)
    _flip_the_middle(folder / name)
    image = ImageQuery(_sources()["a"].read("facade-000000/view-00.bmp"))
    with pytest.raises(Corrupt, match=re.escape(name)), open_searcher(job.gallery) as searcher:
        searcher.search_images([image], 1000)


def test_a_build_does_not_pass_over_a_damaged_pin(whole: Whole, tmp_path: Path) -> None:
    """It may be a collection's."""
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    name = _object(job, "pin")
    _flip_the_middle(folder / name)
    with pytest.raises(Corrupt, match=name):
        build(job, RECIPE, _sources(), BuildOptions(rebuild=True))


def _flip_the_middle(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["part", "features", "blob", "encodings"])
def test_a_rebuild_stands_on_nothing_damaged(kind: str, whole: Whole, tmp_path: Path) -> None:
    """What an earlier run left is checked before a new one adopts it."""
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    name = _object(job, kind)
    _flip_the_middle(folder / name)
    with pytest.raises(Corrupt, match=re.escape(name)):
        # New models make new vectors: the stored ones are adopted only where the models are carried on.
        build(job, RECIPE, _sources(), BuildOptions(rebuild=kind == "encodings", refit=kind != "encodings"))
    assert job.gallery.generations.newest() == 3
