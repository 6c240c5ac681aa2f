"""--rerank and --depth: which steps they choose, and what search and evaluate print of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from index.cvnet_settings import CvnetSettings
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.region_scores import RegionStepSettings
from index.step_choice import chosen_steps
from index.steps import STEP_KINDS, StepSettings, looks_at
from ingest.errors import BadInput
from ingest.store import Store
from tests.pipeline.small import rendered
from tests.scenes import LABELS, SCENES, scene_gallery, scene_recipe

GEOMETRY = GeometrySettings(depth=7, ratio=0.8)
EXPAND = ExpansionSettings(neighbours=3)
QUERY = "facade-000001/view-00.bmp"


# -- which steps ------------------------------------------------------------------------------------------


def chosen(rerank: str | None, depth: int | None = None, *own: StepSettings) -> tuple[StepSettings, ...]:
    recipe = scene_recipe(steps=[step.model_dump() for step in own])
    return chosen_steps(recipe, rerank, depth)


def test_without_options_they_are_the_recipes() -> None:
    assert chosen(None) == ()
    assert chosen(None, None, EXPAND, GEOMETRY) == (EXPAND, GEOMETRY)


def test_none_is_no_step() -> None:
    assert chosen("none", None, EXPAND, GEOMETRY) == ()


def test_named_steps_come_in_their_order_with_the_recipes_settings_where_it_has_them() -> None:
    assert chosen("geometry,expand", None, EXPAND, GEOMETRY) == (GEOMETRY, EXPAND)
    assert chosen("geometry , cvnet", None, EXPAND, GEOMETRY) == (GEOMETRY, CvnetSettings())
    assert chosen("geometry") == (GeometrySettings(),)
    assert [step.kind for step in chosen(",".join(STEP_KINDS))] == list(STEP_KINDS)


def test_a_depth_is_that_of_every_step_that_has_one_and_changes_nothing_else() -> None:
    steps = chosen("expand,geometry,cvnet,regions", 5, EXPAND, GEOMETRY)
    assert steps == (
        EXPAND,
        GeometrySettings(depth=5, ratio=0.8),
        CvnetSettings(depth=5),
        RegionStepSettings(depth=5),
    )
    assert [looks_at(step) for step in chosen(None, 9, GEOMETRY)] == [9]


@pytest.mark.parametrize(
    ("rerank", "depth", "says"),
    [
        ("diffusion", None, "no step 'diffusion'; give none, or some of geometry, regions, cvnet, expand"),
        ("geometry,none", None, "no step 'none'"),
        ("", None, "no step ''"),
        ("geometry,", None, "no step ''"),
        (None, 5, "depth 5 needs a step"),
        ("none", 5, "depth 5 needs a step"),
        ("expand", 5, "depth 5 needs a step"),
        ("cvnet", 10_001, "depth 10001, for step cvnet: .*less than or equal to 10000"),
    ],
)
def test_what_chooses_nothing_is_refused(rerank: str | None, depth: int | None, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        chosen(rerank, depth)


# -- on the command line ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "gallery"
    scene_gallery(Store(str(folder)), scene_recipe())
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "query.bmp"
    file.write_bytes(rendered(SCENES)[QUERY])
    return file


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def reseen(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> Any:
    result = reseen(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(told: str, *arguments: object) -> None:
    result = reseen(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert re.search(told, result.stderr), result.stderr
    assert "Traceback" not in result.output


def test_search_prints_what_steps_added_and_to_what(gallery: Path, image: Path) -> None:
    search = ("search", image, "-g", gallery, "--top", 8)
    plain, looked = ok(*search), ok(*search, "--rerank", "geometry", "--depth", 5)
    (before,), (after,) = plain["queries"], looked["queries"]
    for found in before["results"]:
        assert (found["steps"], found["similarity"]) == ([], found["score"])
    first = {found["image_id"] for found in before["results"][:5]}
    similarity = {found["image_id"]: found["score"] for found in before["results"]}
    assert {found["image_id"] for found in after["results"] if found["steps"]} == first
    for found in after["results"]:
        assert found["similarity"] == pytest.approx(similarity[found["image_id"]], abs=2e-6)
        assert found["score"] == pytest.approx(
            found["similarity"] + sum(step["added"] for step in found["steps"]), abs=3e-6
        )
        for step in found["steps"]:
            assert set(step) >= {"step", "added", "matches", "inliers"} and step["step"] == "geometry"
            assert step["added"] == pytest.approx(0.01 * min(step["inliers"], 75), abs=1e-6)
    best = after["results"][0]
    assert best["key"] == QUERY and best["steps"][0]["inliers"] > 75
    assert ok(*search, "--rerank", "none")["queries"] == plain["queries"]


def test_search_shows_the_reranked_score_to_people(gallery: Path, image: Path) -> None:
    found = ok("search", image, "-g", gallery, "--rerank", "geometry")["queries"][0]["results"][0]
    text = reseen("search", image, "-g", gallery, "--rerank", "geometry").stdout
    assert f"{found['score']:.4f}" in text


def test_mistakes_are_exit_code_2_and_list_the_choices(gallery: Path, image: Path) -> None:
    choices = "geometry, regions, cvnet, expand"
    refused(choices, "search", image, "-g", gallery, "--rerank", "diffusion")
    refused(choices, "evaluate", "-g", gallery, "--label-pattern", LABELS, "--rerank", "geometry,magic")
    for command in (("search", image), ("evaluate", "--label-pattern", LABELS)):
        refused("depth 5 needs a step", *command, "-g", gallery, "--depth", 5)
        refused(
            "'pyramid', and recipe 'scenes' describes only: local",
            *command,
            "-g",
            gallery,
            "--rerank",
            "cvnet",
        )
        refused("must be `pooled`|describes only: local", *command, "-g", gallery, "--rerank", "regions")
        result = reseen(*command, "-g", gallery, "--rerank", "geometry", "--depth", 0)
        assert result.exit_code == 2


def test_evaluate_prints_its_steps(gallery: Path) -> None:
    evaluate = ("evaluate", "-g", gallery, "--label-pattern", LABELS)
    plain = ok(*evaluate)
    looked = ok(*evaluate, "--rerank", "expand,geometry", "--depth", 12)
    assert plain["steps"] == []
    assert looked["steps"] == ["expand of the first 10", "geometry of the first 12"]
    assert looked["map"] > plain["map"] + 0.1
    assert "then expand of the first 10, then geometry of the first 12" in looked["protocol_text"]
    table = reseen(*evaluate, "--rerank", "expand,geometry", "--depth", 12).stdout
    assert re.search(r"step .*geometry of the first 12", table)
    assert f"{looked['map']:.4f}" in table


def test_evaluate_leaves_junk_out_and_skips_it_if_told(gallery: Path) -> None:
    evaluate = ("evaluate", "-g", gallery, "--label-pattern", LABELS, "--junk-pattern", "view-01")
    looked = ok(*evaluate, "--rerank", "geometry", "--depth", 8)
    skipping = ok(*evaluate, "--rerank", "geometry", "--depth", 8, "--rerank-skips-junk")
    assert (looked["queries"], skipping["queries"]) == (12, 12)
    assert skipping["map"] > looked["map"]
    assert "JUNK SKIPPED" in skipping["protocol_text"] and "JUNK" not in looked["protocol_text"]
    assert ok(*evaluate, "--top", 3)["depth"] == 3
