"""The demonstration: a thousand images through every stage, to a printed mAP and a contact sheet."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.jobs import EngineKind, build_index, ingest, open_job, open_sources
from deploy.recipes import load_recipe
from deploy.search_job import answer_json
from deploy.terminal import Output, stop_on_sigterm
from index.fit import model_notes
from ingest.catalogue import live_rows, read_catalogue, read_part
from ingest.errors import BadInput, NotFound
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.records import decode_key, digest_of
from ingest.sources import Source

if TYPE_CHECKING:
    from index.generation import Generation
    from serve.query import ImageQuery
    from serve.searcher import Answer, Searcher

RECIPE = "sift-vlad"
LABELS = r"^synthetic/((?:facade|object)-\d+)/"  # the views of one scene are what a view should find
QUERIES = 8
TOP = 8


@dataclass(frozen=True)
class _Plan:
    source: Source
    labelled: bool
    gallery: Path
    sheet: Path


def run_demo(
    images: Path | None, out: Path, scenes: int, engine: EngineKind, workers: int | None, output: Output
) -> tuple[dict[str, Any], str]:
    """Ingests, builds, evaluates (synthetic images have labels), searches, and draws a contact sheet.

    A second run into the same folder adopts what the first one made.

    Args:
        images: a folder of photographs; None for synthetic scenes.
        out: a folder for the gallery and the sheet.
        scenes: synthetic scenes, in three views each, and as many distractors.

    Returns:
        The figures, and the same for people.
    """
    plan = _plan(images, out, scenes)
    recipe = load_recipe(RECIPE)
    begun = time.monotonic()
    with open_job(str(plan.gallery), engine, workers, output.progress(), create=True) as job:
        stop_on_sigterm()
        ingest(job, [plan.source], recipe)
        generation = build_index(job, recipe)
        notes = model_notes(job.gallery, generation.models.fitted)
    with open_job(str(plan.gallery), progress=output.progress()) as job:
        figures = _evaluate(job) if plan.labelled else None
        answers = _search_and_draw(job.gallery, plan)
    value = {
        "gallery": job.gallery.store.url,
        "recipe": recipe.name,
        "generation": generation.number,
        "images": generation.counts["live"],
        "rejected": generation.counts["rejected"],
        "map": figures["map"] if figures else None,
        "evaluation": figures,
        "sheet": str(plan.sheet),
        "notes": notes,
        "seconds": round(time.monotonic() - begun, 1),
        "answers": [answer_json(answer) for answer in answers],
    }
    return value, _text(value, generation)


def _plan(images: Path | None, out: Path, scenes: int) -> _Plan:
    text = (
        f"synthetic:scenes={scenes},views=3,distractors={scenes},size=320" if images is None else str(images)
    )
    source = open_sources([text])[0]
    if not isinstance(source, Source):
        raise BadInput(f"{text} holds vectors: give a folder of photographs")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot make the folder {out}: {error.strerror}; choose another with --out"
        ) from error
    # A gallery for each collection: what one run made is never mixed into another.
    gallery = out / f"gallery-{source.name}-{digest_of(source.url)[:8]}"
    return _Plan(source, images is None, gallery, out / "sheet.jpg")


def _evaluate(job: Job) -> dict[str, Any]:
    from deploy.evaluation import evaluate_labels

    return evaluate_labels(job, LABELS).to_json()


def _search_and_draw(gallery: Gallery, plan: _Plan) -> "list[Answer]":
    from deploy.labels import label_reader
    from deploy.sheet import draw_sheet
    from serve.searcher import open_searcher

    with open_searcher(gallery) as searcher:
        queries = _queries(gallery, plan, searcher)
        answers = [_without_itself(found) for found in searcher.search_images(queries, TOP + 1)]
        label_of = label_reader(LABELS) if plan.labelled else None
        draw_sheet(queries, answers, searcher.catalogue.sources, label_of=label_of).save(plan.sheet)
    return answers


def _queries(gallery: Gallery, plan: _Plan, searcher: "Searcher") -> "list[ImageQuery]":
    """Images of the gallery, evenly over it; where there are labels, one view each of some scenes."""
    from serve.query import ImageQuery

    keys = _keys(gallery, searcher.opened.generation)
    if plan.labelled:
        keys = [key for key in keys if key.endswith("view-00.bmp") and not key.startswith("distractor")]
    chosen = [keys[at * len(keys) // QUERIES] for at in range(QUERIES)] if len(keys) > QUERIES else keys
    queries = []
    for key in chosen:
        try:
            data = plan.source.read(key, searcher.encoder.features.decode.max_bytes)
        except NotFound:  # deleted since it was listed
            continue
        queries.append(ImageQuery(data, name=f"{plan.source.name}/{key}"))
    if not queries:
        raise NotFound(f"{plan.source.url} has no image left to search with: check the folder")
    return queries


def _keys(gallery: Gallery, generation: "Generation") -> list[str]:
    catalogue = read_catalogue(gallery, generation.catalogue)
    live = live_rows(gallery, catalogue)
    found = []
    for place, part in enumerate(catalogue.parts):
        column = read_part(gallery, part, ["key"])["key"]
        found += [decode_key(column[int(row)].as_py()) for row in live.row[live.part == place]]
    return sorted(found)


def _without_itself(answer: "Answer") -> "Answer":
    others = [found for found in answer.results if f"{found.source}/{found.key}" != answer.query]
    ranked = (replace(found, rank=rank) for rank, found in enumerate(others[:TOP], start=1))
    return replace(answer, results=tuple(ranked))


def _text(value: dict[str, Any], generation: "Generation") -> str:
    lines = [
        f"{value['images']:,} images in {value['gallery']} (generation {generation.number}), recipe {RECIPE}"
    ]
    if value["rejected"]:
        lines.append(f"{value['rejected']:,} images have no features (reseen ingest says why)")
    figures = value["evaluation"]
    if figures:
        lines.append(
            f"mAP {figures['map']:.3f} over {figures['queries']:,} queries, depth {figures['depth']:,}"
        )
    lines += [f"note: {note}" for note in value["notes"]]
    lines.append(f"contact sheet: {value['sheet']}")
    lines.append(
        f"done in {value['seconds']:.0f} s; try: reseen search YOUR.jpg --gallery {value['gallery']}"
    )
    return "\n".join(lines)
