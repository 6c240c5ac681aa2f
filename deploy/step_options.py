"""The options --rerank and --depth: which steps a search or an evaluation takes, instead of the recipe's."""

from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import BadInput

if TYPE_CHECKING:
    from index.recipe import Recipe
    from index.steps import StepSettings

Rerank = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS",
        help="none, or steps in their order: geometry, cvnet, regions, expand; default: the recipe's.",
    ),
]
Depth = Annotated[
    int | None, typer.Option(min=1, help="Answers that each step looks at, instead of its own number.")
]


def chosen_steps(recipe: "Recipe", rerank: str | None, depth: int | None) -> "tuple[StepSettings, ...]":
    """The steps that the options name, with the recipe's settings where it has that step, else the defaults.

    Raises:
        BadInput: there is no such step, or `--depth` is given and there is none to have it.
    """
    from pydantic import TypeAdapter

    from index.expansion import ExpansionSettings
    from index.steps import STEP_KINDS, StepSettings

    steps: list[StepSettings] = list(recipe.steps)
    if rerank is not None:
        known: dict[str, StepSettings] = {step.kind: step for step in recipe.steps}
        kinds = [] if rerank == "none" else [kind.strip() for kind in rerank.split(",")]
        if odd := [kind for kind in kinds if kind not in STEP_KINDS]:
            raise BadInput(
                f"--rerank {rerank}: there is no step {odd[0]!r}; give none, or some of "
                f"{', '.join(STEP_KINDS)}, separated by commas"
            )
        defaults = TypeAdapter(StepSettings)
        steps = [known.get(kind) or defaults.validate_python({"kind": kind}) for kind in kinds]
    if depth is None:
        return tuple(steps)
    if all(isinstance(step, ExpansionSettings) for step in steps):
        raise BadInput(f"--depth {depth} needs a step that looks so deep: add --rerank geometry, or cvnet")
    return tuple(step if isinstance(step, ExpansionSettings) else _as_deep(step, depth) for step in steps)


def _as_deep(step: "StepSettings", depth: int) -> "StepSettings":
    from pydantic import ValidationError

    try:
        return type(step).model_validate(step.model_dump() | {"depth": depth})
    except ValidationError as error:
        raise BadInput(f"--depth {depth}, for step {step.kind}: {error.errors()[0]['msg']}") from None
