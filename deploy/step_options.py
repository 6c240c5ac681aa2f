"""The options --rerank and --depth: which steps a search or an evaluation takes (`index.step_choice`)."""

from typing import Annotated

import typer

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
