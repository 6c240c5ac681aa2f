"""What a score means: the probability that query and answer show the same thing, and a plain verdict.

A calibration is a curve (`index.score_curve`) for one way of scoring: the settings that shape a recipe's
vectors and codes, and the steps that added to the score. Another way needs another curve.

The probability is of a stated population: the answers among the first `top` of a query whose thing is in the
gallery. Where most queries have no true answer, where there are many more, or where the gallery is a thousand
times larger (the best of more wrong answers scores higher), the shares are others. So every calibration
carries what was observed on labels that it was not fitted on, and `reseen evaluate --calibration` makes one
for any gallery with labels.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from index.expansion import ExpansionSettings
from index.fused import encoders_in
from index.recipe import Recipe
from index.score_curve import Curve, Pairs, fit_curve
from index.steps import StepSettings
from ingest.errors import BadInput, NotFound
from ingest.weights import without_sources

Label = Literal["same", "maybe", "unlikely"]
VERDICTS: tuple[tuple[Label, float], ...] = (("same", 0.9), ("maybe", 0.5), ("unlikely", 0.0))
FORMAT = 1  # of the file

_MOST_BYTES = 1 << 20
# What draws the samples that models are fitted on, how long that is done, and how many answers are looked at.
_SHAPELESS = frozenset(
    ["seed", "sample_descriptors", "sample_images", "sample_vectors", "sample_pairs", "iterations", "depth"]
)
_CODE = frozenset(["kind", "code_bytes", "opq", "opq_dim"])


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Count(_Record):
    """How many pairs had a verdict, and how many of them were of the same thing."""

    pairs: int = Field(ge=0)
    same: int = Field(ge=0)


class Reliability(_Record):
    """What was observed on labelled pairs.

    brier: the mean square of probability - truth; that of always saying the share of same pairs is
    share x (1 - share).
    """

    queries: int = Field(ge=0)
    pairs: int = Field(ge=1)
    same: int = Field(ge=0)
    brier: float = Field(ge=0, le=1)
    verdicts: dict[Label, Count]


class Calibration(_Record):
    """A curve and what it is for.

    recipe: the name of the recipe that it was fitted with.
    scoring: `scoring_of` that recipe and its steps.
    data: what it was fitted on, in words. top: so many answers of each query were pairs.
    fitted: observed on the pairs that the curve was fitted to. judged: on those kept apart, of other labels.
    """

    format: Literal[1] = 1
    recipe: str
    scoring: dict[str, JsonValue]
    curve: Curve
    data: str
    top: int = Field(ge=1)
    fitted: Reliability
    judged: Reliability

    def verdict(self, score: float) -> tuple[Label, float]:
        """`same` from a probability of .9 on, `maybe` from .5, else `unlikely`; and the probability."""
        return _verdict(float(self.curve.probabilities(np.array([score]))[0]))


def _verdict(probability: float) -> tuple[Label, float]:
    return next((label, probability) for label, least in VERDICTS if probability >= least)


def calibrate(
    recipe: Recipe, steps: Sequence[StepSettings], fitted: Pairs, judged: Pairs, data: str, top: int
) -> Calibration:
    """Fits a curve to some pairs, and observes it on them and on others, best of other things.

    Raises:
        BadInput: too few pairs of either sort, or scores that do not tell them apart.
    """
    curve = fit_curve(fitted)
    return Calibration(
        recipe=recipe.name,
        scoring=scoring_of(recipe, steps),
        curve=curve,
        data=data,
        top=top,
        fitted=observed(curve, fitted),
        judged=observed(curve, judged),
    )


def observed(curve: Curve, pairs: Pairs) -> Reliability:
    """How far the probabilities hold on pairs whose truth is known; `BadInput` if there are none."""
    if not len(pairs.scores):
        raise BadInput("there are no pairs to judge a calibration by: label more images")
    said = curve.probabilities(pairs.scores)
    labels = np.array([_verdict(float(probability))[0] for probability in said])
    return Reliability(
        queries=pairs.queries,
        pairs=len(said),
        same=int(pairs.same.sum()),
        brier=float(np.mean((said - pairs.same) ** 2)),
        verdicts={
            label: Count(pairs=int((labels == label).sum()), same=int(pairs.same[labels == label].sum()))
            for label, _ in VERDICTS
        },
    )


def scoring_of(recipe: Recipe, steps: Sequence[StepSettings]) -> dict[str, Any]:
    """The settings that decide what a score means, as JSON: where they are equal, scores compare.

    Left out is what finds answers faster (lists), what rejects images, what draws samples to fit models on,
    and features that no encoder and no step reads. Of ready-made vectors only the recipe's name tells what
    they are.

    Raises:
        BadInput: the weights of the recipe's networks have not been read.
    """
    quantizer = recipe.quantizer.model_dump(mode="json")
    scoring: dict[str, Any] = {
        "steps": [step.model_dump(mode="json") for step in steps],
        "quantizer": {name: value for name, value in quantizer.items() if name in _CODE},
    }
    if recipe.features is None or recipe.encoder is None:
        scoring["vectors"] = recipe.name
    else:
        read = {encoder.reads for encoder in encoders_in(recipe.encoder)}
        read |= {step.reads for step in steps if not isinstance(step, ExpansionSettings)}
        described = recipe.features.model_dump(mode="json")["describe"]
        there = {label: settings for label, settings in described.items() if label in read}
        scoring["longest_side"] = recipe.features.decode.longest_side
        scoring["describe"] = without_sources(there)
        scoring |= recipe.model_dump(mode="json", include={"encoder", "projection"})
    shaping: dict[str, Any] = _shaping(scoring)
    return shaping


def _shaping(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {name: _shaping(value) for name, value in settings.items() if name not in _SHAPELESS}
    return [_shaping(each) for each in settings] if isinstance(settings, list) else settings


def find_calibration(
    calibrations: Sequence[Calibration], recipe: Recipe, steps: Sequence[StepSettings]
) -> Calibration | None:
    """The last of the calibrations that is for this way of scoring; None if none is.

    Args:
        recipe: of a generation.
        steps: those that were really done: a score to which one of them did not add means something else.
    """
    scoring = scoring_of(recipe, steps)
    return next((each for each in reversed(calibrations) if each.scoring == scoring), None)


def load_calibrations(paths: Sequence[str | Path] = ()) -> list[Calibration]:
    """The calibrations that ship with Reseen, then those in some files, which go before them.

    Raises:
        NotFound: there is no such file.
        BadInput: a file is no calibration; it is named.
    """
    ours = sorted((files("index") / "calibrations").iterdir(), key=lambda entry: entry.name)
    found = [
        parse_calibration(entry.read_bytes(), entry.name) for entry in ours if entry.name.endswith(".json")
    ]
    return [*found, *(parse_calibration(_file_bytes(Path(path)), str(path)) for path in paths)]


def _file_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no calibration file {path}: make one by `reseen evaluate`") from None
    except OSError as error:
        raise BadInput(f"calibration file {path} cannot be read: {error.strerror}") from None


def parse_calibration(data: bytes, where: str) -> Calibration:
    """The calibration that `calibration_bytes` wrote; `BadInput`, naming `where`, for anything else."""
    if len(data) > _MOST_BYTES:
        raise BadInput(f"{where} is no calibration: it has more than {_MOST_BYTES:,} bytes")
    try:
        return Calibration.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{where} is no calibration of format {FORMAT} ({at + ': ' if at else ''}{first['msg']}): make "
            "one by `reseen evaluate --calibration`"
        ) from None


def calibration_bytes(calibration: Calibration) -> bytes:
    """A calibration as a file: JSON, for people to read too."""
    return (json.dumps(calibration.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
