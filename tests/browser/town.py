"""A gallery of picture files for the browser: rendered scenes, copies of one, hostile names, metadata."""

import csv
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from index.build import build
from index.calibration import Calibration, calibrate
from index.removal import delete
from index.score_curve import Pairs
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.parts import PartSizes, ingest_source
from ingest.store import Store
from serve.query import ImageQuery
from serve.searcher import open_searcher
from tests.pipeline.small import images_of, job_on, rendered, stored_vectors
from tests.scenes import scene_recipe

SIZE = 320
SCENES = f"synthetic:scenes=6,views=4,distractors=6,size={SIZE},seed=3"
HOSTILE = "<img src=x onerror=document.title='owned'>.png"
QUERY = "facade-000000-view-00.png"
COPIED = "facade-000000-view-01.png"
COPIES = ("copy-brighter.png", "copy-of-copy.jpg", "copy-saved-again.jpg")
TAKEN_DOWN = "distractor-000005-view-00.png"
CITIES = ("Rome", "Paris", '<b>"Oslo"</b>')
GENERATION = 2


def make_town(folder: Path) -> Job:
    """Pictures below `folder`/pictures, and a gallery of them below `folder`/gallery.

    Its second generation has four shards, and one image fewer than the first.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    files = town_files()
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    (pictures / "metadata.csv").write_text(_metadata(sorted(files)))
    job, source = job_on(Store(str(folder / "gallery"))), images_of(str(pictures))
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=10))
    steps = [{"kind": "geometry", "depth": 24, "iterations": 500}]
    build(job, scene_recipe(name="town", steps=steps, shard_rows=10), {source.name: source})
    delete(job, [image_ids(job.gallery)[TAKEN_DOWN]])
    return job


def image_ids(gallery: Gallery) -> dict[str, int]:
    """The id of each image by its key."""
    with open_searcher(gallery) as searcher:
        rows = searcher.opened.rows_of(stored_vectors(gallery)[0].tolist())
        return {row.key: row.image_id for row in rows if row is not None}


def town_calibration(gallery: Gallery) -> Calibration:
    """What the town's scores mean, by the scenes that its names tell."""
    scores, same = [], []
    files = {name: data for name, data in town_files().items() if not name.startswith(("copy", "<"))}
    with open_searcher(gallery) as searcher:
        recipe = searcher.opened.generation.recipe
        queries = [ImageQuery(data, None, name) for name, data in files.items()]
        for answer in searcher.search_images(queries, 24):
            for result in answer.results:
                if result.key != answer.query and result.key in files:
                    scores.append(result.score)
                    same.append(scene_of(result.key) == scene_of(answer.query))
    pairs = Pairs(np.array(scores), np.array(same), len(files))
    return calibrate(recipe, recipe.steps, pairs, pairs, "the town", 24)


def scene_of(name: str) -> str:
    """The label of a file: `facade-000000` of `facade-000000-view-03.png`."""
    return COPIED.rpartition("-view")[0] if name in COPIES else name.rpartition("-view")[0]


@cache
def town_files() -> Mapping[str, bytes]:
    """File contents by name: every view as PNG, three near-copies of one, and a name that is markup."""
    views = {key.replace("/", "-").replace(".bmp", ".png"): data for key, data in rendered(SCENES).items()}
    files = {name: _encoded(_pixels(data), "PNG") for name, data in views.items()}
    copied = _pixels(files[COPIED])
    brighter = copied.point([min(255, value + 6) for value in range(256)] * 3)
    files[COPIES[0]] = _encoded(brighter, "PNG")
    files[COPIES[1]] = _encoded(copied, "JPEG", quality=90)
    files[COPIES[2]] = _encoded(copied, "JPEG", quality=80)
    files[HOSTILE] = _encoded(_pixels(files["object-000001-view-00.png"]), "PNG")
    return files


def on_its_side(kind: str = "JPEG", name: str = QUERY) -> bytes:
    """A view of the town whose pixels lie on their side: EXIF says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = _pixels(town_files()[name]).transpose(Image.Transpose.ROTATE_90)
    return _encoded(turned, kind, quality=92, exif=exif)


def enlarged(times: int, name: str = QUERY) -> bytes:
    """A view of the town with so many times the pixels a side."""
    pixels = _pixels(town_files()[name])
    return _encoded(pixels.resize((pixels.width * times, pixels.height * times)), "JPEG", quality=90)


def as_tiff(name: str = QUERY) -> bytes:
    """A view of the town in a format that browsers do not show."""
    return _encoded(_pixels(town_files()[name]), "TIFF")


def featureless() -> bytes:
    """A grey slope with three spots: hardly anything to describe."""
    slope = np.tile(np.linspace(90, 150, SIZE), (240, 1))
    pixels = np.dstack([slope] * 3).round().astype(np.uint8)
    for x, y in ((60, 50), (180, 160), (260, 90)):
        pixels[y : y + 9, x : x + 9] = 220
    return _encoded(Image.fromarray(pixels), "PNG")


def _metadata(names: list[str]) -> str:
    text = io.StringIO()
    rows = [_row(at, name) for at, name in enumerate(names)]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(at: int, name: str) -> Mapping[str, Any]:
    return {
        "key": name,
        "title": f"<i>{name.rpartition('.')[0]}</i> & more",
        "year": 1980 + at,
        "city": CITIES[at % len(CITIES)],
        "private": "true" if at % 4 == 0 else "false",
        "price": f"{10 + at / 4:.2f}",
    }


def _pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
