"""Features of single images: what is stored, by one checked read; the rest from the image, behind a cache."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest import feature_reader
from ingest.backends import Backend
from ingest.catalogue import Catalogue, read_catalogue, read_part
from ingest.cnn import NetworkDescriber
from ingest.compute import Compute
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.extract import extract
from ingest.feature_reader import FeatureReader, Place
from ingest.features import FeatureSettings, FeatureTable, read_features
from ingest.gallery import Gallery, create_gallery
from ingest.image_features import ImageFeatures
from ingest.outcomes import Outcome, Rejected
from ingest.parts import PartSizes, ingest_source
from ingest.records import decode_key
from ingest.store import Store
from tests.cvnet_checkpoint import golden_state
from tests.ingest.describing import picture, png_of, same
from tests.pipeline.small import HereDecoder, images_of, job_on

NETWORK = {"name": "cvnet-r50", "weights": "seed:0", "digest": "0" * 32}
FEATURES = FeatureSettings.model_validate(
    {
        "decode": {"longest_side": 64},
        "describe": {
            "local": {"kind": "sift", "max_keypoints": 30},
            "global": {"kind": "cnn-global", "network": NETWORK, "head": True},
            "stored": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "float32"},
            "computed": {"kind": "cvnet-pyramid", "network": NETWORK, "storage": "none"},
            "capped": {
                "kind": "cvnet-pyramid",
                "network": NETWORK,
                "storage": "none",
                "longest_map_side": 2,
            },
        },
    }
)
PYRAMID = 256 * 4 * (4 * 4 + 3 * 3 + 2 * 2)  # bytes of an image's three maps
BROKEN = "a-broken.png"


@dataclass
class Watched:
    """A backend that notes what is read."""

    inner: Backend
    reads: list[tuple[str, int | None, int | None]] = field(default_factory=list)

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.reads.append((path, start, end))
        return self.inner.get(path, start, end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True)
class Photos:
    """A folder of five pictures and a file that is none, described in three parts."""

    url: str
    folder: Path
    catalogue: Catalogue
    places: dict[str, Place]  # by key

    def gallery(self, watched: Watched | None = None) -> Gallery:
        backend = None if watched is None else watched
        return create_gallery(Store(self.url, backend=backend))  # type: ignore[arg-type]

    def watched(self) -> Watched:
        return Watched(Store(self.url).backend)

    def reader(self, watched: Watched | None = None, cache_bytes: int = 2**30) -> FeatureReader:
        return FeatureReader(self.gallery(watched), FEATURES, self.catalogue, Compute(), cache_bytes)

    @property
    def good(self) -> list[Place]:
        return [place for key, place in self.places.items() if key != BROKEN]


@pytest.fixture(scope="module", autouse=True)
def _golden_weights() -> Iterator[None]:
    state = golden_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.features.DecoderPool", HereDecoder)
        for module in ("ingest.features", "ingest.feature_reader"):
            patch.setattr(f"{module}.weights_loader", lambda _: lambda _: state)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    place = tmp_path_factory.mktemp("reader")
    folder, url = place / "photos", str(place / "gallery")
    folder.mkdir()
    (folder / BROKEN).write_bytes(b"no picture")
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png_of(picture(64, 64, number)))
    job, source = job_on(url), images_of(f"photos={folder}")
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=2))
    catalogue = read_catalogue(job.gallery)
    extract(job, catalogue, FEATURES, {"photos": source}, max_rejects=1.0)
    places = {
        decode_key(key): Place(part.part, row)
        for part in catalogue.parts
        for row, key in enumerate(read_part(job.gallery, part, ["key"])["key"].to_pylist())
    }
    assert len(catalogue.parts) == 3 and len(places) == 6
    return Photos(url, folder, catalogue, places)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images a network saw, call by call."""
    seen: list[int] = []
    original = NetworkDescriber.describe

    def counted(self: NetworkDescriber, images: Any) -> Any:
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(NetworkDescriber, "describe", counted)
    return seen


def found(features: ImageFeatures | Rejected) -> ImageFeatures:
    assert isinstance(features, ImageFeatures), features
    return features


