"""Damaged objects are refused by name: never a wrong answer, never a crash.

Every kind of object is flipped (every byte of its header, and 500 others), truncated, extended, swapped with
another of its kind, and replaced by one of an older generation. Then a reader opens the gallery and searches,
and `verify` looks at everything: either the damage is named, or the answers are exactly right.
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
from index.opened import open_generation
from index.recipe import Recipe
from index.removal import delete
from index.verify import VerifyWorker, verify, verify_tasks
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.job import Job
from ingest.parts import PartSizes, ingest_source
from ingest.sources import Source, open_source
from ingest.store import Store
from tests.tiny import job_on

HEADER = 64  # bytes, each of which is flipped
RANDOM = 500
RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "features": {"decode": {"longest_side": 96}, "describe": {"max_keypoints": 40}},
        "encoder": {"codebook": {"words": 4, "sample_descriptors": 512, "iterations": 3}},
        "projection": {"dim": 4},
        "quantizer": {"kind": "flat"},
        "shard_rows": 4,
        "gate": {"recall": 0.0, "queries": 2},
    }
)


@dataclass(frozen=True)
class Whole:
    """An intact gallery of two generations, and what its newest answers."""

    folder: Path
    answers: dict[int, float]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    job = job_on(Store(str(folder)))
    for source in _sources().values():
        ingest_source(job.gallery, source, job.progress, PartSizes(most_images=4, least_images=1))
        build(job, RECIPE, _sources())
    delete(job, [next(iter(answers_of(job)))])
    return Whole(folder, answers_of(job))


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


def answers_of(job: Job) -> dict[int, float]:
    return search(job, None)


def search(job: Job, cache: Cache | None) -> dict[int, float]:
    opened = open_generation(job.gallery, cache=cache)
    hits = opened.search(np.full((1, 4), 0.5, np.float32), opened.generation.counts["rows"])
    found = hits.image_ids[0] >= 0
    return dict(zip(hits.image_ids[0][found].tolist(), hits.scores[0][found].tolist(), strict=True))


def kinds(folder: Path) -> dict[str, list[Path]]:
    """Every object of the newest generation and catalogue, by kind."""
    groups = {
        "gallery": ["gallery.json"],
        "catalogue": ["catalogue/00000002.json", "catalogue/00000003.json"],
        "generation": ["generations/00000003.json"],
        "part": ["parts/*"],
        "features": ["features/*/*.parquet"],
        "blob": ["features/*/*.blob"],
        "model": ["models/*/*"],
        "encodings": ["encodings/*/*"],
        "shard index": ["shards/*/index.faiss"],
        "shard rows": ["shards/*/rows.parquet"],
        "manifest": ["manifests/*"],
    }
    return {
        kind: sorted(path for pattern in patterns for path in folder.glob(pattern))
        for kind, patterns in groups.items()
    }


RECORDS = ("gallery", "catalogue", "generation")
TABLES = ("part", "features", "blob", "model", "encodings", "manifest")
KINDS = (*RECORDS, *TABLES, "shard index", "shard rows")
READ_BY_SEARCH = ("generation", "shard index", "shard rows")


def flips(data: bytes) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(len(data))
    header = range(min(HEADER, len(data)))
    for at in (*header, *generator.integers(0, len(data), RANDOM).tolist()):
        changed = bytearray(data)
        changed[at] ^= 1 << int(generator.integers(8))
        yield f"bit flipped in byte {at}", bytes(changed)


def cuts(data: bytes) -> Iterator[tuple[str, bytes]]:
    for length in {0, 1, len(data) // 2, len(data) - 1}:
        yield f"cut to {length} bytes", data[:length]
    yield "extended by a zero", data + b"\0"
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
    path = _named_by_newest(folder, kind)
    name = path.relative_to(folder).as_posix()
    data = path.read_bytes()
    look = _look(job, kind, name, whole)
    for what, changed in damage(data):
        path.write_bytes(changed)
        assert look(what), f"{what} of {name} went unnoticed"
    path.write_bytes(data)
    assert search(job, None) == whole.answers


def _look(job: Job, kind: str, name: str, whole: Whole) -> Callable[[str], bool]:
    """Who reads objects of a kind: a search, or else the worker of `verify` that is given this object."""
    if kind in READ_BY_SEARCH:
        return lambda what: check(job, whole, name, what)
    if kind in ("gallery", "catalogue", "manifest"):
        return lambda what: check(job, whole, name, what) or verified(job.gallery.store, name)
    function = VerifyWorker(job.gallery).start()
    (task,) = [task for task in verify_tasks(job.gallery)[1] if _about(task.what, name)]
    return lambda what: any(name in problem for problem in function(task))


def _about(what: object, name: str) -> bool:
    digest = what[1] if isinstance(what, tuple) else getattr(what, "part", "-")
    return digest in name


def _stem(path: str) -> str:
    return path.partition(".")[0]


def _named_by_newest(folder: Path, kind: str) -> Path:
    """An object of a kind that the newest generation needs."""
    from index.reach import objects_of_generation

    job = job_on(Store(str(folder)))
    opened = open_generation(job.gallery)
    needed = objects_of_generation(job.gallery, opened.generation)
    commits = {
        job.gallery.generations.path(3),
        job.gallery.catalogue.path(opened.generation.catalogue),
        "gallery.json",
    }
    named = {
        _stem(path) if kind == "blob" else path for path in needed | commits
    }  # a blob goes with its table
    names = {path: path.relative_to(folder).as_posix() for path in kinds(folder)[kind]}
    found = [path for path, name in names.items() if (_stem(name) if kind == "blob" else name) in named]
    return max(found, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gallery"])
def test_objects_swapped_for_others_of_their_kind_are_refused(
    kind: str, whole: Whole, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    target = _named_by_newest(folder, kind)
    name = target.relative_to(folder).as_posix()
    original = target.read_bytes()
    others = [
        path for path in target.parent.parent.rglob(f"*{target.suffix}") if _other(path, target, original)
    ]
    assert others, f"there is no other {kind} to swap with"
    for other in others:
        target.write_bytes(other.read_bytes())
        what = f"{other.relative_to(folder)} copied over"
        assert check(job, whole, name, what) or verified(job.gallery.store, name), (
            f"{what} {name} went unnoticed"
        )


def _other(path: Path, target: Path, original: bytes) -> bool:
    same_kind = path.relative_to(target.parent.parent).parts[:1] != () and path.name[-9:] == target.name[-9:]
    alike = path.name == target.name or (same_kind or path.parent == target.parent)
    return path != target and alike and path.read_bytes() != original


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
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    assert search(job, cache) == whole.answers


@pytest.mark.parametrize("kind", ["part", "features", "blob", "encodings"])
def test_a_rebuild_stands_on_nothing_damaged(kind: str, whole: Whole, tmp_path: Path) -> None:
    """What an earlier run left is checked before a new one adopts it."""
    folder = tmp_path / "gallery"
    shutil.copytree(whole.folder, folder)
    job = job_on(Store(str(folder)))
    path = _named_by_newest(folder, kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match=re.escape(path.relative_to(folder).as_posix())):
        # New models make new vectors: the stored ones are adopted only where the models are carried on.
        build(job, RECIPE, _sources(), BuildOptions(rebuild=kind == "encodings", refit=kind != "encodings"))
    assert job.gallery.generations.newest() == 3
