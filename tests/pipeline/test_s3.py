"""The whole life of an image gallery on a real S3 server, one that is killed, and two publishers at once."""

import io
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from PIL import Image

from index.collect import collect
from index.purge import purge
from index.removal import delete, rollback
from index.verify import verify
from ingest.catalogue import read_catalogue
from ingest.errors import BadInput, NotFound, Unavailable
from ingest.gallery import create_gallery
from ingest.records import image_identity
from ingest.store import Backend, FsspecBackend, Store
from serve.query import ImageQuery
from serve.searcher import open_searcher
from tests import tiny
from tests.conftest import S3, _free_ports, _start_weed, _wait_until_ready
from tests.pipeline.small import (
    RECIPES,
    assert_same_gallery,
    build_images,
    contents,
    images_of,
    ingest,
    job_on,
    rendered,
)

pytestmark = pytest.mark.s3


def _jpegs(count: int) -> dict[str, bytes]:
    """Photographs, as far as a test has any."""
    files = {}
    for key, data in rendered("synthetic:scenes=3,views=5,distractors=0,size=128,seed=7", count).items():
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).save(file, "JPEG", quality=90)
        files[key.replace(".bmp", ".jpg")] = file.getvalue()
    return files


def _upload(server: S3, folder: str, files: dict[str, bytes]) -> None:
    filesystem = s3fs.S3FileSystem(**server.options)
    for key, data in files.items():
        filesystem.pipe_file(f"{folder}/{key}", data)


@pytest.mark.parametrize("which", RECIPES)
def test_the_whole_life_of_a_gallery(which: str, s3: S3) -> None:
    recipe = RECIPES[which]()
    files, bucket = _jpegs(13), s3.bucket()
    (*early, late), victim_key = list(files), list(files)[6]
    _upload(s3, f"{bucket}/photos", {key: files[key] for key in early})
    photos = images_of(f"s3://{bucket}/photos")
    job = job_on(f"s3://{bucket}/gallery")
    gallery = job.gallery
    assert ingest(job, photos, recipe, most_images=4).new == 12
    assert build_images(job, recipe, photos).number == 1
    _upload(s3, f"{bucket}/photos", {late: files[late]})
    report = ingest(job, photos, recipe, most_images=4)
    assert (report.new, report.unchanged) == (1, 12)
    assert build_images(job, recipe, photos).number == 2
    assert verify(job).problems == ()

    victim = image_identity("photos", victim_key)[0]
    data, uri = files[victim_key], f"s3://{bucket}/photos/{victim_key}"
    assert _found(gallery, data)[0] == uri
    delete(job, [victim])
    for number, images in ((1, 11), (2, 12)):  # what was taken down stays down
        rollback(job, number)
        found = _found(gallery, data)
        assert uri not in found and len(found) == images

    before = len(contents(gallery.store))
    purged = purge(job, lambda newest: build_images(job, newest.recipe, photos))
    assert (purged.images, purged.parts) == (1, 1)
    assert purged.generation == gallery.generations.newest() == 6
    assert len(_found(gallery, data)) == 12
    removed = collect(gallery, keep=1, grace_s=0).removed
    assert removed["manifests"] >= 1
    assert len(contents(gallery.store)) <= before
    assert verify(job).problems == ()
    assert victim not in set(_ids(gallery))
    with pytest.raises(NotFound):
        rollback(job, 1)
    assert len(_found(gallery, data)) == 12


def _found(gallery: Any, data: bytes) -> list[str]:
    with open_searcher(gallery) as searcher:
        (answer,) = searcher.search_images([ImageQuery(data)], 100)
        return [result.uri for result in answer.results]


def _ids(gallery: Any) -> list[int]:
    from ingest.catalogue import all_rows

    return all_rows(gallery, read_catalogue(gallery)).image_id.tolist()