# -- what is stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [{"local"}, {"global"}, {"stored"}, {"local", "stored"}, set()])
def test_what_is_read_is_what_was_asked_for(labels: set[str], photos: Photos) -> None:
    """In the order of the places, whatever that is."""
    places = [*reversed(photos.good), photos.good[2]]
    with photos.reader() as reader:
        read = reader.read(places, labels)
    for place, features in zip(places, read, strict=True):
        ((_, expected),) = read_features(photos.gallery(), FEATURES.digest, place.part, [place.row], labels)
        assert same(features, expected)
        assert set(found(features).by_label) == labels


@pytest.mark.parametrize("label", ["local", "global", "stored"])
def test_one_label_of_an_image_is_one_ranged_read_of_its_bytes(label: str, photos: Photos) -> None:
    watched = photos.watched()
    with photos.reader(watched) as reader:
        for place in photos.good:
            reader.read([place], [label])
            table = FeatureTable(photos.gallery(), FEATURES.digest, place.part)
            (record,) = [each for each in table.rows[place.row]["records"] if each["label"] == label]
            blobs = [read for read in watched.reads if read[0].endswith(".blob")]
            assert blobs == [(table.blob, record["offset"], record["offset"] + record["length"])]
            watched.reads.clear()


def test_tables_are_read_once_and_so_many_are_kept(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = photos.watched()
    parts = [part.part for part in photos.catalogue.parts]

    def tables() -> int:
        count = sum(read[0].endswith(".parquet") for read in watched.reads)
        watched.reads.clear()
        return count

    with photos.reader(watched) as reader:
        reader.read(photos.good, ["local"])
        tables()
        reader.read(photos.good, ["global"])
        assert tables() == 0
    monkeypatch.setattr(feature_reader, "_ROWS_KEPT", 4)  # of two parts
    with photos.reader(watched) as reader:
        tables()
        for part, expected in ((0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)):
            reader.read([Place(parts[part], 0)], ["local"])
            assert tables() == expected


def test_an_image_that_has_no_features_says_why(photos: Photos) -> None:
    with photos.reader() as reader:
        for labels in (["local"], ["computed"], ["local", "computed"]):
            rejected, features = reader.read([photos.places[BROKEN], photos.good[0]], labels)
            assert isinstance(rejected, Rejected) and rejected.reason is Outcome.UNKNOWN_FORMAT
            assert rejected.detail
            assert set(found(features).by_label) == set(labels)


def test_a_damaged_record_is_named_and_the_others_are_read(photos: Photos) -> None:
    place, other = next(
        pair for pair in zip(photos.good, photos.good[1:], strict=False) if pair[0].part == pair[1].part
    )
    table = FeatureTable(photos.gallery(), FEATURES.digest, place.part)
    (record,) = [each for each in table.rows[place.row]["records"] if each["label"] == "stored"]
    file = Path(photos.url) / table.blob
    original = file.read_bytes()
    at = record["offset"] + record["length"] // 2
    file.chmod(0o644)
    file.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
    try:
        with photos.reader() as reader:
            with pytest.raises(Corrupt, match=rf"{table.blob} is damaged at row {place.row}"):
                reader.read([other, place], ["stored"])
            assert isinstance(reader.read([place], ["global"])[0], ImageFeatures)
            assert isinstance(reader.read([other], ["stored"])[0], ImageFeatures)
        file.unlink()
        with photos.reader() as reader, pytest.raises(NotFound, match=table.blob):
            reader.read([other], ["stored"])
    finally:
        file.write_bytes(original)


# -- what is computed ---------------------------------------------------------------------------------------


def test_what_is_computed_is_what_would_have_been_stored(photos: Photos) -> None:
    """To the last bit, at the one thread that is used for what is stored."""
    with photos.reader() as reader:
        for features in map(found, reader.read(photos.good, ["stored", "computed"])):
            assert sum(array.nbytes for array in features.of("stored").values()) == PYRAMID
            assert {name: array.tobytes() for name, array in features.of("computed").items()} == {
                name: array.tobytes() for name, array in features.of("stored").items()
            }


def test_what_was_computed_is_kept_and_not_computed_again(photos: Photos, passes: list[int]) -> None:
    with photos.reader() as reader:
        first = reader.read(photos.good[:3], ["computed"])
        assert passes == [1, 1, 1]
        again = reader.read(photos.good[:3], ["global", "computed"])
        assert passes == [1, 1, 1]
        both = reader.read(photos.good[:1], ["computed", "capped"])  # one is there, the other is not
        assert passes == [1, 1, 1, 1]
    for one, other in zip(first, again, strict=True):
        assert found(other).of("computed") is found(one).of("computed")
    assert set(found(both[0]).by_label) == {"computed", "capped"}


@pytest.mark.parametrize(
    ("room", "computed"),
    [
        (3, [0, 1, 2]),
        (2, [0, 1, 2, 1]),  # 2 pushed 1 out, which was not asked for as lately as 0
        (0, [0, 1, 0, 2, 0, 1]),
    ],
)
def test_the_cache_keeps_what_was_asked_for_last_and_no_more_than_it_may(
    room: int, computed: list[int], photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Place] = []
    original = feature_reader._Computer._describe

    def counted(self: Any, place: Place, *others: Any) -> Any:
        asked.append(place)
        return original(self, place, *others)

    monkeypatch.setattr(feature_reader._Computer, "_describe", counted)
    with photos.reader(cache_bytes=room * PYRAMID) as reader:
        for number in (0, 1, 0, 2, 0, 1):
            (features,) = reader.read([photos.good[number]], ["computed"])
            assert set(found(features).by_label) == {"computed"}
            kept = reader._computer._cache.values()
            assert sum(array.nbytes for arrays in kept for array in arrays.values()) <= room * PYRAMID
    assert asked == [photos.good[number] for number in computed]


def test_threads_share_a_reader(photos: Photos, passes: list[int]) -> None:
    expected = [found(features) for features in _read_alone(photos)]
    passes.clear()
    with photos.reader() as reader, ThreadPoolExecutor(6) as pool:
        asked = [n % 5 for n in range(20)]
        read = list(pool.map(lambda n: reader.read([photos.good[n]], ["computed", "global"])[0], asked))
    assert all(same(features, expected[n]) for n, features in zip(asked, read, strict=True))
    assert passes == [1] * 5


def _read_alone(photos: Photos) -> list[ImageFeatures | Rejected]:
    with photos.reader() as reader:
        return reader.read(photos.good, ["computed", "global"])


# -- images that are not what they were ---------------------------------------------------------------------


def _remove(file: Path) -> None:
    file.unlink()


def _change(file: Path) -> None:
    file.write_bytes(png_of(picture(64, 64, 99)))


@pytest.mark.parametrize(("what", "reason"), [(_remove, Outcome.MISSING), (_change, Outcome.CHANGED)])
def test_an_image_that_is_gone_or_another_now_is_rejected(
    what: Callable[[Path], None], reason: Outcome, photos: Photos, passes: list[int]
) -> None:
    key, place = next((key, place) for key, place in photos.places.items() if key != BROKEN)
    file = photos.folder / key
    data = file.read_bytes()
    what(file)
    try:
        with photos.reader() as reader:
            rejected, features = reader.read([place, photos.good[1]], ["computed"])
            stored = reader.read([place], ["stored"])[0]
    finally:
        file.write_bytes(data)
    assert isinstance(rejected, Rejected) and rejected.reason is reason
    assert isinstance(features, ImageFeatures)
    assert isinstance(stored, ImageFeatures)  # what is stored needs no file
    assert passes == [1]
    with photos.reader() as reader:
        assert isinstance(reader.read([place], ["computed"])[0], ImageFeatures)


def test_a_folder_that_is_gone_rejects_its_images(photos: Photos) -> None:
    away = photos.folder.rename(photos.folder.parent / "elsewhere")
    try:
        with photos.reader() as reader:
            for rejected in reader.read(photos.good[:2], ["computed"]):
                assert isinstance(rejected, Rejected) and rejected.reason is Outcome.MISSING
    finally:
        away.rename(photos.folder)


def test_closing_ends_the_decoding_process(photos: Photos) -> None:
    reader = photos.reader()
    reader.read(photos.good[:1], ["computed"])
    decoder = reader._computer._decoder
    assert decoder is not None
    reader.close()
    reader.close()
    with pytest.raises(BadInput, match="closed"):
        decoder.decode(png_of(np.zeros((20, 20, 3), np.uint8)))
