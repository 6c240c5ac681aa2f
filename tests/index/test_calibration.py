"""Calibrations: verdicts, what they are for, what was observed, and files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.recipes import load_recipe
from index.calibration import (
    Calibration,
    calibrate,
    calibration_bytes,
    find_calibration,
    load_calibrations,
    observed,
    parse_calibration,
    scoring_of,
)
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.recipe import Recipe
from index.score_curve import Curve, Pairs
from ingest.errors import BadInput, NotFound

SIFT = load_recipe("sift-vlad")
GEOMETRY = GeometrySettings()


def drawn(n: int, seed: int, slope: float = 9.0, intercept: float = -4.0) -> Pairs:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-0.5, 1.5, n)
    return Pairs(scores, rng.uniform(size=n) < 1 / (1 + np.exp(-(slope * scores + intercept))), n // 10)


def calibrated(recipe: Recipe = SIFT, steps: Any = (), seed: int = 0, data: str = "drawn") -> Calibration:
    return calibrate(recipe, steps, drawn(4000, seed), drawn(4000, seed + 1), data, top=10)


def changed(**parts: Any) -> Recipe:
    """`sift-vlad` with some settings changed, by dotted names."""
    settings = SIFT.model_dump(mode="json")
    for name, value in parts.items():
        *path, last = name.split("__")
        inner = settings
        for step in path:
            inner = inner[step]
        inner[last] = value
    return Recipe.model_validate(settings)


# -- verdicts ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.floats(-2, 4), st.floats(-2, 4))
def test_a_better_score_has_no_worse_verdict(one: float, other: float) -> None:
    order = ["unlikely", "maybe", "same"]
    (low, p), (high, q) = (CALIBRATED.verdict(score) for score in sorted((one, other)))
    assert order.index(low) <= order.index(high)
    assert p <= q


@settings(deadline=None, max_examples=100)
@given(st.floats(-2, 4))
def test_verdicts_are_those_of_the_probability(score: float) -> None:
    label, probability = CALIBRATED.verdict(score)
    assert probability == pytest.approx(
        1 / (1 + np.exp(-(CALIBRATED.curve.slope * score + CALIBRATED.curve.intercept)))
    )
    assert label == ("same" if probability >= 0.9 else "maybe" if probability >= 0.5 else "unlikely")


def test_probabilities_hold_on_pairs_that_were_not_fitted() -> None:
    judged = CALIBRATED.judged
    shares = {label: count.same / count.pairs for label, count in judged.verdicts.items()}
    assert shares["same"] >= 0.9
    assert 0.5 <= shares["maybe"] < 0.9
    assert shares["unlikely"] < 0.25
    assert judged.brier < 0.15 < judged.same / judged.pairs * (1 - judged.same / judged.pairs)


def test_what_is_observed_is_counted_pair_by_pair() -> None:
    curve, pairs = Curve(slope=3.0, intercept=-1.0), drawn(500, seed=7)
    found = observed(curve, pairs)
    counts = {label: [0, 0] for label in ("same", "maybe", "unlikely")}
    squares = 0.0
    for score, same in zip(pairs.scores.tolist(), pairs.same.tolist(), strict=True):
        p = 1 / (1 + np.exp(-(3.0 * score - 1.0)))
        label = "same" if p >= 0.9 else "maybe" if p >= 0.5 else "unlikely"
        counts[label][0] += 1
        counts[label][1] += same
        squares += (p - same) ** 2
    assert {label: [count.pairs, count.same] for label, count in found.verdicts.items()} == counts
    assert found.brier == pytest.approx(squares / 500)
    assert (found.queries, found.pairs, found.same) == (50, 500, int(pairs.same.sum()))


def test_there_is_nothing_to_observe_on_no_pairs() -> None:
    with pytest.raises(BadInput, match="no pairs"):
        observed(Curve(slope=1.0, intercept=0.0), Pairs(np.empty(0), np.empty(0, bool), 0))


# -- what a calibration is for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        {"name": "other"},
        {"shard_rows": 1000},
        {"quantizer__nprobe": 4, "quantizer__lists": 64, "quantizer__seed": 3},
        {"encoder__codebook__seed": 9, "projection__seed": 9, "projection__sample_images": 512},
        {"features__decode__max_bytes": 1 << 20},
        {"steps": [GEOMETRY.model_dump()]},
        {"features__describe__other": {"kind": "sift", "max_keypoints": 10}},
    ],
)
def test_settings_that_leave_scores_alone_leave_the_calibration(same: dict[str, Any]) -> None:
    assert find_calibration([CALIBRATED], changed(**same), ()) == CALIBRATED


@pytest.mark.parametrize(
    "other",
    [
        {"projection__dim": 64},
        {"projection__whiten": False},
        {"encoder__codebook__words": 64},
        {"encoder__normalise": "ssr"},
        {"quantizer__code_bytes": 32},
        {"quantizer": {"kind": "flat"}},
        {"features__decode__longest_side": 320},
        {"features__describe__local__max_keypoints": 500},
        {"projection": None},
    ],
)
def test_settings_that_shape_scores_need_another_calibration(other: dict[str, Any]) -> None:
    assert find_calibration([CALIBRATED], changed(**other), ()) is None


def test_each_chain_of_steps_has_its_own() -> None:
    geometry, expand = calibrated(steps=(GEOMETRY,)), ExpansionSettings()
    known = [CALIBRATED, geometry]
    assert find_calibration(known, SIFT, ()) == CALIBRATED
    assert find_calibration(known, SIFT, (GEOMETRY,)) == geometry
    assert find_calibration(known, SIFT, (GeometrySettings(depth=7, seed=1),)) == geometry
    for steps in [(GeometrySettings(weight=0.02),), (expand,), (expand, GEOMETRY), (GEOMETRY, expand)]:
        assert find_calibration(known, SIFT, steps) is None


def test_ready_made_vectors_are_known_by_the_recipes_name() -> None:
    flat = load_recipe("vectors-flat")
    found = calibrated(flat)
    assert find_calibration([found], flat, ()) == found
    assert find_calibration([found], flat.model_copy(update={"name": "mine"}), ()) is None


def test_the_last_of_several_is_taken() -> None:
    later = calibrated(seed=5, data="later")
    assert find_calibration([CALIBRATED, later], SIFT, ()) == later


# -- files ------------------------------------------------------------------------------------------------


def test_a_file_gives_back_the_calibration(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(calibration_bytes(CALIBRATED))
    loaded = load_calibrations([path])
    assert loaded[-1] == CALIBRATED
    assert len(loaded) == len(load_calibrations()) + 1
    assert find_calibration(loaded, SIFT, ()) == CALIBRATED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format"),
        ({"curve": {"slope": -1.0, "intercept": 0.0}}, "curve.slope"),
        ({"curve": {"slope": float("inf"), "intercept": 0.0}}, "mine.json"),
        ({"curve": {"slope": 1.0}}, "curve.intercept"),
        ({"unknown": 1}, "unknown"),
        ({"top": 0}, "top"),
        ({"scoring": "sift"}, "scoring"),
    ],
)
def test_a_file_with_something_wrong_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(calibration_bytes(CALIBRATED)) | changes))
    with pytest.raises(
        BadInput, match=rf"mine\.json is no calibration.*{message}|{message} is no calibration"
    ):
        load_calibrations([path])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b" " * (1 << 20) + b"{}"])
def test_what_is_no_calibration_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match="here is no calibration"):
        parse_calibration(data, "here")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.json"):
        load_calibrations([tmp_path / "none.json"])
    with pytest.raises(BadInput, match="cannot be read"):
        load_calibrations([tmp_path])


def test_shipped_calibrations_are_for_shipped_recipes() -> None:
    shipped = load_calibrations()
    assert shipped, "none came with the package"
    by_recipe = {each.recipe for each in shipped}
    assert "sift-vlad" in by_recipe
    assert find_calibration(shipped, SIFT, ()) is not None
    assert find_calibration(shipped, SIFT, (GEOMETRY,)) is not None
    for each in shipped:
        low, high = each.verdict(-1.0), each.verdict(2.0)
        assert (low[0], high[0]) == ("unlikely", "same")
        assert each.judged.queries
        share = each.judged.same / each.judged.pairs
        assert each.judged.brier < share * (1 - share)


CALIBRATED = calibrated()


def test_what_shapes_scores_is_written_down_for_people() -> None:
    scoring = scoring_of(SIFT, (GEOMETRY,))
    assert scoring["longest_side"] == 640
    assert scoring["describe"]["local"]["kind"] == "sift"
    assert scoring["steps"][0]["weight"] == 0.01
    assert json.loads(json.dumps(scoring)) == scoring
