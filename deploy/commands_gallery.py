"""`reseen ingest`, `build`, `search` and `evaluate`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.options import (
    Box,
    CacheFolder,
    Compile,
    Decoders,
    Device,
    DeviceName,
    Engine,
    EngineName,
    GalleryUrl,
    GenerationNumber,
    Images,
    Json,
    MaxRejects,
    Nprobe,
    Quiet,
    RecipeName,
    Top,
    Where,
    Workers,
    cache_folder,
)
from deploy.step_options import Depth, Rerank
from deploy.terminal import Output, plain, stop_on_sigterm

if TYPE_CHECKING:
    from deploy.jobs import IngestReport
    from index.generation import Generation
    from ingest.job import Job

SOURCES_HELP = "[NAME=]URL: folder, quoted glob, either on any store, synthetic:KEY=N,... or vectors:FILE."


def add_to(app: typer.Typer) -> None:
    for command in (ingest, build, search, evaluate):
        app.command()(command)


def ingest(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help=SOURCES_HELP, show_default=False)],
    gallery: GalleryUrl,
    recipe: RecipeName,
    metadata: Annotated[
        str | None,
        typer.Option(help="CSV or Parquet with a column `key`; default: metadata.csv in the source."),
    ] = None,
    moved: Annotated[
        bool, typer.Option("--moved", help="The source's name is known at another place.")
    ] = False,
    max_rejects: MaxRejects = 0.5,
    part_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most images of a part, the unit of work; default: 1,024, fewer if they store much."
        ),
    ] = None,
    engine: Engine = EngineName.ray,
    workers: Workers = None,
    device: Device = DeviceName.auto,
    decoders: Decoders = None,
    compile: Compile = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List sources into a gallery and describe their images; what is known is not done again."""
    from deploy import costs, jobs
    from deploy.recipes import load_recipe
    from ingest.compute import Compute
    from ingest.parts import PartSizes

    output = Output(json, quiet)
    settings = load_recipe(recipe)
    opened = jobs.open_sources(sources, metadata)
    most = part_images or costs.part_images(settings.features)
    sizes = PartSizes(most, min(most, PartSizes.least_images))
    features = settings.features
    before = None if features is None else lambda images: output.say(costs.told(features, images))
    options = jobs.IngestOptions(moved, max_rejects, sizes, before)
    compute = Compute(device.value, decoders, compile=compile)
    with jobs.open_job(gallery, engine.value, workers, output.progress(), True, compute) as job:
        stop_on_sigterm()
        report = jobs.ingest(job, opened, settings, options)
        output.result(_ingest_json(job, report), _ingest_text(job, report))


