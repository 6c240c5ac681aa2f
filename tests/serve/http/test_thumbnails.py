"""Thumbnails: pixels and nothing else, of images that are what they were, at a bounded cost."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from index.build import build
from index.group import Row, assign_shards, open_group
from ingest.decode import DecodeSettings
from ingest.errors import NotFound
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.parts import ingest_source
from ingest.records import image_identity
from ingest.sources import Source, open_source
from ingest.store import Store
from serve.http.thumbnails import SIZES, NoThumbnail, Thumbnails, rounded
from serve.refusals import Away, ImageRejected
from tests.pipeline.small import job_on, small_recipe
from tests.tiny import build_tiny, ingest, memory_store, vectors
from tests.tiny import job_on as vectors_job_on

SECRET_PLACE = b"Villa Geheim"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blocks of colour, so that reductions can be told apart from other images."""
    drawn = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(drawn).resize((width, height), Image.Resampling.NEAREST)


def with_gps(image: Image.Image) -> bytes:
    """A JPEG as a phone writes it: turned by EXIF, with a place, a comment and a profile."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = SECRET_PLACE.decode()
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    place[ExifTags.GPS.GPSAreaInformation] = SECRET_PLACE
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, comment=SECRET_PLACE, icc_profile=SECRET_PLACE * 20, quality=95)
    return file.getvalue()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Eight photographs in a folder, and a generation over them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(with_gps(picture(300, 200, number)))
    job, source = job_on(str(tmp_path / "gallery")), open_source(str(folder))
    assert isinstance(source, Source)
    ingest_source(job.gallery, source, job.progress)
    build(job, small_recipe(), {source.name: source})
    return job


@pytest.fixture
def thumbnails(job: Job) -> Iterator[Thumbnails]:
    with Thumbnails(job.gallery) as made:
        yield made


def row_of(job: Job, key: str, number: int = 1) -> Row:
    from index.generation import read_generation

    generation = read_generation(job.gallery, number)
    (shards,) = assign_shards(generation.shards, 1)
    (row,) = open_group(job.gallery, generation, shards, None).rows_of([image_identity("photos", key)[0]])
    assert row is not None
    return row


def shown(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_gallery_image_is_shown_upright_and_at_the_size_asked_for(job: Job, thumbnails: Thumbnails) -> None:
    row = row_of(job, "3.jpg")
    for size, chosen in ((64, 64), (65, 128), (200, 256), (1024, 1024)):
        found = shown(thumbnails.of_image(1, row.place, row.key, size).data)
        longest = min(chosen, 300)  # never enlarged
        assert found.size == (round(longest * 2 / 3), longest) and found.format == "JPEG"
    upright = picture(300, 200, 3).rotate(-90, expand=True)
    error = np.abs(np.asarray(found, float) - np.asarray(upright, float)).mean()
    assert error < 10, "the same picture, written anew"


def test_nothing_of_the_file_but_its_pixels_comes_out(job: Job, thumbnails: Thumbnails) -> None:
    row = row_of(job, "0.jpg")
    data = with_gps(picture(300, 200))
    assert SECRET_PLACE in data
    for size in SIZES:
        for found in (
            thumbnails.of_image(1, row.place, row.key, size),
            thumbnails.of_upload("d" * 64, data, size),
        ):
            image = shown(found.data)
            assert SECRET_PLACE not in found.data and b"Exif" not in found.data
            assert not image.getexif() and set(image.info) <= {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
            }


def test_a_file_that_changed_or_went_is_not_shown(job: Job, thumbnails: Thumbnails, tmp_path: Path) -> None:
    changed, gone, kept = (row_of(job, f"{number}.jpg") for number in (1, 2, 3))
    (tmp_path / "photos" / "1.jpg").write_bytes(with_gps(picture(300, 200, 99)))
    (tmp_path / "photos" / "2.jpg").unlink()
    for row, reason in ((changed, "changed"), (gone, "missing")):
        with pytest.raises(NoThumbnail) as refused:
            thumbnails.of_image(1, row.place, row.key, 256)
        assert refused.value.reason == reason
    assert thumbnails.of_image(1, kept.place, kept.key, 256).data


def test_a_link_out_of_the_folder_is_not_followed(job: Job, thumbnails: Thumbnails, tmp_path: Path) -> None:
    row = row_of(job, "1.jpg")
    file = tmp_path / "photos" / "1.jpg"
    file.rename(tmp_path / "outside.jpg")
    file.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(NoThumbnail):
        thumbnails.of_image(1, row.place, row.key, 256)


def test_the_same_thumbnail_is_kept_and_has_the_same_etag(job: Job, thumbnails: Thumbnails) -> None:
    row = row_of(job, "0.jpg")
    first = thumbnails.of_image(1, row.place, row.key, 100)
    assert thumbnails.of_image(1, row.place, row.key, 128) is first
    with Thumbnails(job.gallery, cache_bytes=0) as forgetful:
        again = forgetful.of_image(1, row.place, row.key, 128)
        assert again == first and again is not first
        assert forgetful.of_image(1, row.place, row.key, 128) is not again
    other = row_of(job, "1.jpg")
    assert thumbnails.of_image(1, other.place, other.key, 128).etag != first.etag


def test_a_gallery_of_vectors_has_no_pictures() -> None:
    job = vectors_job_on(memory_store())
    ingest(job, vectors("base", 8))
    generation = build_tiny(job)
    (shards,) = assign_shards(generation.shards, 1)
    (row,) = open_group(job.gallery, generation, shards, None).rows_of([image_identity("base", "0")[0]])
    assert row is not None
    with Thumbnails(job.gallery) as thumbnails, pytest.raises(NoThumbnail) as refused:
        thumbnails.of_image(generation.number, row.place, row.key, 64)
    assert refused.value.reason == "no_images"


def test_a_place_of_another_generation_is_not_found(job: Job, thumbnails: Thumbnails) -> None:
    row = row_of(job, "0.jpg")
    with pytest.raises(NotFound, match="ask for the image again"):
        thumbnails.of_image(1, row.place._replace(part="0" * 32), row.key, 64)
    with pytest.raises(NotFound):
        thumbnails.of_image(99, row.place, row.key, 64)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg/>", b"\xff\xd8\xff" + b"x" * 1_000])
def test_an_upload_that_cannot_be_decoded_is_refused_with_the_reason(
    thumbnails: Thumbnails, data: bytes
) -> None:
    with pytest.raises(ImageRejected) as refused:
        thumbnails.of_upload("e" * 64, data, 256)
    assert refused.value.reason in ("empty", "unknown_format", "truncated", "damaged")


def test_limits_hold_for_uploads(tmp_path: Path) -> None:
    job = job_on(Store(str(tmp_path / "gallery")))
    file = io.BytesIO()
    picture(400, 400).save(file, "PNG")
    with (
        Thumbnails(job.gallery, limits=DecodeSettings(max_pixels=100_000)) as thumbnails,
        pytest.raises(ImageRejected) as refused,
    ):
        thumbnails.of_upload("f" * 64, file.getvalue(), 256)
    assert refused.value.reason == "too_many_pixels"


def test_the_cache_holds_no_more_than_its_bytes(job: Job) -> None:
    one = Thumbnails(job.gallery)
    sizes = []
    with one:
        for number in range(8):
            row = row_of(job, f"{number}.jpg")
            sizes.append(len(one.of_image(1, row.place, row.key, 256).data))
    most = sum(sizes[-3:])
    with Thumbnails(job.gallery, cache_bytes=most) as thumbnails:
        rows = [row_of(job, f"{number}.jpg") for number in range(8)]
        made = [thumbnails.of_image(1, row.place, row.key, 256) for row in rows]
        again = [thumbnails.of_image(1, row.place, row.key, 256) for row in reversed(rows)]
    same = [first is second for first, second in zip(made, reversed(again), strict=True)]
    assert same[-3:] == [True] * 3 and not any(same[:4])


def test_after_the_end_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("serve.http.thumbnails.DecoderPool", lambda *settings: started.append(settings))
    thumbnails = Thumbnails(Gallery(Store("memory://nothing"), "none"))
    thumbnails.close()
    with pytest.raises(Away):
        thumbnails.of_upload("0" * 64, b"GIF89a.", 64)
    assert started == []


def test_sizes_are_few() -> None:
    assert {rounded(size) for size in range(1, 3_000)} == set(SIZES)
    assert all(rounded(size) >= size for size in range(1, 1_025))
