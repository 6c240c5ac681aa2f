"""Devices: what is chosen from what a machine has, and that modules and batches are treated so.

No GPU is needed: the machine is a fake, and so are the module and the batch that would go to a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from ingest.devices import Devices, ThisMachine, choose_devices, describe
from ingest.errors import BadInput, Unavailable
from ingest.network_maps import Network


@dataclass(frozen=True)
class Machine:
    """A machine as a probe tells of it."""

    gpus: int = 0
    bfloat16: bool = True

    def cuda_available(self) -> bool:
        return self.gpus > 0

    def device_count(self) -> int:
        return self.gpus

    def bf16(self) -> bool:
        return self.bfloat16


@dataclass
class Recorded:
    """Stands for a tensor or module that would be on a GPU: it notes what is done with it."""

    done: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def to(self, **how: Any) -> "Recorded":
        self.done.append(("to", how))
        return self

    def pin_memory(self) -> "Recorded":
        self.done.append(("pin", {}))
        return self

    def compile(self, **how: Any) -> None:
        self.done.append(("compile", how))


class Doubling(Network):
    """Two layers in the type of the input."""

    layers = ("once", "twice")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen: list[torch.dtype] = []

    def stages(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        self.seen.append(x.dtype)
        yield "once", x * self.weight
        yield "twice", x * self.weight * self.weight


GPU = choose_devices(probe=Machine(gpus=1))


@pytest.fixture
def tf32_flags() -> Iterator[None]:
    before = (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.deterministic,
    )
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, _ = before
    torch.backends.cudnn.deterministic = before[2]


# -- choosing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_cpu_computes_in_float32_without_pinning(precision: Any) -> None:
    assert choose_devices(precision, probe=Machine()) == Devices("cpu", "float32", False, False, False, 0)


@pytest.mark.parametrize(
    ("precision", "used"),
    [("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_a_gpu_is_used_with_the_precision_asked_for(precision: Any, used: Any) -> None:
    chosen = choose_devices(precision, probe=Machine(gpus=2))
    assert chosen == Devices("cuda", used, True, True, False, gpus=2)
    assert chosen.dtype == getattr(torch, used)


def test_bfloat16_is_refused_where_the_gpu_has_none() -> None:
    with pytest.raises(BadInput, match=r"bfloat16.*float16 or float32"):
        choose_devices("bfloat16", probe=Machine(gpus=1, bfloat16=False))


def test_the_cpu_can_be_asked_for_on_a_machine_with_gpus() -> None:
    assert choose_devices(device="cpu", probe=Machine(gpus=4)) == Devices()


def test_a_gpu_that_is_not_there_is_an_error_where_it_was_asked_for() -> None:
    with pytest.raises(Unavailable, match="no GPU"):
        choose_devices(device="cuda", probe=Machine())
    assert choose_devices(device="cuda", probe=Machine(gpus=1)).device == "cuda"


def test_this_machine_answers_what_its_libraries_say() -> None:
    machine = ThisMachine()
    assert machine.cuda_available() == torch.cuda.is_available()
    assert machine.device_count() == torch.cuda.device_count()
    assert choose_devices().device == ("cuda" if torch.cuda.is_available() else "cpu")


# -- placing ------------------------------------------------------------------------------------------------


def test_a_module_goes_to_the_gpu_in_half_precision_and_channels_last(tf32_flags: None) -> None:
    module = Recorded()
    assert GPU.placed(module) is module
    how = {"device": "cuda", "dtype": torch.float16, "memory_format": torch.channels_last}
    assert module.done == [("to", how)]


def test_a_gpu_does_not_round_float32_behind_ones_back(tf32_flags: None) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    replace(GPU, precision="float32").placed(Recorded())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.deterministic


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_compiling_is_on_request_and_in_place(tf32_flags: None) -> None:
    module = Recorded()
    choose_devices(compile=True, probe=Machine(gpus=1)).placed(module)
    assert module.done[1:] == [("compile", {"dynamic": True})]
    network = Doubling()
    placed = choose_devices(compile=True, probe=Machine()).placed(network)
    assert placed is network
    assert list(network.state_dict()) == ["weight"]


def test_a_batch_is_halved_then_pinned_then_sent_without_waiting() -> None:
    batch = Recorded()
    GPU.to_device(batch)
    assert batch.done == [
        ("to", {"dtype": torch.float16, "memory_format": torch.channels_last}),
        ("pin", {}),
        ("to", {"device": "cuda", "non_blocking": True}),
    ]


def test_on_a_cpu_a_batch_is_used_as_it_is() -> None:
    batch = torch.rand(2, 3, 4, 5)
    assert Devices().to_device(batch) is batch


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_results_come_back_in_float32_without_gradients(precision: Any) -> None:
    devices = Devices(precision=precision, channels_last=True)
    network = devices.placed(Doubling())
    batch = torch.rand(2, 3, 4, 5)
    maps = devices.run(network, batch, ["twice"])
    assert network.seen == [devices.dtype]
    assert list(maps) == ["twice"]
    assert maps["twice"].dtype == torch.float32
    assert not maps["twice"].requires_grad
    rounded = batch.to(devices.dtype).float()
    torch.testing.assert_close(maps["twice"], rounded * 4, rtol=0, atol=0)
    assert list(devices.run(network, batch)) == ["once", "twice"]


def test_layout_and_precision_do_not_change_what_a_network_computes() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 8, 3)
    batch = torch.rand(2, 3, 9, 7)
    expected = plain(batch).detach()
    devices = Devices(precision="bfloat16", channels_last=True)
    found = devices.placed(plain)(devices.to_device(batch))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


# -- telling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (Devices(), "networks on the CPU in float32; decoding, key points, fitting and search on the CPU"),
        (
            GPU,
            "networks on the GPU in float16, channels last, pinned transfers; "
            "decoding, key points, fitting and search on the CPU",
        ),
        (
            choose_devices("float32", compile=True, probe=Machine(gpus=8)),
            "networks on one of 8 GPUs a worker in float32, channels last, pinned transfers, compiled; "
            "decoding, key points, fitting and search on the CPU",
        ),
    ],
)
def test_one_line_says_what_each_part_uses(devices: Devices, text: str) -> None:
    assert describe(devices) == text
