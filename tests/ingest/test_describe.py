"""All describers of a recipe together: images apart from each other, networks shared, what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingest import cnn
from ingest.catalogue import read_catalogue
from ingest.decode import Decoded
from ingest.describe import ImageDescriber
from ingest.errors import BadInput
from ingest.extract import extract
from ingest.features import FeatureSettings
from ingest.image_features import ImageFeatures
from ingest.networks import NETWORKS
from ingest.outcomes import Outcome, Rejected
from ingest.parts import ingest_source
from ingest.weights import read_describers_weights
from tests.ingest.describing import one, open_describer, picture, png_of, same, whole
from tests.ingest.tiny_networks import network, watched
from tests.pipeline.small import Album, HereDecoder, cnn_recipe, job_on

EFFICIENTNET = {"name": "efficientnet-lite0"}
ALL_KINDS: dict[str, Any] = {
    "sift": {"kind": "sift", "max_keypoints": 30},
    "global": {
        "kind": "cnn-global",
        "network": EFFICIENTNET,
        "regions": {"kind": "sfrs"},
        "scales": [1, 0.7],
    },
    "columns": {"kind": "cnn-columns", "network": EFFICIENTNET, "layer": "reduction_3", "max_columns": 40},
    "reduced": {
        "kind": "cnn-global",
        "network": EFFICIENTNET,
        "longest_side": 64,
        "regions": {"kind": "rmac"},
    },
    "patches": {"kind": "cnn-patches", "network": EFFICIENTNET, "max_patches": 5, "side": 64},
    "colours": {"kind": "cnn-columns", "network": network("Averages"), "layer": "far"},
}
SIZES = ((64, 96), (96, 64), (64, 96), (48, 48), (70, 101), (64, 96), (48, 48))


@pytest.fixture(scope="module")
def describer() -> ImageDescriber:
    return open_describer(ALL_KINDS)


@pytest.fixture(scope="module")
def images() -> list[Decoded]:
    return [whole(picture(*size, seed)) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def alone(describer: ImageDescriber, images: Sequence[Decoded]) -> list[ImageFeatures | Rejected]:
    return [describer.describe([image])[0] for image in images]


# -- images do not see each other ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [range(7), (6, 3, 5, 0, 4, 2, 1), (2, 2, 0)])
def test_what_an_image_holds_does_not_depend_on_those_beside_it(
    order: Sequence[int],
    describer: ImageDescriber,
    images: Sequence[Decoded],
    alone: Sequence[ImageFeatures | Rejected],
) -> None:
    together = describer.describe([images[place] for place in order])
    assert all(same(found, alone[place]) for found, place in zip(together, order, strict=True))
    assert not any(same(one, other) for n, one in enumerate(alone) for other in alone[:n])


def test_batches_hold_images_of_one_size_and_give_each_its_own(
    describer: ImageDescriber,
    images: Sequence[Decoded],
    alone: Sequence[ImageFeatures | Rejected],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU; sums are made in another order there, so the last bits differ."""
    monkeypatch.setitem(cnn._BATCH, "cpu", 2)
    with watched() as batches:
        together = describer.describe(images)
    assert batches == [(2, 3, 64, 96), (1, 3, 64, 96), (1, 3, 96, 64), (2, 3, 48, 48), (1, 3, 70, 101)]
    for found, expected in zip(together, alone, strict=True):
        assert isinstance(found, ImageFeatures) and isinstance(expected, ImageFeatures)
        for label, arrays in expected.by_label.items():
            for name, array in arrays.items():
                mine = found.of(label)[name]
                assert mine.dtype == array.dtype
                scale = np.abs(array.astype(np.float64)).max(initial=1)
                np.testing.assert_allclose(mine / scale, array / scale, rtol=0, atol=1e-3, err_msg=label)


def test_one_that_is_refused_leaves_the_others_alone(
    describer: ImageDescriber, images: Sequence[Decoded], alone: Sequence[ImageFeatures | Rejected]
) -> None:
    small = whole(picture(31, 64))
    found = describer.describe([images[0], small, images[1], small])
    assert same(found[0], alone[0]) and same(found[2], alone[1])
    assert found[1] == found[3] == describer.describe([small])[0]
    assert isinstance(found[1], Rejected)


def test_no_images_are_no_features(describer: ImageDescriber) -> None:
    assert describer.describe([]) == []


# -- networks are shared ------------------------------------------------------------------------------------


def test_labels_of_one_network_share_its_passes() -> None:
    mine = network("Averages")
    describer = open_describer(
        {
            "a": {"kind": "cnn-global", "network": mine, "layer": "far"},
            "b": {"kind": "cnn-global", "network": mine, "layer": "near", "scales": [0.5, 1.0]},
            "c": {"kind": "cnn-columns", "network": mine, "layer": "near"},
            "d": {"kind": "cnn-global", "network": mine, "layer": "far", "longest_side": 32},
        }
    )
    with watched() as batches:
        describer.describe([whole(picture(64, 96))])
    assert sorted(batches) == [(1, 3, 21, 32), (1, 3, 32, 48), (1, 3, 64, 96)]


def test_networks_with_other_weights_or_preprocessing_are_others() -> None:
    labels = {
        name: {"kind": "cnn-global", "network": settings, "layer": "far"}
        for name, settings in {
            "a": network("Averages"),
            "b": network("Averages", "seed:1"),
            "c": network("Averages", mean=(0, 0, 0)),
        }.items()
    }
    describer, image = open_describer(labels), whole(picture(64, 64))
    with watched() as batches:
        (found,) = describer.describe([image])
    assert batches == 3 * [(1, 3, 64, 64)]
    assert isinstance(found, ImageFeatures)
    assert len({found.of(label)["descriptors"].tobytes() for label in labels}) == 3
    for label, settings in labels.items():
        expected = one(open_describer({label: settings}), image, label)
        assert found.of(label)["descriptors"].tobytes() == expected["descriptors"].tobytes()