class _Lax:
    """The server through a client that leaves the condition of a write out: as a store that ignores it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.inner.pipe_file(path, data, mode="overwrite", **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_store_that_ignores_create_only_writes_is_refused(s3: S3) -> None:
    url = f"s3://{s3.bucket()}/gallery"
    clean = Store(url)
    assert isinstance(clean.backend, FsspecBackend)
    lax = Store(url, backend=FsspecBackend(_Lax(clean.backend.filesystem), clean.backend.root))
    with pytest.raises(BadInput, match=f"{url} does not honour create-only writes.*use a store that does"):
        create_gallery(lax)
    assert clean.listing("") == []
    create_gallery(clean)


# -- a server of one's own, to kill ---------------------------------------------------------------------


@dataclass
class Weed:
    """A server that can be killed and started again on the same folder and ports."""

    server: S3
    process: "subprocess.Popen[bytes]"
    folder: Path
    deaths: int = 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.deaths += 1

    def start(self) -> None:
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.process.args, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        _wait_until_ready(self.server, self.process, self.folder / "weed.log")


@pytest.fixture
def weed(s3: S3) -> Iterator[Weed]:
    """`s3` is asked for because it says how to install the server where there is none."""
    import sys

    with tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True) as name:
        folder, ports, secret = Path(name), _free_ports(), uuid.uuid4().hex
        process = _start_weed(Path(sys.executable).with_name("weed"), folder, ports, secret)
        server = S3(f"http://127.0.0.1:{ports['s3.port']}", "test-key", secret, process.pid)
        weed = Weed(server, process, folder)
        try:
            _wait_until_ready(server, process, folder / "weed.log")
            yield weed
        finally:
            weed.process.kill()
            weed.process.wait()


class _Killing:
    """A backend whose server is killed just before the n-th object is written, or just after."""

    def __init__(self, inner: Backend, weed: Weed, at: int, after: bool) -> None:
        self.inner, self.weed, self.at, self.after, self.writes = inner, weed, at, after, 0

    def put_new(self, path: str, data: bytes) -> bool:
        self.writes += 1
        if self.writes == self.at and not self.after:
            self.weed.kill()
        created = self.inner.put_new(path, data)
        if self.writes == self.at and self.after:
            self.weed.kill()
        return created

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    ("which", "at", "after"), [("sift", 4, False), ("sift", 9, True), ("cnn", 1, True), ("cnn", 12, False)]
)
def test_a_server_killed_in_the_middle_of_an_ingest(
    weed: Weed, tmp_path: Path, which: str, at: int, after: bool
) -> None:
    """12 images in 6 parts: writes 1 to 7 list them (with their manifest), the others describe them.

    A network's weights are written before all that.
    """
    recipe, files = RECIPES[which](), _jpegs(12)
    folder = tmp_path / "photos"
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    photos = images_of(str(folder))
    calm = job_on(str(tmp_path / "calm"))
    ingest(calm, photos, recipe, most_images=2)
    build_images(calm, recipe, photos)

    url = f"s3://{weed.server.bucket()}/gallery"
    store = Store(url, weed.server.options)
    job_on(store)
    killing = Store(url, weed.server.options, _Killing(store.backend, weed, at, after), (0.0,))  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        ingest(job_on(killing), photos, recipe, most_images=2)
    assert weed.deaths == 1
    weed.start()
    again = job_on(Store(url, weed.server.options))
    ingest(again, photos, recipe, most_images=2)
    build_images(again, recipe, photos)
    assert_same_gallery(calm.gallery.store, again.gallery.store)
    assert verify(again).problems == ()


# -- two publishers -------------------------------------------------------------------------------------


def test_two_publishers_at_once_lose_nothing(s3: S3) -> None:
    """Each round both add vectors of their own at the same moment, and publish them."""
    store = Store(f"s3://{s3.bucket()}/gallery")
    first = tiny.vectors("seed", 4)
    tiny.ingest(tiny.job_on(store), first)
    tiny.build_tiny(tiny.job_on(store))
    expected = set(first.ids())
    for number in range(6):
        sources = [tiny.vectors(f"{side}{number}", 3) for side in "ab"]
        together, errors = threading.Barrier(2), []

        def publish(source: tiny.TinyVectors, together: threading.Barrier, errors: list[Exception]) -> None:
            try:
                job = tiny.job_on(Store(store.url))
                together.wait()
                tiny.ingest(job, source)
                tiny.build_tiny(job)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=publish, args=(source, together, errors)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        expected |= {image for source in sources for image in source.ids()}
        assert set(tiny.answers(tiny.job_on(store).gallery)) == expected, f"round {number}"
    assert len(expected) == 4 + 6 * 2 * 3
    assert np.all(np.diff(tiny.job_on(store).gallery.generations.numbers()) == 1)
