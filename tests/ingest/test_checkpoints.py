"""Checkpoints: wrappings come off, only what fits is loaded, equal tensors have one digest, no code runs."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ingest.checkpoints import (
    State,
    below,
    from_arrays,
    load_exactly,
    own_tensors,
    read_checkpoint,
    seeded_state,
    to_arrays,
)
from ingest.errors import BadInput
from ingest.models import model_bytes
from ingest.records import digest_of_bytes


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """The name that a gallery gives a network's weights."""
    return digest_of_bytes(model_bytes("weights", {}, to_arrays(dict(state))))


def network() -> nn.Module:
    module = nn.Module()
    module.stem = nn.Conv2d(3, 4, 3)
    module.bn = nn.BatchNorm2d(4)
    module.p = nn.Parameter(torch.full((1,), 3.0))
    return module


def state(seed: int = 0) -> State:
    return seeded_state(network(), seed)


def torch_bytes(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def assert_equal(found: State, expected: State) -> None:
    assert sorted(found) == sorted(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda s: save_safetensors(s), id="safetensors"),
        pytest.param(lambda s: torch_bytes(s), id="flat"),
        pytest.param(lambda s: torch_bytes(s, zipped=False), id="before zip"),
        pytest.param(lambda s: torch_bytes({"model_state": s, "epoch": 3}), id="model_state"),
        pytest.param(lambda s: torch_bytes({"state_dict": s, "optimizer": {"lr": 0.1}}), id="state_dict"),
        pytest.param(lambda s: torch_bytes({"model": s}), id="model"),
        pytest.param(
            lambda s: torch_bytes({f"module.{key}": value for key, value in s.items()}), id="module."
        ),
        pytest.param(
            lambda s: torch_bytes({key: nn.Parameter(value) for key, value in floats(s)}), id="parameters"
        ),
    ],
)
def test_what_is_wrapped_around_the_tensors_comes_off(data: Callable[[State], bytes]) -> None:
    expected = dict(floats(state()))
    assert_equal(read_checkpoint(data(expected), "x"), expected)


def floats(whole: State) -> list[tuple[str, torch.Tensor]]:
    return [(key, tensor) for key, tensor in whole.items() if tensor.is_floating_point()]


def test_the_alias_of_the_encoder_is_its_published_name() -> None:
    tensors = {"module.globalmodel.stem.conv.weight": torch.ones(2), "module.conv2ds.0.weight": torch.ones(3)}
    found = read_checkpoint(torch_bytes({"model_state": tensors}), "x")
    assert sorted(found) == ["conv2ds.0.weight", "encoder_q.stem.conv.weight"]


def test_one_tensor_under_two_names_is_refused() -> None:
    tensors = {"globalmodel.a": torch.ones(2), "encoder_q.a": torch.zeros(2)}
    with pytest.raises(BadInput, match=r"two names: globalmodel\.a"):
        read_checkpoint(torch_bytes(tensors), "x.pth")


def test_a_part_that_is_called_module_keeps_its_name() -> None:
    tensors = {"module.a": torch.ones(2), "b": torch.ones(2)}
    assert sorted(read_checkpoint(torch_bytes(tensors), "x")) == ["b", "module.a"]


def test_bfloat16_comes_as_float32_with_the_same_values() -> None:
    tensor = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    for data in (torch_bytes({"a": tensor}), save_safetensors({"a": tensor})):
        found = read_checkpoint(data, "x")["a"]
        assert found.dtype == torch.float32
        assert torch.equal(found.bfloat16(), tensor)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    data = torch_bytes({"model_state": state(), "extra": Code(f"touch {trace}")}, zipped)
    with pytest.raises(BadInput, match=r"bad\.pth holds more than tensors \(posix\.system\).*could run code"):
        read_checkpoint(data, "bad.pth")
    assert not trace.exists()
    torch.load(io.BytesIO(data), weights_only=False)  # it would have run
    assert trace.exists()


def test_a_whole_pickled_module_is_refused() -> None:
    with pytest.raises(BadInput, match=r"Linear.*as safetensors"):
        read_checkpoint(torch_bytes(nn.Linear(1, 1)), "x.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no checkpoint that can be read"),
        (b"hello, world", "no checkpoint that can be read"),
        (torch_bytes({"a": torch.ones(9)})[:-60], "no checkpoint that can be read"),
        (save_safetensors({"a": torch.ones(9)})[:-1], "damaged safetensors"),
        (torch_bytes({}), "no tensors by name"),
        (torch_bytes(torch.ones(3)), "no tensors by name"),
        (torch_bytes({"a": torch.ones(3), "epoch": 7}), "more than tensors: epoch"),
        (torch_bytes({"model_state": {"a": "b"}}), "more than tensors: a"),
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=rf"x\.pth.*{message}"):
        read_checkpoint(data, "x.pth")


def test_a_prefix_selects_and_is_replaced() -> None:
    tensors = {
        "encoder.0.weight": torch.ones(1),
        "pool.weight": torch.ones(2),
        "not.encoder.1": torch.ones(3),
    }
    assert_equal(below(tensors, "encoder.", "features."), {"features.0.weight": torch.ones(1)})


# -- loading ------------------------------------------------------------------------------------------------


