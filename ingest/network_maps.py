"""What every network has in common: maps by layer name, computed no further than they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ingest.errors import BadInput

Maps = dict[str, Float[Tensor, "b c h w"]]


class Network(nn.Module):
    """A network whose layers are known by name. A subclass states them and yields their maps.

    Attributes:
        layers: names of the layers, in the order in which they are computed.
    """

    layers: ClassVar[tuple[str, ...]] = ()

    def stages(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Float[Tensor, "b c i j"]]]:
        """The map of each layer, in order, each computed when it is asked for; none is changed later."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b 3 h w"], layers: Sequence[str] | None = None) -> Maps:
        """The maps of some layers.

        Args:
            x: (b, 3, h, w), as the network's preprocessing makes it.
            layers: what is wanted; all if None.

        Returns:
            (b, c, h', w') by layer, in the order in which they were asked for.

        Raises:
            BadInput: a layer that the network has not.
        """
        wanted = self.layers if layers is None else tuple(layers)
        refuse_unknown_layers(wanted, self.layers)
        found = {}
        for name, made in self.stages(x):
            if name in wanted:
                found[name] = made
            if len(found) == len(set(wanted)):
                break
        return {name: found[name] for name in wanted}


class ModuleNetwork(Network):
    """A module whose forward gives one map, which is called `map` here, or a mapping of maps by layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Float[Tensor, "b 3 h w"], layers: Sequence[str] | None = None) -> Maps:
        """As `Network.forward`, but that the whole module is computed, whatever is asked for.

        Raises:
            BadInput: a layer that the module does not give, or something that is no map.
        """
        given = self.module(x)
        maps = dict(given) if isinstance(given, Mapping) else {"map": given}
        for name, made in maps.items():
            if not isinstance(made, Tensor) or made.ndim != 4 or made.shape[0] != x.shape[0]:
                what = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise BadInput(
                    f"{type(self.module).__name__} gave {what} as {name!r}: a network gives a map "
                    "(b, c, h, w), or a mapping from layer names to such maps"
                )
        wanted = tuple(maps) if layers is None else tuple(layers)
        refuse_unknown_layers(wanted, tuple(maps))
        return {name: maps[name] for name in wanted}


def refuse_unknown_layers(wanted: Sequence[str], layers: Sequence[str]) -> None:
    """Raises `BadInput`, with the choices, if a layer is not among those of a network."""
    if unknown := [name for name in wanted if name not in layers]:
        raise BadInput(f"there is no layer {', '.join(unknown)}; the network has {', '.join(layers)}")
