"""What each CNN descriptor is worth beside SIFT-VLAD, on three sets of photographs.

A gallery a set, its photographs ingested once with everything that any row of the table wants; a row is a
recipe on these features, built and evaluated exactly. How fast a row describes is measured apart, on few
photographs with nothing else described.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.evaluation import Evaluation, evaluate_labels
from deploy.jobs import build_index, ingest, open_job, open_sources
from index.encodings import load_vectoriser
from index.generation import Generation
from index.recipe import Recipe
from ingest.compute import Compute
from ingest.job import Job
from ingest.threads import fixed_threads
from tests.evaluation import descriptor_rows
from tests.evaluation.descriptor_rows import LONGEST, Row
from tests.evaluation.page import Cell, table
from tests.evaluation.smvs import FOLDERS, JUNK, LABELS, Target

TIMED = 32  # photographs on which the speed of describing is measured
TAUGHT_EVERY = 2  # of the photographs of products that models are fitted on, every so many are taken


@dataclass(frozen=True)
class PhotoSet:
    """Photographs with labels.

    taught: folders that are ingested first, and that every model is fitted on.
    asked: folders that come later; empty where the questions are among the first.
    labels, junk: patterns of `evaluate_labels`.
    products: pattern of the labels that learned whitening learns from; None where labels may not be used.
    """

    name: str
    what: str
    taught: tuple[Path, ...]
    labels: str
    asked: tuple[Path, ...] = ()
    junk: str | None = None
    products: str | None = None


def photo_sets(shared: Path, folder: Path) -> list[PhotoSet]:
    """The sets, the first of them the one that the target is about."""
    data = shared / "data"
    return [
        PhotoSet(
            "smvs_dvd",
            "DVD covers with distractors, as in the first section",
            tuple(data / name for name in FOLDERS),
            LABELS,
            junk=JUNK,
        ),
        PhotoSet(
            "grocery/val",
            "100 photographs of 31 products, each a query among the other 99; all models were fitted on "
            "{taught} photographs of `grocery/train`, before these were added",
            (some_of(data / "grocery" / "train", folder / "train"),),
            r"^val/(.+)_\d+\.",
            asked=(data / "grocery" / "val",),
            junk=r"^train/",
            products=r"^train/(.+)_\d+\.",
        ),
        PhotoSet(
            "strecha",
            "views of 4 buildings, the two series of the same building under one label; "
            "10 files that are there twice are left out",
            (data / "strecha",),
            r"^strecha/([A-Za-z-]+)-P\d+/",
            junk=r"^strecha/castle-P19/00\d[02468]\.",
        ),
    ]


def some_of(photographs: Path, folder: Path) -> Path:
    """A folder with copies of some photographs."""
    folder.mkdir(parents=True)
    for file in sorted(photographs.iterdir())[::TAUGHT_EVERY]:
        shutil.copy(file, folder / file.name)
    return folder


def descriptors(shared: Path, folder: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    sets = photo_sets(shared, folder)
    rows = descriptor_rows.rows()
    found: dict[str, dict[str, Evaluation]] = {}
    bytes_of: dict[str, int] = {}
    for chosen in sets:
        found[chosen.name] = {}
        for row, evaluation, size in evaluated(chosen, rows, folder / chosen.name.replace("/", "-")):
            found[chosen.name][row.name] = evaluation
            bytes_of.setdefault(row.name, size)
    seconds = seconds_an_image(shared, folder)
    return _text(sets, rows, found, bytes_of, seconds), _targets(found[sets[0].name])


def evaluated(photos: PhotoSet, rows: Sequence[Row], url: Path) -> Iterator[tuple[Row, Evaluation, int]]:
    """Each row with its figures and the bytes of a vector."""
    mine = [row for row in rows if photos.products is not None or not row.learned]
    recipes = {row.name: row.recipe(photos.products) for row in mine}
    _ingest(url, photos.taught, recipes[mine[0].name])
    if photos.asked:
        with open_job(str(url)) as job:  # small builds: starting Ray's workers would cost more
            for recipe in recipes.values():
                build_index(job, recipe)
        _ingest(url, photos.asked, recipes[mine[0].name])
    with open_job(str(url)) as job:
        for row in mine:
            generation = build_index(job, recipes[row.name])
            found = evaluate_labels(
                job, photos.labels, generation=generation.number, junk_pattern=photos.junk
            )
            yield row, found, _vector_bytes(job, generation)


def _ingest(url: Path, folders: Sequence[Path], recipe: Recipe) -> None:
    with open_job(str(url), "ray", create=True) as job:
        ingest(job, open_sources([str(folder) for folder in folders]), recipe)


def _vector_bytes(job: Job, generation: Generation) -> int:
    models = generation.models
    assert models.encoder is not None
    encoder, projection = load_vectoriser(job.gallery, models.encoder, models.projection)
    return 4 * (encoder.dim if projection is None else projection.dim)


def seconds_an_image(shared: Path, folder: Path) -> dict[str, float]:
    """By label, what describing takes one worker with one thread: its own stage, without decoding."""
    timed = folder / "timed"
    timed.mkdir()
    files = sorted((shared / "data" / "smvs_dvd").rglob("*.jpg"))
    for place, file in enumerate(files[:: len(files) // TIMED][:TIMED]):
        shutil.copy(file, timed / f"{place}.jpg")
    found = {}
    with fixed_threads(1):
        for label in descriptor_rows.described():
            recipe = descriptor_rows.alone(label)
            url = str(folder / f"timed-{label}")
            with open_job(url, create=True, compute=Compute(device="cpu")) as job:
                report = ingest(job, open_sources([str(timed)]), recipe)
            found[label] = report.seconds["describe"] / report.described
    return found


def _text(
    sets: Sequence[PhotoSet],
    rows: Sequence[Row],
    found: Mapping[str, Mapping[str, Evaluation]],
    bytes_of: Mapping[str, int],
    seconds: Mapping[str, float],
) -> str:
    lines: list[list[Cell]] = []
    for row in rows:
        rate = 1 / sum(seconds[label] for label in row.labels)
        maps: list[Cell] = [
            found[photos.name][row.name].map if row.name in found[photos.name] else None for photos in sets
        ]
        lines.append([row.name, bytes_of[row.name], f"{rate:.1f}", *maps])
    head = ["descriptor", "bytes", "images a second", *(f"`{photos.name}`" for photos in sets)]
    return (
        f"mAP by exact search. Network: EfficientNet-Lite0 with its ImageNet weights, images of {LONGEST} "
        "pixels (longest side); patches and SIFT are taken from images of 640. Bytes: of a vector, float32 "
        "(`grocery/val`, `strecha`: fewer where there are fewer images than components). Images a second: "
        "described by one worker with one thread, decoding and encoding left out.\n\n"
        + "\n".join(_protocol(photos, found[photos.name]) for photos in sets)
        + "\n\n"
        + table(head, lines)
        + "\n"
        + descriptor_rows.SETTINGS
        + "\n"
    )


def _protocol(photos: PhotoSet, found: Mapping[str, Evaluation]) -> str:
    figures: Any = next(iter(found.values()))
    taught = sum(1 for folder in photos.taught for file in folder.rglob("*") if file.suffix == ".jpg")
    return f"- `{photos.name}`: {photos.what.format(taught=taught)}; {figures.queries} queries."


def _targets(found: Mapping[str, Evaluation]) -> list[Target]:
    best = max(found[name].map for name in descriptor_rows.GEM)
    targets = []
    for kind, names in {"hybrid": descriptor_rows.HYBRID, "fused": descriptor_rows.FUSED}.items():
        name = max(names, key=lambda each: found[each].map)
        figures = f"{found[name].map:.4f} ({name}) against {best:.4f}"
        targets.append(
            Target(f"`smvs_dvd`: {kind} rows beat GeM, whitened or not", found[name].map > best, figures)
        )
    return targets