def _ingest_json(job: "Job", report: "IngestReport") -> dict[str, Any]:
    listings = {
        name: {**vars(found), "skipped": dict(sorted(found.skipped.items()))}
        for name, found in report.listings.items()
    }
    outcomes = dict(sorted(report.outcomes.items()))
    return {
        "gallery": job.gallery.store.url,
        "catalogue": report.catalogue,
        "sources": listings,
        "images": sum(outcomes.values()),
        "outcomes": outcomes,
        "described": report.described,
        "seconds": {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
    }


def _ingest_text(job: "Job", report: "IngestReport") -> str:
    lines = []
    for name, found in report.listings.items():
        parts = [f"{found.new:,} new", f"{found.changed:,} changed", f"{found.unchanged:,} known"]
        if found.deleted:
            parts.append(f"{found.deleted:,} on the deletion list")
        parts += [f"{count:,} skipped ({why})" for why, count in sorted(found.skipped.items())]
        lines.append(f"{name}: {', '.join(parts)}")
    rejects = [f"{n:,} {reason}" for reason, n in sorted(report.outcomes.items()) if reason != "ok" and n]
    total = sum(report.outcomes.values())
    lines.append(
        f"{job.gallery.store.url}: {total:,} images listed, {report.outcomes.get('ok', 0):,} usable"
        + (f", {', '.join(rejects)}" if rejects else "")
    )
    if report.described:
        rates = [
            f"{stage} {report.described / max(seconds, 1e-3):,.0f}"
            for stage, seconds in report.seconds.items()
        ]
        lines.append(f"images a second of a worker's time: {', '.join(rates)}")
    if not total:
        lines.append("no images were found: check the source; hidden files and other extensions are left out")
    return "\n".join(lines)


def build(
    gallery: GalleryUrl,
    recipe: RecipeName,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Cut all shards anew, with the models as they are.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit all models anew; new vectors, new shards.")
    ] = False,
    max_rejects: MaxRejects = 0.5,
    engine: Engine = EngineName.ray,
    workers: Workers = None,
    device: Device = DeviceName.auto,
    decoders: Decoders = None,
    compile: Compile = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit models (once), build shards of what is new, check them, and publish a generation."""
    from deploy import jobs
    from deploy.recipes import load_recipe
    from index.build import BuildOptions
    from ingest.compute import Compute

    output = Output(json, quiet)
    settings = load_recipe(recipe)
    compute = Compute(device.value, decoders, compile=compile)
    with jobs.open_job(gallery, engine.value, workers, output.progress(), compute=compute) as job:
        stop_on_sigterm()
        before = job.gallery.generations.newest()
        generation = jobs.build_index(job, settings, BuildOptions(rebuild, refit, max_rejects))
        value = generation_json(job, generation)
        text = generation_text(job, generation)
    if generation.number == before:
        text = f"nothing to add: generation {before} already has every image\n{text}"
    output.result({**value, "published": generation.number != before}, text)


def generation_json(job: "Job", generation: "Generation") -> dict[str, Any]:
    """A generation as its record has it, with its shards and the notes of its models."""
    from dataclasses import asdict

    from index.fit import model_notes

    shards = [
        {"shard": s.shard, "rows": s.count, "bytes": s.index.size, "parts": len(s.parts)}
        for s in generation.shards
    ]
    return {
        "generation": generation.number,
        "action": generation.action,
        "recipe": generation.recipe.model_dump(mode="json"),
        "recipe_digest": generation.recipe.digest,
        "models": asdict(generation.models),
        "catalogue": generation.catalogue,
        "deletions": generation.deletions,
        "counts": dict(generation.counts),
        "gate": dict(generation.gate),
        "versions": dict(generation.versions),
        "parent": generation.parent,
        "writer": dict(generation.writer),
        "shards": shards,
        "notes": model_notes(job.gallery, generation.models.fitted),
    }


def generation_text(job: "Job", generation: "Generation") -> str:
    from index.fit import model_notes

    counts, gate = generation.counts, generation.gate
    lines = [
        f"generation {generation.number} of {job.gallery.store.url} ({generation.action}, "
        f"recipe {generation.recipe.name})",
        f"{counts['live']:,} images in {len(generation.shards)} shard(s), {counts['masked']:,} masked, "
        f"{counts['rejected']:,} without features",
    ]
    if gate.get("recall") is not None:
        kind = "held-out queries" if gate["held_out"] else "queries (too few images to hold any out)"
        lines.append(
            f"the exact nearest neighbour is in the top {gate['depth']} for {gate['recall']:.1%} of "
            f"{gate['queries']} {kind}"
        )
    elif gate:
        lines.append("recall was not measured: that takes at least two images")
    lines += [f"note: {note}" for note in model_notes(job.gallery, generation.models.fitted)]
    return "\n".join(lines)


def search(
    images: Images,
    gallery: GalleryUrl,
    box: Box = None,
    top: Top = 10,
    sheet: Annotated[
        str | None, typer.Option(metavar="OUT.jpg", help="Write queries and answers as one picture.")
    ] = None,
    where: Where = None,
    rerank: Rerank = None,
    depth: Depth = None,
    generation: GenerationNumber = None,
    nprobe: Nprobe = None,
    cache: CacheFolder = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the images of a gallery that show what a photograph shows."""
    from deploy import search_job
    from deploy.answer_text import all_refused, answer_text

    output = Output(json, quiet)
    answered = search_job.search(
        gallery,
        images,
        box,
        top,
        generation,
        nprobe,
        cache_folder(cache),
        output,
        sheet,
        rerank,
        depth,
        where,
    )
    text = "\n\n".join(answer_text(answer) for answer in answered["queries"])
    output.result(answered, text)
    if refused := all_refused(answered["queries"]):
        raise refused


def evaluate(
    gallery: GalleryUrl,
    label_pattern: Annotated[
        str,
        typer.Option(
            metavar="REGEX", help="Searched in SOURCE/KEY; its first group is the label.", show_default=False
        ),
    ],
    protocol: Annotated[
        str, typer.Option(help="labels: images of one label are what a query should find.")
    ] = "labels",
    query_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Images that are queries; default: all with a label.")
    ] = None,
    junk_pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Images that count neither as right nor as wrong."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="Answers a query is judged by; default: all, up to 10,000 images; else 1,000."
        ),
    ] = None,
    rerank: Rerank = None,
    depth: Depth = None,
    rerank_skips_junk: Annotated[
        bool,
        typer.Option(
            "--rerank-skips-junk", help="Junk takes no place among what is reranked: reads the ground truth."
        ),
    ] = False,
    nprobe: Nprobe = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Rank by the stored vectors themselves, not by the index.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="OUT.json", help="Write what scores mean, by these labels, for `reseen serve`."),
    ] = None,
    generation: GenerationNumber = None,
    engine: Engine = EngineName.inline,
    workers: Workers = None,
    device: Device = DeviceName.auto,
    cache: CacheFolder = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a generation ranks, by labels taken from the images' names."""
    from deploy.calibration_job import calibrate_labels, calibration_table, write_calibration
    from deploy.evaluation import evaluate_labels, evaluation_table
    from deploy.jobs import open_job
    from index.cache import Cache
    from index.generation import read_generation
    from index.step_choice import chosen_steps
    from ingest.compute import Compute
    from ingest.errors import BadInput

    output = Output(json, quiet)
    if protocol != "labels":
        raise BadInput(f"there is no protocol {protocol!r}: choose labels")
    compute = Compute(device.value)
    with open_job(gallery, engine.value, workers, output.progress(), compute=compute) as job:
        stop_on_sigterm()
        chosen = read_generation(job.gallery, generation)
        options: dict[str, Any] = {
            "query_pattern": query_pattern,
            "generation": chosen.number,  # whatever is published meanwhile
            "depth": top,
            "nprobe": nprobe,
            "exact": exact,
            "steps": chosen_steps(chosen.recipe, rerank, depth),
            "junk_pattern": junk_pattern,
            "steps_skip_junk": rerank_skips_junk,
            "cache": Cache(cache_folder(cache)),
        }
        if calibration is None:
            found, calibrated = evaluate_labels(job, label_pattern, **options), None
        else:
            found, calibrated = calibrate_labels(job, label_pattern, **options)
    value = found.to_json() | {"protocol": protocol, "protocol_text": found.protocol}
    text = plain(evaluation_table(found))
    if calibration is not None and calibrated is not None:
        write_calibration(calibrated, calibration)
        value["calibration"] = calibrated.model_dump(mode="json")
        text += "\n\n" + plain(calibration_table(calibrated, calibration))
    output.result(value, text)
