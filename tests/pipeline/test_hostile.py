"""Hostile files under hostile names, and files that change while they are ingested: none is lost."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.generation import read_generation
from ingest.catalogue import live_rows, read_catalogue, read_part
from ingest.errors import OverBudget, Unavailable
from ingest.extract import extract
from ingest.gallery import Gallery, features_path
from ingest.job import Job
from ingest.outcomes import Outcome
from ingest.parts import ingest_source
from ingest.records import decode_key, image_identity
from ingest.sources import Source
from ingest.tables import read_table
from serve.query import ImageQuery
from serve.searcher import Searcher, open_searcher
from tests.ingest.hostile import CORPUS, LIMITS
from tests.pipeline.small import build_images, images_of, ingest, job_on, rendered, small_recipe

RECIPE = small_recipe().model_copy(
    update={"features": small_recipe().features.model_copy(update={"decode": LIMITS})}  # type: ignore[union-attr]
)

# Bytes, as a disk has them: not all are text. `{}` is the number of the file.
NAMES = (
    b"plain {}.jpg",
    b" leading and trailing {} .jpg",
    "Überraschung – 写真 🖼 {}.jpg".encode(),
    "e\u0301 decomposed {}.jpg".encode(),
    b"two\nlines and a\ttab {}.jpg",
    b"not UTF-8 \xff\xfe\x80 {}.jpg",
    b"'quotes' \"and\" `such` $(true); rm -rf {}.jpg",
    b"back\\slash and % and # and ? {}.jpg",
    b"<script>alert({})</script>.jpg".replace(b"/", b"|"),
    b"x" * 200 + b" long {}.jpg",
    b"-rf {}.jpg",
    b"\x1b[31mred {}\x07.jpg",
    "\u202egpj.{}.jpg".encode(),
)


@dataclass(frozen=True)
class Hostile:
    """A gallery of hostile files among a few good ones, and which file is which."""

    job: Job
    source: Source
    names: dict[str, str]  # of the corpus, by key


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    place = tmp_path_factory.mktemp("hostile")
    folder, names = place / "photos", {}
    for number, name in enumerate(CORPUS):
        file = os.fsdecode(NAMES[number % len(NAMES)].replace(b"{}", str(number).encode()))
        key = f"sub folder \n{number % 3}/{file}"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(CORPUS[name][0])
        names[key] = name
    for key, data in rendered("synthetic:scenes=2,views=3,distractors=2,size=64,seed=8").items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    job, source = job_on(str(place / "gallery")), images_of(str(folder))
    report = ingest(job, source, RECIPE, most_images=20)
    assert (report.new, report.skipped.total()) == (len(CORPUS) + 8, 0)
    build_images(job, RECIPE, source)
    return Hostile(job, source, names)


def outcomes(gallery: Gallery) -> dict[str, str]:
    """The outcome of every row of the catalogue in force, by key; a key twice is a failure."""
    found: dict[str, str] = {}
    assert RECIPE.features is not None
    for part in read_catalogue(gallery).parts:
        listed = read_part(gallery, part)
        table = read_table(gallery.store, features_path(RECIPE.features.digest, part.part))
        assert table["image_id"].to_pylist() == listed["image_id"].to_pylist()
        for key, outcome in zip(listed["key"].to_pylist(), table["outcome"].to_pylist(), strict=True):
            assert decode_key(key) not in found
            found[decode_key(key)] = outcome
    return found


def test_each_file_has_one_row_and_its_outcome(hostile: Hostile) -> None:
    found = outcomes(hostile.job.gallery)
    assert len(found) == len(CORPUS) + 8
    for key, name in hostile.names.items():
        expected = CORPUS[name][1]
        allowed = {Outcome.OK, Outcome.NO_FEATURES} if expected == Outcome.OK else {expected}
        assert found[key] in allowed, f"{name} ({key!r})"
    assert {found[key] for key in found.keys() - hostile.names.keys()} == {"ok"}


def test_the_counts_add_up(hostile: Hostile) -> None:
    found = Counter(outcomes(hostile.job.gallery).values())
    counts = read_generation(hostile.job.gallery).counts
    assert counts["live"] == counts["rows"] == found["ok"] >= 8
    assert counts["rejected"] == found.total() - found["ok"]
    assert len(found) >= 10  # reasons: the corpus has nearly all of them


def test_rejects_over_the_limit_stop_the_run_and_lose_nothing(hostile: Hostile) -> None:
    """The default limit is half: the message names the reasons, and what was described stays."""
    gallery = hostile.job.gallery
    assert RECIPE.features is not None
    with pytest.raises(OverBudget, match=r"images have no features \(.*unknown_format.*--max-rejects 1"):
        extract(hostile.job, read_catalogue(gallery), RECIPE.features, {"photos": hostile.source})


@pytest.fixture(scope="module")
def searcher(hostile: Hostile) -> Iterator[Searcher]:
    with open_searcher(hostile.job.gallery) as opened:
        yield opened


def test_a_query_has_the_same_reason_or_an_answer(hostile: Hostile, searcher: Searcher) -> None:
    found = outcomes(hostile.job.gallery)
    queries = [ImageQuery(CORPUS[name][0], None, key) for key, name in hostile.names.items()]
    for query, answer in zip(queries, searcher.search_images(queries, 3), strict=True):
        assert answer.query == query.name
        if found[query.name] == "ok":
            assert answer.rejected is None and len(answer.results) == 3
        else:
            assert answer.rejected is not None and answer.results == ()
            assert answer.rejected.reason == found[query.name], hostile.names[query.name]


def test_nasty_names_come_back_as_they_are(hostile: Hostile, searcher: Searcher) -> None:
    keys = [key for key, outcome in outcomes(hostile.job.gallery).items() if outcome == "ok"]
    for key in keys:
        result = searcher.image(image_identity("photos", key)[0])
        assert result.key == key
        assert result.uri == hostile.source.uri(key)
        assert Path(result.uri).is_file()


# -- files that change ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moving:
    """A folder of eight images in a gallery, to be changed under its feet."""

    job: Job
    folder: Path
    keys: list[str]
    other: dict[str, bytes]  # other images, to put in the place of these

    @property
    def source(self) -> Source:
        return images_of(str(self.folder))

    def put(self, key: str, data: bytes) -> None:
        (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / key).write_bytes(data)

    def nearest(self, data: bytes) -> tuple[str, float, int]:
        """Key and score of the best answer to an image, and how many answers there are."""
        with open_searcher(self.job.gallery) as searcher:
            (answer,) = searcher.search_images([ImageQuery(data)], 100)
        return answer.results[0].key, answer.results[0].score, len(answer.results)


@pytest.fixture
def moving(tmp_path: Path) -> Moving:
    images = rendered("synthetic:scenes=2,views=4,distractors=0,size=96,seed=9")
    other = rendered("synthetic:scenes=0,distractors=2,size=80,seed=10")
    moving = Moving(job_on(str(tmp_path / "gallery")), tmp_path / "photos", sorted(images), other)
    for key, data in images.items():
        moving.put(key, data)
    return moving


def test_what_changes_or_goes_between_listing_and_reading_is_told(moving: Moving) -> None:
    replaced, gone, swapped = moving.keys[0], moving.keys[3], moving.keys[6]
    fresh = next(iter(moving.other.values()))
    ingest_source(moving.job.gallery, moving.source, moving.job.progress)
    moving.put(replaced, fresh)
    (moving.folder / gone).unlink()
    (moving.folder / swapped).unlink()
    (moving.folder / swapped).symlink_to("/etc/passwd")
    assert ingest(moving.job, moving.source, small_recipe()).changed == 1
    found = _outcomes_of(moving.job.gallery)
    assert found[replaced] == ["changed", "ok"]  # the row that was listed first, and the one after
    assert found[gone] == ["missing"]
    assert found[swapped] == ["missing"]
    assert sum(outcome == ["ok"] for outcome in found.values()) == 5

    counts = build_images(moving.job, small_recipe(), moving.source).counts
    assert (counts["live"], counts["rejected"]) == (6, 2)
    key, score, answers = moving.nearest(fresh)
    assert (key, answers) == (replaced, 6)
    assert score == pytest.approx(1, abs=1e-5)


def test_a_new_version_masks_the_old_one(moving: Moving) -> None:
    key = moving.keys[2]
    old, new = (moving.folder / key).read_bytes(), list(moving.other.values())[1]
    ingest(moving.job, moving.source, small_recipe())
    build_images(moving.job, small_recipe(), moving.source)
    assert moving.nearest(old)[:2] == (key, pytest.approx(1, abs=1e-5))

    moving.put(key, new)
    report = ingest(moving.job, moving.source, small_recipe())
    assert (report.new, report.changed, report.unchanged) == (0, 1, 7)
    generation = build_images(moving.job, small_recipe(), moving.source)
    assert generation.counts == {"rows": 9, "masked": 1, "live": 8, "rejected": 0}
    found, score, answers = moving.nearest(new)
    assert (found, answers) == (key, 8)
    assert score == pytest.approx(1, abs=1e-5)
    assert moving.nearest(old)[1] < 0.999  # nobody has the old picture any more
    assert len(live_rows(moving.job.gallery, read_catalogue(moving.job.gallery)).image_id) == 8


def test_a_folder_that_is_gone_is_no_collection_of_rejects(moving: Moving) -> None:
    """An unmounted disk may come back; rejects would stay."""
    ingest_source(moving.job.gallery, moving.source, moving.job.progress)
    source = moving.source
    shutil.move(moving.folder, moving.folder.with_name("elsewhere"))
    features = small_recipe().features
    assert features is not None
    catalogue = read_catalogue(moving.job.gallery)
    with pytest.raises(Unavailable, match="photos any more: mount it"):
        extract(moving.job, catalogue, features, {"photos": source})
    shutil.move(moving.folder.with_name("elsewhere"), moving.folder)
    outcomes = extract(moving.job, catalogue, features, {"photos": source}).outcomes
    assert outcomes == {"ok": 8}


def _outcomes_of(gallery: Gallery) -> dict[str, list[str]]:
    """The outcomes of every image's rows, older rows first."""
    found: dict[str, list[str]] = {}
    features = small_recipe().features
    assert features is not None
    for part in read_catalogue(gallery).parts:
        keys = [decode_key(key) for key in read_part(gallery, part)["key"].to_pylist()]
        table = read_table(gallery.store, features_path(features.digest, part.part))
        for key, outcome in zip(keys, table["outcome"].to_pylist(), strict=True):
            found.setdefault(key, []).append(outcome)
    return found
