"""What `reseen serve --ray` is asked for: the settings of each application, and the applications."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import OverBudget

if TYPE_CHECKING:
    from ray.serve import RunTarget

    from serve.cluster.settings import FrontSettings, LogLevel, SlotSettings
    from serve.front import DoorSettings

_CPU_DECIMALS = 4  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class RayServer:
    """A slot with a replica of each group of shards, more such slots, and the front.

    address: of a running cluster; None: Ray is started here.
    """

    slots: "tuple[SlotSettings, ...]"
    front: "FrontSettings"
    host: str
    port: int
    address: str | None

    @property
    def cpus(self) -> float:
        """Processors that all replicas together have set aside."""
        front = self.front
        return (
            front.groups * sum(each.cpus for each in self.slots)
            + front.ingresses * front.ingress_cpus
            + front.encoders * front.encoder_cpus
            + front.rerankers * front.reranker_cpus
        )

    def applications(self) -> "list[RunTarget]":
        """The slots, then the front: in the order in which they are deployed anew."""
        from ray.serve import RunTarget

        from serve.cluster import app
        from serve.cluster.settings import slot_application

        name = self.front.name
        slots = [
            RunTarget(app.slot(each), slot_application(name, each.slot), route_prefix=None)
            for each in self.slots
        ]
        return [*slots, RunTarget(app.application(self.front), name, route_prefix="/")]

    def check_room(self, free: float) -> None:
        """`OverBudget` where a cluster with so many free processors cannot hold all: Serve would wait."""
        if round(self.cpus, _CPU_DECIMALS) > free:
            raise OverBudget(
                f"the replicas want {self.cpus:g} processors set aside and the cluster has {free:g} free: "
                "ask for fewer groups or replicas, or set fewer aside for each (--cpus)"
            )


def ray_server(
    gallery: str,
    door: "DoorSettings",
    *,
    host: str,
    port: int,
    address: str | None,
    groups: int,
    replicas: int,
    cache: Path,
    memory_bytes: int | None,
    cpus: float,
    log_level: "LogLevel",
    fronts: tuple[int, int, int],
) -> RayServer:
    """A server whose replicas all have so many processors set aside.

    Args:
        replicas: of each group: so many slots.
        fronts: how many ingresses, encoders and rerankers.

    Raises:
        NotFound: there is no such gallery, or it has no generation: Ray need not be started to learn that.
    """
    from index.generation import read_generation
    from ingest.gallery import open_gallery
    from ingest.store import Store
    from serve.cluster.settings import FrontSettings, SlotSettings
    from serve.replicas.embedded import slot

    store = Store(gallery)
    read_generation(open_gallery(store))
    letters = tuple(slot(number) for number in range(replicas))
    common: dict[str, Any] = {"gallery": store.url, "groups": groups, "log_level": log_level}
    front = FrontSettings(
        **common,
        slots=letters,
        **dict(zip(("ingresses", "encoders", "rerankers"), fronts, strict=True)),
        **dict.fromkeys(("ingress_cpus", "encoder_cpus", "reranker_cpus"), cpus),
        **{name: getattr(door, name) for name in type(door).model_fields},  # it has a field `keys`
    )
    each_slot: dict[str, Any] = {"cache": str(cache), "memory_bytes": memory_bytes, "cpus": cpus}
    slots = [SlotSettings(**common, **each_slot, slot=letter, surge=replicas == 1) for letter in letters]
    return RayServer(tuple(slots), front, host, port, address)
