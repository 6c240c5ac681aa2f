"""What a run wishes of devices reaches every place where one is chosen, on a machine that says it has a GPU.

The machine is a fake, and so is what would move things to its GPU: networks stay where they are, believing
that they run there. So every branch is taken, and results are those of the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from index.cvnet_settings import CvnetSettings
from index.cvnet_step import open_cvnet_step
from index.recipe import Recipe, with_read_weights
from ingest import cnn
from ingest.catalogue import read_catalogue
from ingest.compute import Compute
from ingest.decode import DecodeSettings
from ingest.devices import Devices, choose_devices
from ingest.errors import Unavailable
from ingest.extract import extract
from ingest.feature_reader import FeatureReader, Place
from ingest.features import ExtractWorker, FeatureSettings, read_features
from ingest.image_features import ImageFeatures
from ingest.job import Job
from ingest.parts import ingest_source
from serve.query import ImageQuery, open_query_encoder
from tests.cvnet_checkpoint import golden_state
from tests.ingest.describing import picture, png_of
from tests.ingest.tiny_networks import network, watched
from tests.pipeline.small import HereDecoder, build_images, images_of, job_on

WISHES = [  # what is wished, where networks then run, and with what
    (Compute(), Devices("cuda", "float16", True, True, False, 1)),
    (Compute(device="cuda", compile=True), Devices("cuda", "float16", True, True, True, 1)),
    (Compute(device="cpu", compile=True), Devices("cpu", "float32", False, False, True, 0)),
]


@dataclass(frozen=True)
class OneGpu:
    """A machine with a GPU, as a probe tells of it."""

    def cuda_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def bf16(self) -> bool:
        return True


@dataclass
class Placed:
    """What was placed where, in order, and with how many decoding processes."""

    networks: list[tuple[str, Devices]] = field(default_factory=list)
    decoders: list[int] = field(default_factory=list)


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    noted = Placed()

    def note(devices: Devices, module: Any) -> Any:
        noted.networks.append((type(module).__name__, devices))
        return module

    class Pool(HereDecoder):
        def __init__(self, settings: DecodeSettings, processes: int = 1) -> None:
            super().__init__(settings)
            noted.decoders.append(processes)

    monkeypatch.setattr("ingest.devices.ThisMachine", OneGpu)
    monkeypatch.setattr(Devices, "placed", note)
    monkeypatch.setattr(Devices, "to_device", lambda devices, batch: batch)
    monkeypatch.setattr("ingest.features.DecoderPool", Pool)
    return noted


def recipe_of(**describe: Any) -> Recipe:
    label = {"kind": "cnn-global", "network": network("Averages"), "layer": "far"}
    return Recipe.model_validate(
        {
            "name": "devices",
            "features": {"decode": {"longest_side": 64}, "describe": {"global": label, **describe}},
            "encoder": {"kind": "pooled"},
            "quantizer": {"kind": "flat"},
            "gate": {"recall": 0, "queries": 2},
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        size = (64, 64) if number < 4 else (48, 64)
        (tmp_path / "photos" / f"{number}.png").write_bytes(png_of(picture(*size, number)))
    return tmp_path


def described(folder: Path, compute: Compute, name: str = "gallery") -> tuple[Job, Recipe]:
    """A gallery of the photographs, listed and described as wished."""
    job = replace(job_on(str(folder / name)), compute=compute)
    recipe, weights = with_read_weights(recipe_of(), job.gallery)
    weights.keep(job.gallery)
    source = images_of(f"photos={folder / 'photos'}")
    ingest_source(job.gallery, source, job.progress)
    assert recipe.features is not None
    extract(job, read_catalogue(job.gallery), recipe.features, {"photos": source})
    return job, recipe


def stored(job: Job, features: FeatureSettings | None) -> list[ImageFeatures]:
    assert features is not None
    (part,) = read_catalogue(job.gallery).parts
    return [image for _, image in read_features(job.gallery, features.digest, part.part)]


@pytest.mark.parametrize(("compute", "devices"), WISHES)
def test_describing_uses_the_device_that_is_wished(
    compute: Compute, devices: Devices, photos: Path, placed: Placed
) -> None:
    with watched() as batches:
        described(photos, compute)
    assert placed.networks == [("ModuleNetwork", devices)]
    # On a GPU images of one size go together, and all processors but one decode.
    if devices.device == "cpu":
        assert sorted(batches) == [(1, 3, 48, 64)] + 4 * [(1, 3, 64, 64)]
        assert placed.decoders == [1]
    else:
        assert sorted(batches) == [(1, 3, 48, 64), (4, 3, 64, 64)]
        assert placed.decoders == [3]


def test_batches_are_no_larger_than_the_window_and_the_gpu_take(
    photos: Path, placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched() as batches:
        described(photos, Compute(window=2, decoders=2))
    assert sorted(shape[0] for shape in batches) == [1, 2, 2]
    assert placed.decoders == [2]
    monkeypatch.setitem(cnn._BATCH, "cuda", 3)
    with watched() as batches:
        described(photos, Compute(), "another")
    assert sorted(shape[0] for shape in batches) == [1, 1, 3]


def test_batches_change_no_more_than_the_last_bits(photos: Path, placed: Placed) -> None:
    together, recipe = described(photos, Compute())
    alone, _ = described(photos, Compute(device="cpu"), "alone")
    pairs = zip(stored(together, recipe.features), stored(alone, recipe.features), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(
            torch.from_numpy(one.of("global")["descriptors"]),
            torch.from_numpy(other.of("global")["descriptors"]),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize(("compute", "devices"), WISHES)
def test_queries_and_builds_use_the_device_that_is_wished(
    compute: Compute, devices: Devices, photos: Path, placed: Placed
) -> None:
    job = replace(job_on(str(photos / "gallery")), compute=compute)
    source = images_of(f"photos={photos / 'photos'}")
    ingest_source(job.gallery, source, job.progress)
    generation = build_images(job, recipe_of(), source)
    assert placed.networks == [("ModuleNetwork", devices)]
    with open_query_encoder(job.gallery, generation, compute=compute) as encoder:
        assert placed.networks == 2 * [("ModuleNetwork", devices)]
        encoder.encode([ImageQuery(png_of(picture(64, 64)))])


@pytest.fixture
def golden_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    state = golden_state()
    for module in ("ingest.features", "ingest.feature_reader", "index.cvnet_step"):
        monkeypatch.setattr(f"{module}.weights_loader", lambda _: lambda _: state)
    yield


PYRAMID = {
    "kind": "cvnet-pyramid",
    "network": {"name": "cvnet-r50", "weights": "seed:0", "digest": "0" * 32},
    "storage": "none",
}


@pytest.mark.parametrize(("compute", "devices"), WISHES)
@pytest.mark.usefixtures("golden_weights")
def test_looking_again_uses_the_device_that_is_wished(
    compute: Compute, devices: Devices, photos: Path, placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed on demand as what is stored; what compares two images in full precision."""
    job = job_on(str(photos / "gallery"))
    source = images_of(f"photos={photos / 'photos'}")
    ingest_source(job.gallery, source, job.progress)
    features = FeatureSettings.model_validate({"describe": {"local": {"kind": "sift"}, "pyramid": PYRAMID}})
    catalogue = read_catalogue(job.gallery)
    extract(job, catalogue, features, {"photos": source})
    assert placed.networks == []
    with FeatureReader(job.gallery, features, catalogue, compute) as reader:
        reader.read([Place(catalogue.parts[0].part, 0)], ["pyramid"])
    assert placed.networks == [("CVNet", devices)]
    where = []
    monkeypatch.setattr("index.cvnet.CvnetReranker", lambda learner, device: where.append(device))
    open_cvnet_step(job.gallery, features, CvnetSettings(reads="pyramid"), compute)
    exact = replace(devices, precision="float32", compile=False)
    assert placed.networks[1:] == [("CvLearner", exact)] and where == [devices.device]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_precision_is_the_recipes(precision: str, tmp_path: Path, placed: Placed) -> None:
    mine = {**network("Averages"), "precision": precision}
    label = {"kind": "cnn-global", "network": mine, "layer": "far"}
    recipe, _ = with_read_weights(recipe_of(**{"global": label}))
    job = job_on(str(tmp_path / "gallery"))
    with_read_weights(recipe_of(**{"global": label}))[1].keep(job.gallery)
    assert recipe.features is not None
    ExtractWorker(job.gallery, {}, recipe.features).start()
    assert [devices.precision for _, devices in placed.networks] == [precision]


