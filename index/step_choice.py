"""Which steps a search takes instead of the recipe's: by their names, and how deep they look."""

from pydantic import TypeAdapter, ValidationError

from index.expansion import ExpansionSettings
from index.recipe import Recipe
from index.steps import STEP_KINDS, StepSettings
from ingest.errors import BadInput

_STEP: TypeAdapter[StepSettings] = TypeAdapter(StepSettings)


def chosen_steps(recipe: Recipe, rerank: str | None, depth: int | None) -> tuple[StepSettings, ...]:
    """The steps that are asked for, with the recipe's settings where it has that step, else the defaults.

    Args:
        rerank: `none`, or names separated by commas, in their order; None for the recipe's steps.
        depth: answers that each step looks at, instead of its own number.

    Raises:
        BadInput: there is no such step, or a depth is given and there is none to have it.
    """
    steps = list(recipe.steps) if rerank is None else _named(recipe, rerank)
    if depth is None:
        return tuple(steps)
    if all(isinstance(step, ExpansionSettings) for step in steps):
        raise BadInput(f"depth {depth} needs a step that looks so deep: let rerank be geometry, or cvnet")
    return tuple(step if isinstance(step, ExpansionSettings) else _as_deep(step, depth) for step in steps)


def _named(recipe: Recipe, rerank: str) -> list[StepSettings]:
    known: dict[str, StepSettings] = {step.kind: step for step in recipe.steps}
    kinds = [] if rerank == "none" else [kind.strip() for kind in rerank.split(",")]
    if odd := [kind for kind in kinds if kind not in STEP_KINDS]:
        raise BadInput(
            f"rerank {rerank!r}: there is no step {odd[0]!r}; give none, or some of {', '.join(STEP_KINDS)}, "
            "separated by commas"
        )
    return [known.get(kind) or _STEP.validate_python({"kind": kind}) for kind in kinds]


def _as_deep(step: StepSettings, depth: int) -> StepSettings:
    try:
        return type(step).model_validate(step.model_dump() | {"depth": depth})
    except ValidationError as error:
        raise BadInput(f"depth {depth}, for step {step.kind}: {error.errors()[0]['msg']}") from None
