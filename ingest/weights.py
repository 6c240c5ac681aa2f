"""Weights of networks in a gallery: read once from where the recipe says, then named by their content.

A recipe names weights by their source (`imagenet`, a path, a URL); results depend on their content. So the
first command that needs them reads the source, keeps the tensors in the gallery under `models/<digest>/`, and
writes the digest into the recipe. From then on queries and later builds use the gallery's own copy, anywhere.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ingest.errors import BadInput
from ingest.gallery import Gallery, model_path
from ingest.models import load_model, model_bytes
from ingest.networks import NetworkSettings
from ingest.records import digest_of_bytes
from ingest.tables import write_object

if TYPE_CHECKING:
    from ingest.describe import DescribeSettings, LoadWeights

KIND = "weights"


def weights_digests(settings: Iterable[BaseModel]) -> set[str]:
    """The digests of the weights that describers use.

    Raises:
        BadInput: some have not been read yet.
    """
    return {known_digest(network) for network in map(network_of, settings) if network is not None}


def network_of(settings: BaseModel) -> NetworkSettings | None:
    """The network of a describer; None if it has none."""
    network = getattr(settings, "network", None)
    return network if isinstance(network, NetworkSettings) else None


def known_digest(network: NetworkSettings) -> str:
    """The digest of a network's weights; `BadInput` if they have not been read yet."""
    if network.digest is None:
        raise BadInput(
            f"the weights of network {network.name!r} ({network.weights}) have not been read yet, so what "
            "they compute has no name: ingest or build with this recipe first"
        )
    return network.digest


def without_sources(settings: Any) -> Any:
    """Dumped settings that tell every network by the digest of its weights, not by where they lay."""
    if isinstance(settings, list):
        return [without_sources(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    inner = {name: without_sources(value) for name, value in settings.items()}
    if isinstance(network := settings.get("network"), dict):
        known_digest(NetworkSettings.model_validate(network))
        for where in ("weights", "prefix"):
            inner["network"].pop(where)
    return inner


@dataclass(frozen=True)
class ReadWeights:
    """Settings whose networks state the digests of their weights, and the weights that were read for that.

    objects: of models, by digest.
    """

    describe: dict[str, "DescribeSettings"]
    objects: Mapping[str, bytes] = field(repr=False)

    def keep(self, gallery: Gallery) -> None:
        """Writes the weights into a gallery, unless they are there. Pin `models/<digest>/` before."""
        for digest, data in self.objects.items():
            write_object(gallery.store, model_path(digest), data)


def read_describers_weights(
    describe: Mapping[str, "DescribeSettings"], gallery: Gallery | None = None
) -> ReadWeights:
    """Reads the weights that describers name; memory: all of them.

    Args:
        gallery: whose own copies are used for settings that state their digest already.

    Raises:
        BadInput: weights cannot be read, do not fit the network, or are not those that a digest states.
        NotFound: there are no such weights.
    """
    objects: dict[str, bytes] = {}
    known: dict[str, str] = {}  # digest by network: several labels share one
    found = {}
    for label, settings in describe.items():
        network = network_of(settings)
        if network is not None and not _kept(gallery, network):
            name = network.model_dump_json()
            if name not in known:
                known[name] = _read(network, objects)
            network = network.model_copy(update={"digest": known[name]})
            settings = settings.model_copy(update={"network": network})
        found[label] = settings
    return ReadWeights(found, objects)


def _kept(gallery: Gallery | None, network: NetworkSettings) -> bool:
    if gallery is None or network.digest is None:
        return False
    return gallery.store.exists(model_path(network.digest))


def _read(network: NetworkSettings, objects: dict[str, bytes]) -> str:
    from ingest.checkpoints import to_arrays
    from ingest.networks import read_weights

    data = model_bytes(KIND, {"network": network.name}, to_arrays(read_weights(network)))
    digest = digest_of_bytes(data)
    if network.digest not in (None, digest):
        raise BadInput(
            f"the weights of network {network.name!r} at {network.weights} have the digest {digest}, and the "
            f"recipe states {network.digest}: give the file that it was written for, or take out `digest`"
        )
    objects[digest] = data
    return digest


def weights_loader(gallery: Gallery) -> "LoadWeights":
    """How describers get at the weights that a gallery keeps."""

    def load(digest: str) -> Mapping[str, Any]:
        from ingest.checkpoints import from_arrays

        return from_arrays(load_model(gallery, digest, KIND)[1])

    return load
