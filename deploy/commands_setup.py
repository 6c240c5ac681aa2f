"""`reseen recipe list|show|settings`, `doctor` and `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.options import Engine, EngineName, Json, Quiet, Workers
from deploy.terminal import FAILED, Output, stop_on_sigterm, table

RecipeArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Shipped name or YAML file.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    recipe = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="The shipped recipes and their settings."
    )
    recipe.command("list")(list_recipes)
    recipe.command("show")(show_recipe)
    recipe.command("settings")(settings)
    app.add_typer(recipe, name="recipe")
    app.command()(doctor)
    app.command()(demo)


def list_recipes(json: Json = False) -> None:
    """List the recipes that ship with Reseen."""
    from deploy.recipes import load_recipe, recipe_text, shipped

    found = []
    for name in shipped():
        what = recipe_text(name)[1].splitlines()[0].removeprefix("#").strip()
        load_recipe(name)
        found.append({"name": name, "what": what})
    text = table([["recipe", "what"], *([line["name"], line["what"]] for line in found)])
    Output(json, False).result({"recipes": found}, text)


def show_recipe(
    name: RecipeArgument,
    defaults: Annotated[bool, typer.Option("--defaults", help="Every setting, defaults filled in.")] = False,
    digest: Annotated[bool, typer.Option("--digest", help="The name of what the recipe computes.")] = False,
    json: Json = False,
) -> None:
    """Show a recipe as it is written, after checking it."""
    from deploy.recipes import load_recipe, recipe_text, with_defaults
    from index.recipe import with_read_weights

    recipe = load_recipe(name)
    named = with_read_weights(recipe)[0].digest if digest else None
    text = named or (with_defaults(recipe) if defaults else recipe_text(name)[1])
    shown = {"recipe": recipe.model_dump(mode="json")}
    Output(json, False).result(shown if named is None else {**shown, "digest": named}, text)


def settings() -> None:
    """Print every setting that a recipe can have, as the table of docs/recipes.md."""
    from deploy.recipes import settings_table

    Output(False, False).result({}, settings_table())


def doctor(
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", help="Also try this store, by writing to it.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Also start Ray, which takes some seconds.")] = False,
    json: Json = False,
) -> None:
    """Say what is wrong with this environment; exit code 1 if Reseen cannot work in it."""
    from dataclasses import asdict

    from deploy.doctor import examine

    findings = examine(gallery, ray)
    ok = all(finding.state != "wrong" for finding in findings)
    rows = [[finding.state, finding.name, finding.found] for finding in findings]
    advice = [f"{finding.name}: {finding.advice}" for finding in findings if finding.advice]
    text = "\n".join([table([["", "", ""], *rows]).lstrip("\n"), *advice])
    Output(json, False).result({"ok": ok, "checks": [asdict(finding) for finding in findings]}, text)
    if not ok:
        raise typer.Exit(FAILED)


def demo(
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Your own photographs instead of synthetic ones.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the gallery and the sheet go.")] = Path(
        "demo"
    ),
    scenes: Annotated[
        int, typer.Option(min=1, help="Synthetic scenes, three views each, and as many distractors.")
    ] = 250,
    engine: Engine = EngineName.ray,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ingest, build, search and evaluate a thousand images; a second run adopts what the first one made."""
    from deploy.demo import run_demo

    output = Output(json, quiet)
    stop_on_sigterm()
    value, text = run_demo(images, out, scenes, engine.value, workers, output)
    output.result(value, text)
