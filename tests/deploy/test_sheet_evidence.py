"""Pictures of what steps found: of the part of the query that they saw. Its words as JSON."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy.sheet_evidence
from deploy.search_job import answer_json
from deploy.sheet_evidence import draw_evidence
from index.steps import Evidence
from ingest.decode import Decoded
from serve.query import ImageQuery
from serve.searcher import Answer, Result

BOX = (40.0, 10.0, 80.0, 50.0)


def _image(path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path.write_bytes(file.getvalue())
    return file.getvalue()


def _result(*evidence: Evidence) -> Result:
    return Result(1, 0.9, "", "photos", "a.png", {}, 1, 0.5, evidence)


def test_heat_lies_over_the_part_of_the_query_that_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, shown = _image(tmp_path / "a.png"), []

    def draw(ours: Decoded, theirs: Decoded, *_: object) -> Image.Image:
        shown.append((tuple(map(float, ours.box)), tuple(map(float, theirs.box))))
        return Image.new("RGB", (480, 200))

    monkeypatch.setattr(deploy.sheet_evidence, "draw_heat", draw)
    heat = np.ones((2, 2), np.float32)
    result = _result(Evidence("cvnet", 0.4, {"score": 0.8}))
    for box in (None, BOX):
        query = ImageQuery(data, box, "q")
        pair = (query, Answer("q", (result,)), result)
        assert draw_evidence([pair], {"photos": str(tmp_path)}, lambda *_: (heat, heat), 480, 10) is not None
    whole = (0.0, 0.0, 80.0, 60.0)
    assert shown == [(whole, whole), (BOX, whole)]


def test_the_region_that_counted_is_told_as_json() -> None:
    region = Evidence("regions", 0.125, {"region": 3.0, "score": 0.75}, box=(0.0, 10.04, 20.0, 30.0))
    answer = answer_json(Answer("q", (_result(region, Evidence("geometry", 0.0)),)))
    assert answer["results"][0]["steps"] == [
        {"step": "regions", "added": 0.125, "region": 3.0, "score": 0.75, "box": [0.0, 10.0, 20.0, 30.0]},
        {"step": "geometry", "added": 0.0},
    ]
