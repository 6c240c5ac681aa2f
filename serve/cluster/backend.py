"""A backend on Ray Serve: what a service in an ingress asks, over handles of deployments.

Each replica of each group of shards is a deployment of its own, so that the service chooses whom it asks:
it pins generations and hedges, and Serve supervises. Calls go by gRPC (`_by_reference=False`): straight from
process to process, instead of through Ray's object store.

Measured on 2 cores, 4 KB there and back, p50 of one caller, and calls a second of eight:

                                    one call           two at once
    handle, by reference            1.8 ms    760/s    3.5 ms    420/s
    handle, by gRPC                 1.2 ms  2,020/s    1.8 ms    890/s
    named actor, no Serve           1.1 ms  1,970/s    1.4 ms    900/s
    with the environment of `deploy.ray_environment`:
    handle, by gRPC                 0.8 ms  3,020/s    1.2 ms  1,370/s
    named actor, no Serve           0.9 ms  2,040/s    1.3 ms  1,460/s

So an actor outside of Serve would gain nothing for which to supervise it ourselves.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from index.group import Row
from index.rerank import Hit
from index.steps import PairSettings, Query, StepSettings
from ingest.feature_reader import Place
from ingest.outcomes import Rejected
from serve.backend import Backend, Comparison, Encoded, GroupState
from serve.cluster.settings import FrontSettings, group_deployment, slot_application
from serve.failures import Failure
from serve.query import ImageQuery
from serve.refusals import Away

_LOOK_AGAIN_S = 0.2  # between two looks for a deployment that is not there yet


class _Remote:
    """A deployment, called by the names of its methods."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle.options(_by_reference=False)

    async def call(self, method: str, *arguments: Any) -> Any:
        """What a replica answers. Cancelled with the task that awaits it.

        Raises:
            Away: it is gone, or failed in a way that is no error of ours.
            ReseenError: what it raised.
        """
        response = None
        try:
            response = getattr(self._handle, method).remote(*arguments)
            reply = await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # Ray or gRPC gave it up, not our caller
                raise Away(f"{self.name} dropped the call: try again soon") from None
            raise
        except Exception as error:  # Ray has many, and gRPC its own
            raise Away(f"{self.name} does not answer ({type(error).__name__}): try again soon") from error
        if isinstance(reply, Failure):
            raise reply.error()
        return reply


class RayReplica(_Remote):
    """See `serve.backend.Replica`."""

    async def scan(self, generation: int, batch: bytes) -> bytes:
        found: bytes = await self.call("scan", generation, batch)
        return found

    async def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        found: list[Row | None] = await self.call("rows", generation, image_ids)
        return found

    async def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        state: GroupState = await self.call("load", generation, replace, keep)
        return state

    async def states(self) -> list[GroupState]:
        states: list[GroupState] = await self.call("states")
        return states


class RayEncoder(_Remote):
    """See `serve.backend.Encoder`."""

    async def encode(self, generation: int, image: ImageQuery, labels: Collection[str]) -> Encoded | Rejected:
        found: Encoded | Rejected = await self.call("encode", generation, image, labels)
        return found

    async def warm(self, generation: int) -> None:
        """Opens what the recipe needs, in one of the replicas."""
        await self.call("warm", generation)


class RayReranker(_Remote):
    """See `serve.backend.Reranker`."""

    async def look(
        self, generation: int, settings: PairSettings, query: Query, hits: Sequence[Hit]
    ) -> list[Hit]:
        looked: list[Hit] = await self.call("look", generation, settings, query, hits)
        return looked

    async def expand(
        self, generation: int, settings: StepSettings, query: Query, hits: Sequence[Hit]
    ) -> Query:
        expanded: Query = await self.call("expand", generation, settings, query, hits)
        return expanded

    async def stored(self, generation: int, place: Place, labels: Collection[str]) -> Query | Rejected:
        found: Query | Rejected = await self.call("stored", generation, place, labels)
        return found

    async def vectors(self, generation: int, places: Sequence[Place]) -> np.ndarray:
        vectors: np.ndarray = await self.call("vectors", generation, places)
        return vectors

    async def compare(
        self, generation: int, steps: Sequence[StepSettings], query: Query, place: Place
    ) -> Comparison | Rejected:
        found: Comparison | Rejected = await self.call("compare", generation, steps, query, place)
        return found


async def open_ray_backend(settings: FrontSettings, encoder: Any, reranker: Any) -> Backend:
    """The backend of an ingress; waits until every slot's application is known to Serve.

    Args:
        encoder, reranker: handles of their deployments.
    """
    groups = [
        [
            RayReplica(
                f"{group}/{slot}",
                await _handle(group_deployment(group), slot_application(settings.name, slot)),
            )
            for slot in settings.slots
        ]
        for group in range(settings.groups)
    ]
    return Backend(groups, RayEncoder("the encoder", encoder), RayReranker("the reranker", reranker))


async def _handle(deployment: str, application: str) -> Any:
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    while True:
        try:
            return ray_serve.get_deployment_handle(deployment, application)
        except RayServeException:  # it is being deployed beside us
            await asyncio.sleep(_LOOK_AGAIN_S)