def test_a_label_is_the_same_whatever_is_described_beside_it(
    images: Sequence[Decoded], alone: Sequence[ImageFeatures | Rejected]
) -> None:
    assert isinstance(alone[0], ImageFeatures)
    for label, settings in ALL_KINDS.items():
        found = one(open_describer({label: settings}), images[0], label)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in alone[0].of(label).items()
        }, label


# -- what is too small --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "module"])
def test_the_least_side_of_a_network_is_the_least_that_leaves_every_layer_a_cell(name: str) -> None:
    module, _, factory = NETWORKS[name].factory.partition(":")
    with torch.device("meta"):
        made = getattr(__import__(module, fromlist=[factory]), factory)()
    least = NETWORKS[name].least_side
    for size in ((least, 64), (64, least)):
        maps = made(torch.zeros(1, 3, *size, device="meta"))
        assert all(0 not in found.shape for found in maps.values())
    if least > 1:
        with pytest.raises((BadInput, RuntimeError)):
            made(torch.zeros(1, 3, least - 1, 64, device="meta"))


@pytest.mark.parametrize(
    ("size", "settings", "seen"),
    [
        ((31, 64), {}, "64 x 31"),
        ((64, 31), {}, "31 x 64"),
        ((44, 64), {"scales": [1.0, 0.7071]}, "45 x 31"),
        ((64, 200), {"longest_side": 96}, "96 x 31"),
    ],
)
def test_an_image_too_small_for_its_network_is_rejected(
    size: tuple[int, int], settings: dict[str, Any], seen: str
) -> None:
    describer = open_describer({"global": {"kind": "cnn-global", "network": EFFICIENTNET, **settings}})
    assert describer.describe([whole(picture(*size))]) == [
        Rejected(Outcome.TOO_SMALL, f"efficientnet-lite0 would see {seen} pixels; it needs 32 or more a side")
    ]


def test_an_image_of_the_least_side_is_described() -> None:
    describer = open_describer({"global": {"kind": "cnn-global", "network": EFFICIENTNET}})
    found = one(describer, whole(picture(32, 32)), "global")["descriptors"]
    assert found.shape == (1, 320) and np.linalg.norm(found) == pytest.approx(1)


def test_patches_too_small_for_the_network_are_a_mistake_in_the_recipe() -> None:
    with pytest.raises(ValueError, match="side 31: efficientnet-lite0 needs patches of 32 pixels or more"):
        open_describer({"patches": {"kind": "cnn-patches", "network": EFFICIENTNET, "side": 31}})


@pytest.mark.parametrize("kind", ["cnn-global", "cnn-columns", "cnn-patches"])
def test_a_layer_that_is_not_there_stops_the_run_instead_of_rejecting_every_image(kind: str) -> None:
    describer = open_describer({"a": {"kind": kind, "network": EFFICIENTNET, "layer": "reduction_6"}})
    with pytest.raises(BadInput, match=r"no layer reduction_6; the network has reduction_1, .*head"):
        describer.describe([whole(picture(64, 64))])


def test_an_ingest_counts_what_is_too_small_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.features.DecoderPool", HereDecoder)
    sizes = [(64, 64), (20, 64), (64, 64), (8, 64)]
    album = Album("a", {f"{n}.png": png_of(picture(*size, n)) for n, size in enumerate(sizes)})
    features = cnn_recipe().features
    assert features is not None
    read = read_describers_weights(features.describe)
    job = job_on(str(tmp_path / "gallery"))
    read.keep(job.gallery)
    ingest_source(job.gallery, album, job.progress)
    known = features.model_copy(update={"describe": read.describe})
    found = extract(job, read_catalogue(job.gallery), known, {"a": album}, max_rejects=0.5)
    assert found.outcomes == {"ok": 2, "too_small": 2}


def test_an_image_in_which_nothing_is_found_has_no_features() -> None:
    flat = whole(np.full((64, 64, 3), 128, np.uint8))
    sift = {"kind": "sift"}
    (found,) = open_describer({"local": sift}).describe([flat])
    assert isinstance(found, Rejected) and found.reason is Outcome.NO_FEATURES
    both = open_describer({"local": sift, "global": {"kind": "cnn-global", "network": EFFICIENTNET}})
    assert len(one(both, flat, "local")["descriptors"]) == 0  # the other label found something


def test_settings_that_do_not_fit_together_are_refused() -> None:
    for label, message in (
        ({"kind": "cnn-global", "network": EFFICIENTNET, "head": True}, "has no head of its own"),
        ({"kind": "cnn-global", "network": EFFICIENTNET, "scales": [1, 1]}, "give different numbers"),
        ({"kind": "cnn-global", "network": EFFICIENTNET, "scales": [0]}, "from 0.1 to 4"),
        (
            {
                "kind": "cnn-global",
                "network": EFFICIENTNET,
                "scales": [1, 2],
                "regions": {"kind": "rmac"},
            },
            "give one scale",
        ),
        ({"kind": "cvnet-pyramid", "network": EFFICIENTNET}, "choose cvnet-r50 or cvnet-r101"),
        ({"kind": "cnn-patches", "network": EFFICIENTNET, "sizes": [1.5]}, "from 0.05 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureSettings.model_validate({"describe": {"a": label}})