def test_a_state_that_fits_is_loaded() -> None:
    module = network()
    load_exactly(module, {**state(7), "cv_learner.a": torch.ones(1)}, others=("cv_learner.",))
    assert_equal(dict(module.state_dict()), state(7))


def test_what_does_not_fit_is_told_all_at_once_and_nothing_is_loaded() -> None:
    module = network()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    wrong = {**state(7), "extra": torch.ones(1), "bn.bias": torch.ones(5)}
    del wrong["stem.weight"]
    with pytest.raises(BadInput) as error:
        load_exactly(module, wrong)
    for told in (
        "1 missing: stem.weight",
        "1 left over: extra",
        "1 of another shape: bn.bias (5,) for (4,)",
        "(8 tensors)",
    ):
        assert told in str(error.value)
    assert_equal(dict(module.state_dict()), before)


def test_others_excuse_what_is_left_over_but_nothing_else() -> None:
    with pytest.raises(BadInput, match="left over: cv_learn"):
        load_exactly(network(), {**state(), "cv_learn": torch.ones(1)}, others=("cv_learner.",))
    incomplete = {key: tensor for key, tensor in state().items() if not key.startswith("bn.")}
    with pytest.raises(BadInput, match="5 missing"):
        load_exactly(network(), incomplete, others=("bn.",))


def test_a_long_list_is_cut_short() -> None:
    surplus = {f"classifier.{n}": torch.ones(1) for n in range(1000)}
    with pytest.raises(BadInput, match=r"1000 left over: .* and 992 more") as error:
        load_exactly(network(), {**state(), **surplus})
    assert len(str(error.value)) < 500


def test_one_number_fits_with_and_without_an_axis() -> None:
    module = network()
    load_exactly(module, {**state(), "p": torch.tensor(2.5)})
    assert module.state_dict()["p"].tolist() == [2.5]


def test_half_precision_is_loaded_as_what_the_module_has() -> None:
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state().items()}
    assert {tensor.dtype for tensor in own_tensors(network(), halves).values()} == {
        torch.float32,
        torch.int64,
    }


def test_a_module_on_the_meta_device_takes_the_state_itself() -> None:
    with torch.device("meta"):
        module = network()
    given = state(3)
    load_exactly(module, given)
    assert_equal(dict(module.state_dict()), given)
    assert module.state_dict()["stem.weight"].data_ptr() == given["stem.weight"].data_ptr()


# -- arrays and digests -------------------------------------------------------------------------------------

dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
shapes = st.lists(st.integers(0, 4), max_size=3)
specified = st.dictionaries(st.text(max_size=3), st.tuples(shapes, dtypes), max_size=4)


@given(specified)
def test_arrays_give_the_state_back_with_its_digest(chosen: dict[str, tuple[list[int], torch.dtype]]) -> None:
    given_state = {key: (torch.rand(shape) * 4).to(dtype) for key, (shape, dtype) in chosen.items()}
    back = from_arrays({key: as_read_only(array) for key, array in to_arrays(given_state).items()})
    for key, tensor in given_state.items():
        assert torch.equal(back[key].to(tensor.dtype), tensor)
        assert back[key].shape == tensor.shape
    assert weights_digest(back) == weights_digest(given_state)


def as_read_only(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def test_equal_tensors_have_equal_digests_in_every_format_and_order() -> None:
    whole = state()
    files = [save_safetensors(whole), torch_bytes(whole), torch_bytes({"model_state": whole}, zipped=False)]
    backwards = dict(reversed(whole.items()))
    transposed = {**whole, "stem.weight": whole["stem.weight"].transpose(2, 3).contiguous().transpose(2, 3)}
    digests = {weights_digest(read_checkpoint(data, "x")) for data in files}
    assert digests == {weights_digest(whole)} == {weights_digest(backwards)} == {weights_digest(transposed)}
    assert len(weights_digest(whole)) == 32


def test_any_difference_gives_another_digest() -> None:
    whole = {"a": torch.zeros(4), "b": torch.zeros(2, 2)}
    others: list[State] = [
        {"a": torch.zeros(4), "b": torch.tensor([[0.0, 0], [0, 1e-30]])},
        {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.zeros(2, 2)},
        {"a": torch.zeros(4), "c": torch.zeros(2, 2)},
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4), "a": torch.zeros(2, 2)},
    ]
    digests = {weights_digest(each) for each in (whole, *others)}
    assert len(digests) == len(others) + 1


# -- random weights -----------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_always_and_another_seed_others() -> None:
    assert weights_digest(state(3)) == weights_digest(state(3))
    assert weights_digest(state(4)) != weights_digest(state(3))


def test_random_weights_do_not_depend_on_the_order_of_the_parts() -> None:
    module = nn.Module()
    module.p = nn.Parameter(torch.full((1,), 3.0))
    module.bn = nn.BatchNorm2d(4)
    module.stem = nn.Conv2d(3, 4, 3)
    assert weights_digest(seeded_state(module, 3)) == weights_digest(state(3))


def test_random_weights_keep_the_size_of_what_passes_through() -> None:
    layer = nn.Linear(400, 300)
    drawn = seeded_state(layer, 0)
    assert drawn["weight"].std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not drawn["bias"].any()
    assert state()["p"].tolist() == [3.0]
    assert state()["bn.weight"].tolist() == [1.0] * 4
