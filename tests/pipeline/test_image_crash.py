"""The laws of `tests/faults/test_crash.py` for images: listing, describing, fitting, encoding, purging.

The process dies, or the store fails, at every write of an ingest, a build, a collection or a purge; a reader
gets exactly the old or the new answers; a rerun gives an undisturbed run's answers and objects. Dying before
the next write is dying after this one and at every read between the two, so only that is tried.

With SIFT alone every fault is tried at every write. With a network, whose runs take ten times as long, the
faults take turns: each write meets one of them.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.jobs import IngestOptions
from deploy.jobs import ingest as ingest_job
from index.collect import collect
from index.generation import read_generation
from index.purge import purge
from index.quantizer import deserialise
from index.recipe import Recipe
from index.removal import delete
from index.verify import verify
from ingest.catalogue import read_catalogue
from ingest.errors import ReseenError
from ingest.extract import extract
from ingest.features import read_features
from ingest.gallery import Gallery, features_path
from ingest.job import Job
from ingest.parts import PartSizes
from ingest.records import image_identity
from ingest.store import Store
from ingest.tables import decode_table
from tests.faults.faulty import (
    STAYING,
    STOPS,
    WRITES,
    Fault,
    Stopped,
    faulty_store,
    interrupted_store,
    operations_of,
)
from tests.pipeline.small import (
    RECIPES,
    Album,
    HereDecoder,
    answers,
    assert_same_answers,
    build_images,
    contents,
    ingest,
    job_on,
    stored_vectors,
)


def _recipe(which: str, kind: str = "flat") -> Recipe:
    return Recipe.model_validate(
        {
            **RECIPES[which](kind, words=2, shard_rows=4).model_dump(),
            "projection": {"kind": "pca", "dim": 3},
            "gate": {"recall": 0, "queries": 2},
        }
    )


@pytest.fixture(autouse=True, scope="module")
def _decode_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.features.DecoderPool", HereDecoder)
        yield


def _album(name: str, count: int, seed: int) -> Album:
    """Small pictures with something to describe, and one file that is none."""
    drawn = np.random.default_rng(seed)
    images = {}
    for number in range(count):
        file = io.BytesIO()
        coarse = Image.fromarray(drawn.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(file, "PNG")
        images[f"{name}-picture-{number}.png"] = file.getvalue()
    return Album(name, images | {f"{name}-broken.png": b"no picture"})


A, B, C = _album("a", 5, 1), _album("b", 3, 2), _album("c", 2, 3)
VICTIM_KEY = "a-picture-1.png"
VICTIM = image_identity("a", VICTIM_KEY)[0]
QUERIES = np.eye(3, dtype=np.float32)


def _build(job: Job, recipe: Recipe) -> None:
    build_images(job, recipe, A, B)


def _ingest_a(job: Job, recipe: Recipe) -> None:
    ingest(job, A, recipe, most_images=3)


def _ingest_b(job: Job, recipe: Recipe) -> None:
    ingest(job, B, recipe, most_images=3)


def _delete(job: Job, recipe: Recipe) -> None:
    delete(job, [VICTIM])


def _purge(job: Job, recipe: Recipe) -> None:
    purge(job, lambda newest: build_images(job, newest.recipe, A, B))


def _refit(job: Job, recipe: Recipe) -> None:
    build_images(job, recipe, A, B, refit=True)


def _leave_orphans(job: Job, recipe: Recipe) -> None:
    """What a stopped ingest leaves: a part and its features that no catalogue names."""
    store = job.gallery.store
    other = job_on(f"{store.url}-other")
    ingest(other, C, recipe)
    for folder in ("parts", "features"):
        for info in other.gallery.store.listing(folder):
            store.create(info.path, other.gallery.store.read(info.path))


def _collect(job: Job, recipe: Recipe) -> None:
    collect(job.gallery, keep=1, grace_s=0)


@dataclass(frozen=True)
class Command:
    """What was done before, what is done, and where that creates and deletes."""

    prepare: tuple[Callable[[Job, Recipe], None], ...]
    run: Callable[[Job, Recipe], None]
    creates: tuple[str, ...]
    deletes: tuple[str, ...] = ()
    changes: bool = False  # what a reader gets


_LISTED = ("parts", "features", "manifests", "catalogue")
_BUILT = ("encodings", "shards", "manifests", "generations")
COMMANDS = {
    "first ingest": Command((), _ingest_a, _LISTED),
    "ingest": Command((_ingest_a, _build), _ingest_b, _LISTED),
    "first build": Command((_ingest_a,), _build, ("models", *_BUILT), changes=True),
    "build": Command((_ingest_a, _build, _ingest_b), _build, _BUILT, changes=True),
    "collect": Command(
        (_ingest_a, _build, _ingest_b, _refit, _leave_orphans),
        _collect,
        (),
        ("manifests", "models", "encodings", "shards", "parts", "features"),
    ),
    "purge": Command(
        (_ingest_a, _build, _ingest_b, _build, _delete),
        _purge,
        (*_LISTED, *_BUILT),
        ("parts", "features", "encodings", "shards"),
    ),
}


@dataclass(frozen=True)
class Case:
    """A command, the gallery before it, and what an undisturbed run of it gives."""

    which: str  # of RECIPES
    command: Command
    before: Path
    old: dict[int, float] | None
    new: dict[int, float] | None
    objects: dict[str, str]
    operations: tuple[tuple[str, str], ...]

    def run(self, store: Store | str) -> None:
        self.command.run(job_on(store), _recipe(self.which))

    def copy(self, folder: Path) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before, folder)
        return str(folder)


@pytest.fixture(scope="module", params=list(product(RECIPES, COMMANDS)), ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    which, name = request.param
    command, recipe = COMMANDS[name], _recipe(which)
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after") / "gallery"
    job = job_on(str(before))
    for step in command.prepare:
        step(job, recipe)
    old = _seen(str(before))
    shutil.copytree(before, after)
    counted = faulty_store(str(after))
    command.run(job_on(counted), recipe)
    operations = tuple(operations_of(counted))
    return Case(which, command, before, old, _seen(str(after)), _settled(str(after)), operations)


def _seen(url: str) -> dict[int, float] | None:
    """What a reader finds: the score of every image against a fixed query; None if nothing is published."""
    gallery = job_on(url).gallery
    if gallery.generations.newest() == 0:
        return None
    ranked = answers(gallery, QUERIES[:1], 50)
    found = ranked.ids[0] >= 0
    ids, scores = ranked.ids[0][found].tolist(), ranked.scores[0][found].tolist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, (round(score, 5) for score in scores), strict=True))


def _settled(url: str) -> dict[str, str]:
    """The objects that are left after collection once no pin holds anything, manifests apart."""
    store = Store(url)
    for pin in store.listing("pins"):
        store.delete(pin.path)
    job = job_on(store)
    collect(job.gallery, keep=100, grace_s=0)
    assert store.unfinished() == []
    if job.gallery.generations.newest():
        assert verify(job).problems == ()
    # Manifests are named by commits, and a run that was stopped may have made one commit more.
    return {path: digest for path, digest in contents(store).items() if not path.startswith("manifests/")}


def _writes(case: Case, turn: int) -> list[int]:
    """Where a fault is tried; `turn` is its number among the faults."""
    writes = [at for at, (verb, _) in enumerate(case.operations, 1) if verb in WRITES]
    return writes if case.which == "sift" else writes[turn :: 2 + len(STAYING)]


def test_the_commands_do_what_is_to_be_stopped(case: Case) -> None:
    """A command with nothing to do would pass everything below."""
    written = {path.partition("/")[0] for verb, path in case.operations if verb == "create"}
    deleted = {path.partition("/")[0] for verb, path in case.operations if verb == "delete"}
    assert written >= set(case.command.creates)
    if case.which == "cnn" and not case.command.prepare:
        assert "models" in written  # the weights
    assert deleted >= set(case.command.deletes)
    assert (case.old != case.new) == case.command.changes
    assert case.objects


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("turn", "fault"), list(enumerate(STOPS[:2])))
def test_a_stop_at_any_write_loses_nothing(case: Case, turn: int, fault: Fault, tmp_path: Path) -> None:
    for at in _writes(case, turn):
        url = case.copy(tmp_path / "gallery")
        with pytest.raises(Stopped):
            case.run(faulty_store(url, at, fault))
            raise Stopped("what was shorter this time was done")
        _finish(case, url, f"{fault} at {at}: {case.operations[at - 1]}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("turn", "fault"), list(enumerate((fault for fault, _ in STAYING), 2)))
def test_an_error_at_any_write_loses_nothing(case: Case, turn: int, fault: Fault, tmp_path: Path) -> None:
    for at in _writes(case, turn):
        url = case.copy(tmp_path / "gallery")
        with pytest.raises(ReseenError):
            case.run(faulty_store(url, at, fault, times=None))
        _finish(case, url, f"{fault} at {at}: {case.operations[at - 1]}")


def _finish(case: Case, url: str, where: str) -> None:
    """What a reader sees is old or new; a rerun gives what an undisturbed run gives."""
    assert _seen(url) in (case.old, case.new), where
    case.run(url)
    assert _seen(url) == case.new, where
    assert _settled(url) == case.objects, where


def _ingest_as_users_do(job: Job, recipe: Recipe) -> None:
    """As `_ingest_b`, with the pin that the command holds."""
    ingest_job(job, [B], recipe, IngestOptions(max_rejects=1.0, sizes=PartSizes(3, 3)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "steps",
    [(_ingest_a, _build, _ingest_as_users_do), (_ingest_a, _build, _ingest_b, _refit)],
    ids=["ingest", "build"],  # with models of its own, which no generation names yet
)
def test_a_collection_takes_nothing_from_what_is_in_progress(
    steps: tuple[Callable[[Job, Recipe], None], ...], tmp_path: Path
) -> None:
    """At every operation of the last step another process collects everything that it can."""
    before, counted, recipe = tmp_path / "before", tmp_path / "counted", _recipe("sift")
    *earlier, run = steps
    job = job_on(str(before))
    for step in earlier:
        step(job, recipe)
    shutil.copytree(before, counted)
    store = faulty_store(str(counted))
    run(job_on(store), recipe)
    new = _seen(str(counted))
    _collect(job_on(str(counted)), recipe)  # the older generation, wherever that was not done in between
    objects = _settled(str(counted))
    for at in range(2, len(operations_of(store)) + 1):
        folder = tmp_path / "gallery"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        shared = interrupted_store(str(folder), at, lambda clean: _collect(job_on(clean), recipe))
        run(job_on(shared), recipe)
        assert len(operations_of(shared)) >= at
        assert _seen(str(folder)) == new, f"collected at operation {at}"
        _collect(job_on(str(folder)), recipe)
        assert _settled(str(folder)) == objects, f"collected at operation {at}"


# -- purge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", RECIPES)
@pytest.mark.parametrize("kind", ["flat", "ivfadc"])
def test_a_purged_image_is_nowhere(kind: str, which: str, tmp_path: Path) -> None:
    """No byte of its descriptors, its vector, its key or its row is in any object, whatever its form."""
    recipe = _recipe(which, kind)
    job = job_on(str(tmp_path / "gallery"))
    gallery = job.gallery
    for album in (A, B):
        ingest(job, album, recipe, most_images=3)
        build_images(job, recipe, A, B)
    build_images(job, recipe, A, B, rebuild=True)
    traces = _Traces.of(gallery)
    assert recipe.features is not None
    assert traces.found(gallery.store) >= {*recipe.features.describe, "index", "row", "key"}

    delete(job, [VICTIM])
    before = answers(gallery, QUERIES, 20)
    purge(job, lambda newest: build_images(job, newest.recipe, A, B))
    assert traces.found(gallery.store) == set()
    assert_same_answers(before, answers(gallery, QUERIES, 20))
    assert VICTIM not in stored_vectors(gallery)[0]
    assert verify(job).problems == ()
    _assert_as_extracted(job)


@dataclass(frozen=True)
class _Traces:
    """What would betray an image: its descriptors, by label, its vector, its id and its key."""

    descriptors: Mapping[str, tuple[bytes, ...]]
    vector: np.ndarray

    @staticmethod
    def of(gallery: Gallery) -> "_Traces":
        features = read_generation(gallery).models.features
        assert features is not None
        part = read_catalogue(gallery).parts[0]
        row = list(A.images).index(VICTIM_KEY)
        ((_, image),) = read_features(gallery, features, part.part, [row])
        ids, vectors = stored_vectors(gallery)
        (vector,) = vectors[ids == VICTIM]
        descriptors = {
            label: tuple(one.tobytes() for one in arrays["descriptors"])
            for label, arrays in image.by_label.items()
        }
        assert all(descriptors.values())
        return _Traces(descriptors, vector)

    def found(self, store: Store) -> set[str]:
        """Where there are traces, by form. The deletion list names the id: that is its work."""
        found = set()
        for info in store.listing(""):
            data = store.read(info.path)
            for label, descriptors in self.descriptors.items():
                if any(one in data for one in descriptors):
                    found.add(label)
            if self.vector.tobytes() in data:
                found.add("index")
            if VICTIM_KEY.encode() in data:
                found.add("key")
            if info.path.endswith(".faiss") and self._in_index(data):
                found.add("index")
            if info.path.endswith(".parquet"):
                found |= self._in_table(info.path, data)
        return found

    def _in_index(self, data: bytes) -> bool:
        index = deserialise(data)
        kept = index.reconstruct_n(0, index.ntotal) if index.ntotal else np.empty((0, len(self.vector)))
        return bool(np.any(np.abs(kept - self.vector).max(axis=1, initial=0) < 1e-6))

    def _in_table(self, path: str, data: bytes) -> set[str]:
        name = "" if path.startswith(("parts/", "manifests/")) else path
        table = decode_table(data, path, name=name)
        found = set()
        if path.startswith("manifests/") and table.column_names == ["image_id"]:
            return found
        if "image_id" in table.column_names and VICTIM in table["image_id"].to_pylist():
            found.add("row")
        if "key" in table.column_names and VICTIM_KEY.encode() in table["key"].to_pylist():
            found.add("key")
        if "vector" in table.column_names:
            kept = np.array(table["vector"].to_pylist(), np.float32).reshape(-1, len(self.vector))
            if np.any(np.abs(kept - self.vector).max(axis=1, initial=0) < 1e-6):
                found.add("vector")
        return found


def _blobs(store: Store, digest: str, part: str) -> list[str]:
    return [
        info.path
        for info in store.listing(f"features/{digest}")
        if info.path.endswith(".blob") and part in info.path
    ]


def _assert_as_extracted(job: Job) -> None:
    """What purge copied into the part without the image is what extracting that part gives."""
    features, store = read_generation(job.gallery).recipe.features, job.gallery.store
    assert features is not None
    digest = features.digest
    catalogue = read_catalogue(job.gallery)
    (part,) = [part for part in catalogue.parts if part.source == "a" and part.ref.rows == 2]
    paths = [features_path(digest, part.part), *_blobs(store, digest, part.part)]
    copied = [store.read(path) for path in paths]
    for path in paths:
        store.delete(path)
    extract(job, catalogue, features, {"a": A, "b": B}, max_rejects=1.0)
    assert [store.read(path) for path in paths] == copied


@pytest.mark.parametrize("which", RECIPES)
def test_a_purge_takes_what_a_stopped_build_left(which: str, tmp_path: Path) -> None:
    """A build that was stopped anywhere leaves objects that no commit names; they hold the image too."""
    before, recipe = tmp_path / "before", _recipe(which)
    job = job_on(str(before))
    for step in (_ingest_a, _build, _ingest_b):
        step(job, recipe)
    traces = _Traces.of(job.gallery)
    cut = recipe.model_copy(update={"shard_rows": 100})  # other shards, with the old images in them
    counted = tmp_path / "counted"
    shutil.copytree(before, counted)
    store = faulty_store(str(counted))
    build_images(job_on(store), cut, A, B, rebuild=True)
    writes = [at for at, (verb, _) in enumerate(operations_of(store), 1) if verb in WRITES]
    for at in writes if which == "sift" else writes[::4]:
        for fault in ("stop_before", "stop_within"):
            folder = tmp_path / "gallery"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before, folder)
            with pytest.raises(Stopped):
                build_images(job_on(faulty_store(str(folder), at, fault)), cut, A, B, rebuild=True)
            again = job_on(str(folder))
            _delete(again, recipe)
            _purge(again, recipe)
            assert traces.found(again.gallery.store) == set(), (at, operations_of(store)[at - 1])
