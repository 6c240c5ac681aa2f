"""What the applications on Ray Serve are told: the `args` of a `serve deploy` file. Unknown keys are errors.

Each slot is an application of its own, with one replica of each group of shards: a change of its `args` (of
`revision`, if nothing else) restarts that slot alone. The front (ingress, encoder, reranker) is one more.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.devices import DeviceChoice
from serve.front import DoorSettings

Slot = Annotated[str, Field(pattern=r"^[a-z]{1,3}$")]
LogLevel = Literal["debug", "info", "warning", "error"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gallery: str = Field(min_length=1, description="folder or URL that every node can read")
    groups: int = Field(1, ge=1, le=1_000, description="into how many groups the shards are cut")
    name: str = Field(
        "reseen",
        pattern=r"^[a-z][a-z0-9-]{0,40}$",
        description="of the front's application; slot a is the application <name>-a",
    )
    log_level: LogLevel = "info"
    revision: int = Field(0, ge=0, description="another number starts these replicas anew")


class SlotSettings(_Settings):
    """One slot: a replica of each group of shards."""

    slot: Slot = Field(description="letter of this slot")
    cache: str | None = Field(None, description="folder on each node for copies of index objects")
    memory_bytes: int | None = Field(
        None, ge=1, description="what lists and row tables of a replica may take, two generations together"
    )
    threads: int | None = Field(None, ge=1, description="that scan; default: one a processor of the node")
    cpus: float = Field(1.0, ge=0, description="that Ray sets aside for a replica")
    node_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="that Ray sets aside for a replica, its process and its index: a node that has not so "
        "much left gets none",
    )
    node_labels: Mapping[str, str] = Field(
        {},
        description="of the nodes that may have this slot (ray start --labels): with others for each slot, "
        "the replicas of a group are on different nodes",
    )
    surge: bool = Field(
        False,
        description="a new deployment starts beside the old one: twice the memory for a while, and needed "
        "where this is the only slot",
    )


class FrontSettings(_Settings, DoorSettings):
    """Ingress, encoder and reranker."""

    slots: tuple[Slot, ...] = Field(("a",), min_length=1, description="that are asked")
    ingresses: int = Field(2, ge=1, description="replicas that answer HTTP")
    encoders: int = Field(1, ge=1, description="replicas that turn images into vectors")
    rerankers: int = Field(1, ge=1, description="replicas that look again at pairs")
    ingress_cpus: float = Field(0.5, ge=0)
    encoder_cpus: float = Field(1.0, ge=0)
    reranker_cpus: float = Field(1.0, ge=0)
    encoder_gpus: float = Field(0.0, ge=0)
    reranker_gpus: float = Field(0.0, ge=0)
    device: DeviceChoice = Field("auto", description="where networks run")


def slot_application(name: str, slot: str) -> str:
    """The name of a slot's application."""
    return f"{name}-{slot}"


def group_deployment(group: int) -> str:
    """The name of a group's deployment in each slot's application."""
    return f"group-{group}"
