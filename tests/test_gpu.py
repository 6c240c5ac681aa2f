"""What a GPU computes, against the CPU; runs wherever torch sees one (`make test ARGS='-m gpu'`).

Bounds: in float32 only sums are made in another order (TF32 is off), a few 1e-6 of a unit vector; in half
precision numbers have 11 or 8 bits, and a unit vector moves by what the settings' description says.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index.cvnet import CvnetReranker, correspondence, load_learner
from index.verify import verify
from ingest.compute import Compute
from ingest.decode import Decoded
from ingest.describe import ImageDescriber
from ingest.devices import choose_devices
from ingest.devices import describe as tell
from ingest.engine import open_engine
from ingest.features import FeatureSettings
from ingest.image_features import ImageFeatures
from tests.cvnet_checkpoint import golden_state
from tests.index.cvnet_pairs import golden, golden_pyramids, random_pyramid
from tests.ingest.describing import open_describer, picture, same, whole
from tests.pipeline.small import (
    answers,
    build_images,
    cnn_recipe,
    images_of,
    ingest,
    job_on,
    stored_vectors,
)

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

SIZES = ((96, 128), (128, 96), (96, 128), (96, 128), (70, 101))
BOUNDS = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.1}  # on the distance of unit vectors
NETWORKS: dict[str, dict[str, Any]] = {
    "efficientnet-lite0": {"name": "efficientnet-lite0"},
    "resnet18": {"name": "resnet18", "weights": "seed:0"},
    "vgg16": {"name": "vgg16", "weights": "seed:0"},
}


@pytest.fixture(autouse=True)
def _flags_return() -> Iterator[None]:
    """A placed network switches TF32 off for the whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def labels(network: dict[str, Any], precision: str) -> dict[str, Any]:
    mine = {**network, "precision": precision}
    return {
        "global": {"kind": "cnn-global", "network": mine, "regions": {"kind": "sfrs"}, "scales": [1, 0.7071]},
        "columns": {"kind": "cnn-columns", "network": mine, "max_columns": 65_536},
        "patches": {"kind": "cnn-patches", "network": mine, "max_patches": 9, "side": 64},
    }


def images() -> list[Decoded]:
    return [whole(picture(*size, seed)) for seed, size in enumerate(SIZES)]


def described(describe: dict[str, Any], **compute: Any) -> list[ImageFeatures]:
    found = open_describer(describe, **compute).describe(images())
    assert all(isinstance(features, ImageFeatures) for features in found)
    return found  # type: ignore[return-value]


def assert_near(found: list[ImageFeatures], expected: list[ImageFeatures], bound: float) -> None:
    for one, other in zip(found, expected, strict=True):
        for label, arrays in other.by_label.items():
            mine = one.of(label)
            for name in arrays.keys() - {"descriptors"}:  # places do not depend on the arithmetic
                assert np.array_equal(mine[name], arrays[name]), (label, name)
            assert mine["descriptors"].dtype == arrays["descriptors"].dtype
            moved = np.linalg.norm(unit(mine["descriptors"]) - unit(arrays["descriptors"]), axis=1)
            # Stored as float16, which itself moves a unit vector by 0.0005.
            assert moved.max() < (bound if label == "global" else bound + 0.002), (label, moved.max())


def unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-9)


# -- describing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_gpu_describes_is_what_a_cpu_does(network: str, precision: str) -> None:
    """Several images of one size in a batch, others beside them."""
    describe = labels(NETWORKS[network], precision)
    assert_near(described(describe, device=DEVICE), described(describe, device="cpu"), BOUNDS[precision])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_twice_the_same_is_the_same_to_the_last_bit(precision: str) -> None:
    describe = labels(NETWORKS["efficientnet-lite0"], precision)
    once, again = described(describe, device=DEVICE), described(describe, device=DEVICE)
    assert all(map(same, once, again))


def test_images_alone_and_together_differ_in_the_last_bits_at_most() -> None:
    describe = labels(NETWORKS["resnet18"], "float32")
    describer = open_describer(describe, device=DEVICE)
    alone = [describer.describe([image])[0] for image in images()]
    assert_near(described(describe, device=DEVICE), alone, 1e-4)  # type: ignore[arg-type]


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_compiled_network_computes_the_same() -> None:
    describe = labels(NETWORKS["resnet18"], "float32")
    assert_near(described(describe, device=DEVICE, compile=True), described(describe, device=DEVICE), 1e-4)


