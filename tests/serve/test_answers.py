"""Answers as plain values: what the command prints and what the HTTP API's bodies are made of."""

import json
import math
import os

import numpy as np

from deploy.search_job import answer_json
from index.steps import Evidence
from serve.answers import printable, result_fields
from serve.api import FoundImage
from serve.searcher import Answer, Result

POINTS = (np.zeros((3, 2)), np.zeros((3, 2)))
EVIDENCE = (
    Evidence("geometry", 0.12345678, {"matches": 40.0, "inliers": 12.3456789}, POINTS),
    Evidence("regions", 0.0, {"region": 2.0}, box=(0.04, 1.26, 20.0, 30.96)),
)
FOUND = Result(
    2**62 + 1,
    1.23456789,
    "/photos/ä.jpg",
    "photos",
    "ä.jpg",
    {"year": 1990, "price": math.nan, "city": "Rome", "good": True, "far": math.inf},
    3,
    0.98765432,
    EVIDENCE,
)


def test_fields_are_rounded_and_say_null_where_there_is_no_number() -> None:
    fields = result_fields(FOUND)
    assert fields == {
        "rank": 3,
        "image_id": 2**62 + 1,
        "score": 1.234568,
        "similarity": 0.987654,
        "steps": [
            {"step": "geometry", "added": 0.123457, "figures": {"matches": 40.0, "inliers": 12.345679}},
            {"step": "regions", "added": 0.0, "figures": {"region": 2.0}, "box": [0.0, 1.3, 20.0, 31.0]},
        ],
        "uri": "/photos/ä.jpg",
        "source": "photos",
        "key": "ä.jpg",
        "metadata": {"year": 1990, "price": None, "city": "Rome", "good": True, "far": None},
    }
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields


def test_the_command_prints_the_same_with_the_figures_beside_the_step() -> None:
    (printed,) = answer_json(Answer("q", (FOUND,)))["results"]
    fields = result_fields(FOUND)
    assert printed["steps"] == [
        {"step": "geometry", "added": 0.123457, "matches": 40.0, "inliers": 12.345679},
        {"step": "regions", "added": 0.0, "region": 2.0, "box": [0.0, 1.3, 20.0, 31.0]},
    ]
    assert list(printed) == list(fields)
    assert {**printed, "steps": fields["steps"]} == fields


def test_the_api_is_made_of_the_same_fields() -> None:
    body = FoundImage(**result_fields(FOUND), thumbnail="/v1/images/1/thumbnail")
    assert json.loads(body.model_dump_json(include={"image_id", "score", "similarity", "rank", "key"})) == {
        "image_id": str(2**62 + 1),
        "score": 1.234568,
        "similarity": 0.987654,
        "rank": 3,
        "key": "ä.jpg",
    }
    assert body.steps[1].box == (0.0, 1.3, 20.0, 31.0)
    assert body.steps[0].figures == {"matches": 40.0, "inliers": 12.345679}


def test_names_that_are_no_text_can_be_printed() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert printable(name).encode() == "caf\ufffd.jpg".encode()
    assert printable("ä.jpg") == "ä.jpg"
