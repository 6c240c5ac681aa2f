"""`reseen generations list|show|diff|verify|rollback|gc`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands_gallery import generation_json, generation_text
from deploy.options import Engine, EngineName, GalleryUrl, Json, Quiet, Workers
from deploy.terminal import FAILED, Output, stop_on_sigterm, table

if TYPE_CHECKING:
    from index.generation import Generation
    from ingest.gallery import Gallery
    from ingest.job import Job

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, show_default=False)]
AnyNumber = Annotated[
    int | None, typer.Argument(metavar="[NUMBER]", min=1, help="Default: the newest.", show_default=False)
]
_SHOWN = 10  # images of each kind that a difference lists for people


def add_to(app: typer.Typer) -> None:
    generations = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Look at, check and change what is published."
    )
    generations.command("list")(list_generations)
    for command in (show, diff, verify, rollback, gc):
        generations.command()(command)
    app.add_typer(generations, name="generations")


def list_generations(gallery: GalleryUrl, json: Json = False) -> None:
    """List what was published, oldest first; the last one is in force."""
    from deploy.jobs import open_job

    with open_job(gallery) as job:
        found = [_line(job.gallery, number) for number in job.gallery.generations.numbers()]
    rows = [["number", "at", "action", "recipe", "images", "masked", "rejected", "recall", ""]]
    for line in found:
        recall = line["gate"].get("recall")
        counts = [f"{line['counts'][name]:,}" for name in ("live", "masked", "rejected")]
        shown = "-" if recall is None else f"{recall:.1%}"
        state = "" if line["readable"] else "collected or purged"
        rows.append(
            [str(line["generation"]), line["at"], line["action"], line["recipe"], *counts, shown, state]
        )
    text = table(rows) if found else f"{gallery} has no published generation yet: run reseen build"
    Output(json, False).result({"generations": found}, text)


def _line(gallery: "Gallery", number: int) -> dict[str, Any]:
    from ingest.tables import manifest_path

    record = gallery.generations.read(number)
    manifests = [digest for digest in record["manifests"].values() if digest is not None]
    return {
        "generation": number,
        "at": record["writer"]["at"],
        "action": record["action"],
        "recipe": record["recipe"]["name"],
        "recipe_digest": record["recipe_digest"],
        "catalogue": record["catalogue"],
        "counts": record["counts"],
        "gate": record["gate"],
        "parent": record["parent"],
        "readable": all(gallery.store.exists(manifest_path(digest)) for digest in manifests),
    }


def show(gallery: GalleryUrl, number: AnyNumber = None, json: Json = False) -> None:
    """Show one generation: recipe, models, counts, gate, notes."""
    from deploy.jobs import open_job
    from index.generation import read_generation

    with open_job(gallery) as job:
        generation = read_generation(job.gallery, number)
        value = generation_json(job, generation)
        lines = [generation_text(job, generation)]
    lines += [f"{name}: {digest}" for name, digest in value["models"].items() if digest]
    lines += [f"shard {s['shard']}: {s['rows']:,} rows, {s['bytes']:,} bytes" for s in value["shards"]]
    lines += [f"recipe digest: {value['recipe_digest']}", f"catalogue: {value['catalogue']}"]
    lines += [f"built with: {', '.join(f'{name} {version}' for name, version in value['versions'].items())}"]
    Output(json, False).result(value, "\n".join(lines))


def diff(old: Number, new: Number, gallery: GalleryUrl, json: Json = False) -> None:
    """Compare two generations: settings, models, and which images came, went or changed."""
    from deploy.jobs import open_job
    from index.generation import read_generation

    with open_job(gallery) as job:
        value = difference(job, read_generation(job.gallery, old), read_generation(job.gallery, new))
    Output(json, False).result(value, _difference_text(value))


def difference(job: "Job", old: "Generation", new: "Generation") -> dict[str, Any]:
    """What differs: settings and models as [old, new] pairs, images as sorted lists of ids."""
    from dataclasses import asdict

    before, after = _images(job, old), _images(job, new)
    both = before.keys() & after.keys()
    shards = {shard.shard for shard in old.shards}, {shard.shard for shard in new.shards}
    return {
        "old": old.number,
        "new": new.number,
        "recipe": _changed(
            _flat(old.recipe.model_dump(mode="json")), _flat(new.recipe.model_dump(mode="json"))
        ),
        "models": _changed(asdict(old.models), asdict(new.models)),
        "versions": _changed(dict(old.versions), dict(new.versions)),
        "counts": _changed(dict(old.counts), dict(new.counts)),
        "shards": {"added": sorted(shards[1] - shards[0]), "removed": sorted(shards[0] - shards[1])},
        "images": {
            "added": sorted(after.keys() - before.keys()),
            "removed": sorted(before.keys() - after.keys()),
            "changed": sorted(image for image in both if before[image] != after[image]),
        },
    }


def _images(job: "Job", generation: "Generation") -> dict[int, tuple[str, int]]:
    """Part and row in it of every image that the generation can find. Memory: 0.2 kB an image."""
    from ingest.tables import read_table

    found = {}
    for shard in generation.shards:
        rows = read_table(job.gallery.store, shard.rows, ["image_id", "part", "row"])
        mask = generation.masks.get(shard.shard)
        lists = (rows[name].to_pylist() for name in ("image_id", "part", "row"))
        for at, (image, part, row) in enumerate(zip(*lists, strict=True)):
            if mask is None or not mask[at]:
                found[image] = (part, row)
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    names = sorted(old.keys() | new.keys())
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def _difference_text(value: dict[str, Any]) -> str:
    lines = [
        f"{group}: {name} {old} -> {new}"
        for group in ("recipe", "models", "versions", "counts")
        for name, (old, new) in value[group].items()
    ]
    for what, images in value["images"].items():
        more = f" and {len(images) - _SHOWN:,} more (--json lists all)" if len(images) > _SHOWN else ""
        named = f": {', '.join(map(str, images[:_SHOWN]))}{more}" if images else ""
        lines.append(f"images {what}: {len(images):,}{named}")
    return "\n".join(lines)


def verify(
    gallery: GalleryUrl,
    number: AnyNumber = None,
    engine: Engine = EngineName.inline,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read and check every object that a generation names; exit code 1 if any is wrong."""
    from deploy.jobs import open_job
    from index.verify import verify as verify_generation

    output = Output(json, quiet)
    with open_job(gallery, engine.value, workers, output.progress()) as job:
        stop_on_sigterm()
        report = verify_generation(job, number)
    value = {"generation": report.generation, "checked": report.checked, "problems": list(report.problems)}
    verdict = f"{len(report.problems)} problem(s)" if report.problems else "all as written"
    text = "\n".join(
        [*report.problems, f"generation {report.generation}: {report.checked} checked, {verdict}"]
    )
    output.result(value, text)
    if report.problems:
        raise typer.Exit(FAILED)


