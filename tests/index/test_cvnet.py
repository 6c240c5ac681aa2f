"""CVNet-Rerank: parity with the reference implementation, through stored pyramids too; batches, memory."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from index import cvnet
from index.correlation import Columns, columns, correlation, together
from index.cvnet import (
    CvLearner,
    CvnetReranker,
    Pyramid,
    correspondence,
    load_learner,
    pair_bytes,
)
from index.cvnet_settings import CvnetSettings
from ingest.checkpoints import load_exactly
from ingest.errors import BadInput, OverBudget
from ingest.network_cvnet import CVNet, cvnet_r50, cvnet_r101
from ingest.pyramid_storage import PyramidStorage, from_stored, to_stored
from tests.golden.seeded import tensor, weight
from tests.index.cvnet_pairs import (
    golden,
    golden_pyramids,
    plain_correlation,
    random_pyramid,
    relative_error,
    seeded_learner,
    tensors,
)

MAKE = {"r50": cvnet_r50, "r101": cvnet_r101}
CPU = torch.device("cpu")

# (channels out, channels in, side) of each convolution, and the tensors' published names.
CONVOLUTIONS = {
    "block1.0": (16, 9, 5),
    "block2.0": (16, 16, 3),
    "block2.3": (32, 16, 3),
    "block3.0": (32, 32, 3),
    "block3.3": (32, 32, 3),
    "block3.6": (64, 32, 3),
    "block4.0": (64, 64, 3),
    "block4.3": (64, 64, 3),
    "block4.6": (128, 64, 3),
}


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, given, side) in CONVOLUTIONS.items():
        for conv in ("conv1", "conv2"):
            shapes |= {f"{name}.{conv}.weight": (out, given, side, side), f"{name}.{conv}.bias": (out,)}
        norm = f"{name[:-1]}{int(name[-1]) + 1}"
        shapes |= {f"{norm}.weight": (out,), f"{norm}.bias": (out,)}
    for layer, out in (("mlp.0", 128), ("mlp.2", 2)):
        shapes |= {f"{layer}.weight": (out, 128), f"{layer}.bias": (out,)}
    return shapes


def published_state() -> dict[str, torch.Tensor]:
    return {f"cv_learner.{key}": torch.zeros(shape) for key, shape in published_shapes().items()}


def reranker() -> CvnetReranker:
    return CvnetReranker(seeded_learner())


@cache
def image_pyramids(which: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of the images `img` (96 x 128) and `img2` (128 x 80), by the seeded network."""
    with torch.device("meta"):
        network: CVNet = MAKE[which]()
    shapes = {name: tuple(own.shape) for name, own in network.state_dict().items()}
    load_exactly(network, {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    network.eval()
    found = []
    with torch.inference_mode():
        for name, shape in (("img", (1, 3, 96, 128)), ("img2", (1, 3, 128, 80))):
            features = network(torch.from_numpy(tensor(name, shape)), ["s3_pre"])["s3_pre"]
            found.append([level[0].numpy() for level in network.project_pyramid(features)])
    return found[0], found[1]


def stored_and_read(pyramid: Pyramid, storage: PyramidStorage) -> Pyramid:
    return from_stored(to_stored(pyramid, storage))


# The learner


def test_it_has_the_published_tensors() -> None:
    with torch.device("meta"):
        learner = CvLearner()
    assert {name: tuple(own.shape) for name, own in learner.state_dict().items()} == published_shapes()


def test_each_block_equals_the_reference_implementation() -> None:
    learner, x = seeded_learner(), torch.from_numpy(golden("fm_corr"))[None]
    for name in ("block1", "block2", "block3", "block4"):
        x = getattr(learner, name)(x)
        assert relative_error(x[0], golden(f"fm_{name}")) < 1e-5, name


def test_the_logits_equal_the_reference_implementation() -> None:
    found = seeded_learner()(torch.from_numpy(golden("fm_corr"))[None])
    np.testing.assert_allclose(found[0], golden("fm_logits"), atol=1e-5)


def test_compared_at_the_pivots_alone_the_logits_equal_the_reference_implementation() -> None:
    learner = seeded_learner()
    query, key = (columns(tensors(pyramid), learner.step) for pyramid in golden_pyramids())
    np.testing.assert_allclose(learner.compare(query, key)[0], golden("fm_logits"), atol=1e-5)


def test_gradients_are_the_same_either_way() -> None:
    learner = load_learner({f"cv_learner.{key}": own for key, own in seeded_learner().state_dict().items()})
    gradients = []
    for at_pivots in (False, True):
        query, key = ([level.requires_grad_() for level in tensors(pyramid)] for pyramid in golden_pyramids())
        if at_pivots:
            logits = learner.compare(columns(query, 2), columns(key, 2))
        else:
            logits = learner(correlation(columns(query, 1), columns(key, 1)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
        gradients.append(torch.autograd.grad(loss, [*query, *key, *learner.parameters()]))
    for plain, fast in zip(*gradients, strict=True):
        assert plain.any()
        assert relative_error(fast, plain) < 1e-4


@pytest.mark.parametrize("spoil", ["missing", "left over", "another shape", "nothing"])
def test_a_checkpoint_that_does_not_fit_is_refused(spoil: str) -> None:
    state = published_state() | {"encoder_q.stem.conv.weight": torch.zeros(64, 3, 7, 7)}
    load_learner(state)
    if spoil == "missing":
        del state["cv_learner.block3.6.conv2.bias"]
    elif spoil == "left over":
        state["cv_learner.block5.0.conv1.weight"] = torch.zeros(1)
    elif spoil == "another shape":
        state["cv_learner.mlp.2.bias"] = torch.zeros(3)
    else:
        state = {key: own for key, own in state.items() if key.startswith("encoder_q")}
    with pytest.raises(BadInput, match="does not fit CvLearner"):
        load_learner(state)


def test_it_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        learner = CvLearner()
    query, key = (
        columns([level.to("meta") for level in tensors(pyramid)], learner.step)
        for pyramid in golden_pyramids()
    )
    assert learner.compare(together([query, query]), together([key, key])).shape == (2, 2)
    found = learner(torch.empty(3, 9, 10, 7, 6, 9, device="meta"))
    assert (found.device.type, found.shape) == ("meta", (3, 2))


@pytest.mark.parametrize(
    ("which", "count", "parameters"), [("r50", 382, 35_190_499), ("r101", 688, 54_182_627)]
)
def test_with_the_half_that_sees_one_image_it_is_the_whole_checkpoint(
    which: str, count: int, parameters: int
) -> None:
    with torch.device("meta"):
        halves = [MAKE[which](), CvLearner()]
    assert sum(len(half.state_dict()) for half in halves) == count
    assert sum(own.numel() for half in halves for own in half.parameters()) == parameters


# Scores


@pytest.mark.parametrize("which", ["r50", "r101"])
def test_correlation_and_scores_of_images_equal_the_reference_implementation(which: str) -> None:
    query, key = image_pyramids(which)
    found = correlation(columns(tensors(query), 1), columns(tensors(key), 1))
    assert relative_error(found[0], golden(f"{which}_corr")) < 1e-4
    np.testing.assert_allclose(seeded_learner()(found)[0], golden(f"{which}_logits"), atol=2e-5)
    both = reranker().score_pairs([(query, key), (key, query)])
    expected = [golden(f"{which}_score_qk"), golden(f"{which}_score_kq")]
    np.testing.assert_allclose(both, expected, atol=1e-5)


@pytest.mark.parametrize(("storage", "error"), [("float32", 1e-5), ("float16", 5e-5), ("int8", 1e-3)])
@pytest.mark.parametrize("which", ["r50", "r101"])
def test_scores_through_stored_pyramids(which: str, storage: PyramidStorage, error: float) -> None:
    query, key = image_pyramids(which)
    stored = stored_and_read(query, storage), stored_and_read(key, storage)
    # Both sides are stored, and the candidate alone, beside a query that was just computed.
    found = reranker().score_pairs([stored, stored[::-1], (query, stored[1]), (key, stored[0])])
    expected = [golden(f"{which}_score_qk"), golden(f"{which}_score_kq")] * 2
    np.testing.assert_allclose(found, expected, atol=error)


@pytest.mark.parametrize(("storage", "error"), [("float32", 0), ("float16", 5e-5), ("int8", 1e-3)])
def test_scores_of_random_pyramids_through_storage(storage: PyramidStorage, error: float) -> None:
    sizes = [(24, 32), (10, 7), (6, 9), (2, 2), (3, 16)]
    images = [random_pyramid(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    pairs = [(query, key) for query in images for key in images]
    stored = [tuple(stored_and_read(image, storage) for image in pair) for pair in pairs]
    differences = reranker().score_pairs(stored) - reranker().score_pairs(pairs)
    assert np.abs(differences).max() <= error


def test_the_score_of_an_image_pair_is_not_symmetric() -> None:
    query, key = golden_pyramids()
    there, back = reranker().score_pairs([(query, key), (key, query)])
    assert abs(there - back) > 1e-3


def test_any_batch_scores_as_each_pair_alone() -> None:
    queries = [random_pyramid(8, 6, 0), random_pyramid(5, 9, 1)]
    candidates = [
        random_pyramid(*size, 10 + n) for n, size in enumerate([(6, 7), (9, 4), (6, 7), (8, 6)] * 3)
    ]
    pairs = [(query, candidate) for candidate in candidates for query in queries]
    found = reranker().score_pairs(pairs)
    alone = np.concatenate([reranker().score_pairs([pair]) for pair in pairs])
    assert np.ptp(alone) > 1e-3  # or the order would not be seen
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(reranker().scores(queries[1], candidates), found[1::2], atol=1e-5)
    plain = seeded_learner()(plain_correlation(*pairs[3])[None].float()).softmax(dim=1)[0, 1]
    assert found[3] == pytest.approx(float(plain), abs=1e-5)


def test_an_image_of_many_pairs_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    monkeypatch.setattr(cvnet, "columns", lambda image, step: prepared.append(1) or columns(image, step))
    monkeypatch.setattr(cvnet, "_CPU_BATCH_BYTES", 0)  # so that the query is in many batches
    query, candidates = random_pyramid(5, 6), [random_pyramid(6, 6, seed) for seed in range(7)]
    reranker().scores(query, candidates)
    assert len(prepared) == 1 + 7


def test_no_candidates_have_no_scores() -> None:
    found = reranker().scores(random_pyramid(5, 6), [])
    assert (found.shape, found.dtype) == ((0,), np.float32)


def test_read_only_arrays_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    pyramid = random_pyramid(5, 6)
    for level in pyramid:
        level.flags.writeable = False
    reranker().scores(pyramid, [pyramid])
    assert not recwarn.list


# What is refused


def test_a_map_too_small_for_a_pyramid_is_refused() -> None:
    small = [np.zeros((256, round(scale), round(5 * scale)), np.float32) for scale in (0.5, 0.7071, 1)]
    good = random_pyramid(5, 6)
    with pytest.raises(BadInput, match=r"candidate 1 is too small.*17 pixels or more"):
        reranker().scores(good, [good, small])
    with pytest.raises(BadInput, match="the query is too small"):
        correspondence(small, good)


@pytest.mark.parametrize("spoil", ["levels", "channels", "dimensions"])
def test_what_is_no_pyramid_is_refused(spoil: str) -> None:
    good = random_pyramid(5, 6)
    bad = {
        "levels": good[:2],
        "channels": [level[:255] for level in good],
        "dimensions": [level[None] for level in good],
    }[spoil]
    with pytest.raises(BadInput, match="the query of pair 0 is no pyramid"):
        reranker().scores(bad, [good])


def test_values_that_are_no_numbers_are_refused() -> None:
    good, bad = random_pyramid(5, 6), random_pyramid(5, 6)
    bad[1][7, 2, 2] = np.nan
    with pytest.raises(BadInput, match=r"pairs \[1\] have no score"):
        reranker().scores(good, [good, bad, good])


def test_the_smallest_pyramid_has_a_score() -> None:
    assert 0 < reranker().scores(random_pyramid(2, 2), [random_pyramid(2, 3)])[0] < 1


def test_unknown_settings_are_refused() -> None:
    assert CvnetSettings() == CvnetSettings(kind="cvnet", reads="pyramid", depth=100, weight=0.5)
    for wrong in ({"depths": 3}, {"depth": 0}, {"weight": -1}, {"kind": "geometry"}):
        with pytest.raises(ValidationError):
            CvnetSettings.model_validate(wrong)


# Memory


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it have taken at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._alive[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return result


def sides(pyramid: Pyramid) -> tuple[tuple[int, int], ...]:
    return tuple((level.shape[1], level.shape[2]) for level in pyramid)


@pytest.mark.parametrize(("size", "pairs"), [((32, 24), 4), ((9, 50), 3), ((48, 30), 1)])
def test_what_tensors_take_at_a_time_stays_below_the_estimate(
    size: tuple[int, int], pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvnet, "_CPU_BATCH_BYTES", cvnet.MEMORY_BYTES)  # so that all are in one batch
    query, candidates = random_pyramid(*size), [random_pyramid(*size, seed) for seed in range(pairs)]
    fixed, each = pair_bytes(sides(query), sides(query), device=CPU)
    with Peak() as peak:
        reranker().scores(query, candidates, memory_bytes=fixed + pairs * each)
    assert 0.4 * (fixed + pairs * each) < peak.bytes <= fixed + pairs * each


def test_batches_are_cut_to_the_memory() -> None:
    sizes, scores = batches_of(room_for=3)
    assert sizes == [3, 3, 2]
    at_once, expected = batches_of(room_for=100)
    assert at_once == [8]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def batches_of(room_for: int) -> tuple[list[int], np.ndarray]:
    """How many pairs of 8 are compared at a time, and their scores."""
    query, candidates = random_pyramid(10, 7), [random_pyramid(6, 9, seed) for seed in range(8)]
    fixed, each = pair_bytes(sides(query), sides(candidates[0]), device=CPU)
    seen: list[int] = []

    class Watched(CvLearner):
        def compare(self, query: Columns, key: Columns) -> torch.Tensor:
            seen.append(len(query.rows))
            return super().compare(query, key)

    watched = Watched()
    watched.load_state_dict(seeded_learner().state_dict())
    found = CvnetReranker(watched).scores(query, candidates, memory_bytes=fixed + room_for * each)
    return seen, found


def test_a_pair_beyond_the_memory_is_refused() -> None:
    query = random_pyramid(10, 7)
    fixed, each = pair_bytes(sides(query), sides(query), device=CPU)
    reranker().scores(query, [query], memory_bytes=fixed + each)
    with pytest.raises(OverBudget, match=r"10 x 7 and 10 x 7 cells takes .* MB, more than the limit"):
        reranker().scores(query, [query], memory_bytes=fixed + each - 1)


# Correspondence


def test_correspondence_is_the_best_mean_correlation_of_each_cell() -> None:
    query, candidate = random_pyramid(7, 6, 0), random_pyramid(5, 8, 1)
    means = plain_correlation(query, candidate).mean(dim=0)
    over_query, over_candidate = correspondence(query, candidate)
    assert over_query.dtype == over_candidate.dtype == np.float32
    np.testing.assert_allclose(over_query, means.amax(dim=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(over_candidate, means.amax(dim=(0, 1)), atol=1e-6)


def test_an_image_corresponds_to_itself_everywhere() -> None:
    image, other = random_pyramid(8, 6), random_pyramid(8, 6, 1)
    over_query, over_candidate = correspondence(image, image)
    np.testing.assert_allclose(over_query, over_candidate, atol=1e-6)
    assert over_query.min() > correspondence(image, other)[0].max()


def test_heat_never_leaves_0_to_1() -> None:
    flat = np.full((256, 1, 1), 1 / 3, np.float32)
    image = [flat.repeat(level.shape[1], 1).repeat(level.shape[2], 2) for level in random_pyramid(9, 7)]
    for heat in correspondence(image, image):  # rounding alone would lead beyond 1
        assert 1 - 1e-5 < heat.min() <= heat.max() <= 1
    for heat in correspondence(image, [-level for level in image]):
        assert not heat.any()


def test_exchanging_the_images_exchanges_the_heat_maps() -> None:
    query, candidate = random_pyramid(7, 6, 0), random_pyramid(5, 8, 1)
    there, back = correspondence(query, candidate), correspondence(candidate, query)
    np.testing.assert_allclose(there[0], back[1], atol=1e-6)
    np.testing.assert_allclose(there[1], back[0], atol=1e-6)
