"""The commands serve a network as they serve SIFT: in a folder and on S3, in shards, with a second look."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deploy.cli import app
from ingest.store import Store
from tests.pipeline.small import cnn_recipe, rendered

SCENES = "synthetic:scenes=6,views=3,distractors=6,size=128,seed=1"
LABELS = r"/((?:facade|object)-\d+)/"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "cnn.yaml"
    stated = {
        **cnn_recipe(shard_rows=8).model_dump(mode="json"),
        "steps": [{"kind": "geometry", "depth": 10}],
    }
    file.write_text(yaml.safe_dump(stated))
    return file


def ok(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def whole_life(gallery: str, recipe: Path, image: Path) -> dict[str, Any]:
    """What the commands say, without what differs between stores."""
    on = ("-g", gallery, "-r", recipe, "--engine", "inline")
    listed = ok("ingest", SCENES, *on, "--part-images", 4)
    assert listed["outcomes"] == {"ok": 24}
    assert ok("ingest", SCENES, *on, "--part-images", 4)["sources"]["synthetic"]["unchanged"] == 24
    built = ok("build", *on)
    assert built["published"] and not ok("build", *on)["published"]
    assert len([info for info in Store(gallery).listing("shards") if info.path.endswith(".faiss")]) == 3
    assert ok("generations", "verify", "-g", gallery)["problems"] == []
    (answer,) = ok("search", image, "-g", gallery, "--top", 3)["queries"]
    figures = {
        steps: ok("evaluate", "-g", gallery, "--label-pattern", LABELS, "--rerank", steps)
        for steps in ("none", "geometry", "expand,geometry")
    }
    assert len({figures[steps]["map"] for steps in figures}) == 3, "each step tells"
    assert figures["none"]["map"] > 0.5
    return {"results": answer["results"], "figures": figures}


@pytest.mark.s3
def test_the_commands_serve_a_network_in_a_folder_and_on_s3(recipe: Path, tmp_path: Path, s3: Any) -> None:
    key = "facade-000002/view-01.bmp"
    image = tmp_path / "query.bmp"
    image.write_bytes(rendered(SCENES)[key])
    here = whole_life(str(tmp_path / "gallery"), recipe, image)
    there = whole_life(f"s3://{s3.bucket()}/gallery", recipe, image)
    assert here["figures"] == there["figures"]
    for one, other in zip(here["results"], there["results"], strict=True):
        assert one["key"] == other["key"] and one["steps"] == other["steps"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert here["results"][0]["key"] == key and here["results"][0]["steps"][0]["inliers"] > 20