def rollback(number: Number, gallery: GalleryUrl, json: Json = False, quiet: Quiet = False) -> None:
    """Publish an older generation's contents again; images taken down since stay down."""
    from deploy.jobs import open_job
    from index.removal import rollback as roll_back

    output = Output(json, quiet)
    with open_job(gallery, progress=output.progress()) as job:
        generation = roll_back(job, number)
        output.result(generation_json(job, generation), generation_text(job, generation))


def gc(
    gallery: GalleryUrl,
    keep: Annotated[int, typer.Option(min=1, help="Newest generations to keep.")] = 10,
    grace: Annotated[
        float, typer.Option(min=0, help="Hours below which an object is kept whatever names it.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    json: Json = False,
) -> None:
    """Remove objects that no kept generation, catalogue or pin names."""
    from deploy.jobs import open_job
    from index.collect import collect

    with open_job(gallery) as job:
        report = collect(job.gallery, keep, grace * 3600, dry_run)
    value = {**vars(report), "removed": dict(sorted(report.removed.items()))}
    what = ", ".join(f"{count:,} {folder}" for folder, count in value["removed"].items()) or "nothing"
    text = (
        f"{'would remove' if dry_run else 'removed'} {what} ({report.removed_bytes:,} bytes); "
        f"kept {report.kept:,} in use and {report.kept_young:,} younger than {grace:g} h"
    )
    Output(json, False).result(value, text)
