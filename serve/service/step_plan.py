"""Which steps a request takes: the recipe's, or those that it names, where its queries make them possible."""

from collections.abc import Sequence

from index.expansion import ExpansionSettings
from index.recipe import Recipe
from index.step_choice import chosen_steps
from index.steps import StepSettings, looks_at
from ingest.errors import BadInput


def plan_steps(
    recipe: Recipe, rerank: str | None, depth: int | None, vectors_only: bool
) -> tuple[StepSettings, ...]:
    """The steps of a search.

    Args:
        rerank, depth: as requests name them.
        vectors_only: nothing but vectors is searched with: there is nothing that a step could look at, and
            none is taken unless it is asked for.

    Raises:
        BadInput: there is no such step, it reads what the recipe does not describe, or it has nothing to
            look at.
    """
    if vectors_only and rerank is None:
        rerank = "none"
    steps = chosen_steps(recipe, rerank, depth)
    pairs = [step for step in steps if not isinstance(step, ExpansionSettings)]
    if vectors_only and pairs:
        raise BadInput(
            f"step {pairs[0].kind} looks at images, and a vector shows none: leave it out, or search with an "
            "image; expand is possible"
        )
    described = {} if recipe.features is None else recipe.features.describe
    for step in pairs:
        if step.reads not in described:
            raise BadInput(
                f"step {step.kind} reads the features {step.reads!r}, and recipe {recipe.name!r} describes "
                f"only: {', '.join(sorted(described)) or 'ready-made vectors'}; choose another step"
            )
    return steps


def labels_of(steps: Sequence[StepSettings]) -> frozenset[str]:
    """Of the features that steps read."""
    return frozenset(step.reads for step in steps if not isinstance(step, ExpansionSettings))


def depth_of(steps: Sequence[StepSettings]) -> int:
    """How many hits a search must fetch for its steps."""
    return max(map(looks_at, steps), default=0)