def test_large_values_fit_into_half_precision() -> None:
    """Black, white, and the strongest contrasts there are."""
    y, x = np.mgrid[0:96, 0:96]
    stripes = np.repeat((255 * ((x + y) % 2))[:, :, None], 3, axis=2).astype(np.uint8)
    extremes = [np.zeros_like(stripes), np.full_like(stripes, 255), stripes]
    for network in NETWORKS.values():
        describer = open_describer(labels(network, "float16"), device=DEVICE)
        for features in describer.describe([whole(pixels) for pixels in extremes]):
            assert isinstance(features, ImageFeatures)
            assert all(np.isfinite(array).all() for a in features.by_label.values() for array in a.values())


# -- looking again ------------------------------------------------------------------------------------------


@pytest.fixture
def rerankers() -> tuple[CvnetReranker, CvnetReranker]:
    """On the GPU, placed as the step places it, and on the CPU."""
    state = golden_state()
    placed = choose_devices("float32", DEVICE).placed(load_learner(state))  # type: ignore[arg-type]
    return CvnetReranker(placed, DEVICE), CvnetReranker(load_learner(state), "cpu")


def test_cvnets_golden_score(rerankers: tuple[CvnetReranker, CvnetReranker]) -> None:
    query, key = golden_pyramids()
    expected = torch.from_numpy(golden("fm_logits")).softmax(dim=0)[1].item()
    for reranker in rerankers:
        assert abs(reranker.scores(query, [key])[0] - expected) < 1e-5


def test_cvnets_scores_of_many_pairs(rerankers: tuple[CvnetReranker, CvnetReranker]) -> None:
    query = random_pyramid(8, 6)
    candidates = [random_pyramid(*size, seed) for seed, size in enumerate(((8, 6), (6, 8), (8, 6), (5, 9)))]
    on_gpu, on_cpu = (reranker.scores(query, candidates) for reranker in rerankers)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)
    for mine, theirs in zip(
        correspondence(query, candidates[3], DEVICE), correspondence(query, candidates[3]), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_cvnets_descriptor_and_pyramid(precision: str) -> None:
    network = {"name": "cvnet-r50", "weights": "seed:0", "digest": "0" * 32, "precision": precision}
    stated = {
        "global": {"kind": "cnn-global", "network": network, "head": True},
        "pyramid": {"kind": "cvnet-pyramid", "network": network, "storage": "float32"},
    }
    settings, state = FeatureSettings.model_validate({"describe": stated}).describe, golden_state()
    on_gpu, on_cpu = (
        ImageDescriber(settings, lambda _: state, Compute(device=device)).describe(images())
        for device in (DEVICE, "cpu")
    )
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        assert isinstance(mine, ImageFeatures) and isinstance(theirs, ImageFeatures)
        moved = mine.of("global")["descriptors"] - theirs.of("global")["descriptors"]
        assert np.linalg.norm(moved) < BOUNDS[precision]
        for level in ("scale0", "scale1", "scale2"):
            a, b = (features.of("pyramid")[level].reshape(256, -1).T for features in (mine, theirs))
            assert np.linalg.norm(unit(a) - unit(b), axis=1).max() < 2 * BOUNDS[precision]


# -- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_gallery_described_on_a_gpu_answers_as_one_described_on_the_cpu(
    tmp_path: Path, ray_cluster: Any
) -> None:
    """One worker has the GPU, and feeds it; the others need none."""
    town = images_of("town=synthetic:scenes=6,views=10,distractors=0,size=96,seed=3")
    found = {}
    for device in ("cpu", DEVICE):
        with open_engine("ray", 2) as engine:
            job = replace(job_on(str(tmp_path / device), engine), compute=Compute(device=device))  # type: ignore[arg-type]
            ingest(job, town, cnn_recipe())
            build_images(job, cnn_recipe(), town)
        assert verify(job).problems == ()
        found[device] = job.gallery
    ids, queries = stored_vectors(found["cpu"])
    mine = answers(found[DEVICE], stored_vectors(found[DEVICE])[1], 1)
    assert np.array_equal(mine.ids[:, 0], ids)
    assert np.array_equal(answers(found["cpu"], queries, 1).ids[:, 0], ids)


def test_it_is_said_what_each_part_uses() -> None:
    told = tell(choose_devices())
    assert "GPU" in told.split(";")[0]
    assert "search on the CPU" in told
