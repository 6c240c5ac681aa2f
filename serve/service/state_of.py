"""What a service says about itself: the generation that it serves, and whether all of it answers."""

import time
from collections.abc import Sequence

from serve.api import GenerationInfo, Readiness
from serve.service.flip import Flip
from serve.service.peers import Peers
from serve.service.searching import Verdicts


def generation_info(flip: Flip, groups: Sequence[Peers], verdicts: Verdicts) -> GenerationInfo:
    """`NotReady` before the first generation."""
    view = flip.view
    recipe = view.generation.recipe
    return GenerationInfo(
        number=view.number,
        recipe=recipe.name,
        published=view.published.isoformat(),
        age_s=max(0.0, time.time() - view.published.timestamp()),
        counts=dict(view.generation.counts),
        dim=view.dim,
        columns=dict(view.columns),
        steps=[step.kind for step in recipe.steps],
        images=view.images,
        calibrated=verdicts.of(view, recipe.steps) is not None,
        groups=[
            {
                "group": peers.group,
                "shards": list(view.shares[peers.group].shards),
                "rows": view.shares[peers.group].rows,
                "replicas": [
                    {
                        "name": peer.name,
                        "ready": peer in peers.ready(view.number),
                        "generations": sorted(peer.states),
                    }
                    for peer in peers.all
                ],
            }
            for peers in groups
        ],
        newest=max(flip.newest, view.number),
        refused={str(number): why for number, why in sorted(flip.refused.items())},
        warning=view.warning,
    )


def readiness(flip: Flip, groups: Sequence[Peers]) -> Readiness:
    """Ready: of each group a replica has the served generation, and answered a real query in it."""
    view = flip.view
    away = [peers.group for peers in groups if not peers.ready(view.number)]
    missing = view.shards_of(set(away))
    if away:
        names = ", ".join(map(str, away))
        return Readiness(
            ready=False,
            generation=view.number,
            missing=missing,
            detail=f"no replica answers of group {names}",
        )
    return Readiness(ready=True, generation=view.number, detail=f"generation {view.number}")