def test_a_gpu_is_wanted_where_a_network_would_use_one(tmp_path: Path) -> None:
    gallery = job_on(str(tmp_path / "gallery")).gallery
    features = with_read_weights(recipe_of())[0].features
    assert features is not None
    sift = FeatureSettings()
    pyramid = {"kind": "cvnet-pyramid", "network": {"name": "cvnet-r50", "weights": "seed:0"}}
    on_demand = FeatureSettings.model_validate(
        {"describe": {"local": {"kind": "sift"}, "pyramid": {**pyramid, "storage": "none"}}}
    )
    for compute, settings, wanted in (
        (Compute(), features, True),
        (Compute(device="cuda"), features, True),
        (Compute(device="cpu"), features, False),
        (Compute(device="cuda"), sift, False),
        (Compute(device="cuda"), on_demand, False),
    ):
        assert ExtractWorker(gallery, {}, settings, compute).wants_gpu == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_wished_and_not_there_stops_a_run_before_it_writes(photos: Path) -> None:
    with pytest.raises(Unavailable, match=r"cuda was asked for.*reseen doctor"):
        described(photos, Compute(device="cuda"))
    assert job_on(str(photos / "gallery")).gallery.store.listing("features") == []
    assert choose_devices(device="auto").device == "cpu"
