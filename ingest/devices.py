"""Every choice of device and precision, in one place: from what a machine has to what each part uses.

Where there is a GPU, networks run on it in half precision, channels last, fed from pinned memory; on a CPU in
float32. Half precision is explicit: modules and inputs are converted, results come back as float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ingest.errors import BadInput, Unavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

GpuPrecision = Literal["float32", "float16", "bfloat16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]

Module = TypeVar("Module", bound="nn.Module")


class Probe(Protocol):
    """What is asked of a machine, so that tests can answer in its place."""

    def cuda_available(self) -> bool:
        """Whether torch can use a GPU."""

    def device_count(self) -> int:
        """How many GPUs torch sees."""

    def bf16(self) -> bool:
        """Whether they compute in bfloat16."""


class ThisMachine:
    """The answers of torch."""

    def cuda_available(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def device_count(self) -> int:
        import torch

        return torch.cuda.device_count()

    def bf16(self) -> bool:
        import torch

        return bool(torch.cuda.is_bf16_supported())


@dataclass(frozen=True)
class Devices:
    """What is used for what. It says how things are computed; only `precision` changes results.

    device: torch's name of where networks run.
    precision: of their weights and maps.
    channels_last: memory layout of maps; convolutions in half precision are faster with it.
    pinned: inputs go to the GPU from pinned memory, while it computes.
    compile: networks go through torch.compile; the first batch then takes about a minute.
    gpus: how many GPUs torch sees; one worker uses one.
    """

    device: str = "cpu"
    precision: GpuPrecision = "float32"
    channels_last: bool = False
    pinned: bool = False
    compile: bool = False
    gpus: int = 0

    @property
    def dtype(self) -> "torch.dtype":
        """torch's name of the precision."""
        import torch

        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def placed(self, module: Module) -> Module:
        """The module itself, moved to the device, its precision and its layout; compiled where asked."""
        import torch

        if self.device != "cpu":
            _keep_results_exact()
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        module.to(device=self.device, dtype=self.dtype, memory_format=layout)  # type: ignore[call-overload]
        if self.compile:
            module.compile(dynamic=True)  # in place: names of its tensors stay
        return module

    def to_device(self, batch: "Tensor") -> "Tensor":
        """A batch (b, 3, h, w) float32 of the CPU as a placed module takes it."""
        import torch

        layout = torch.channels_last if self.channels_last else torch.preserve_format
        batch = batch.to(dtype=self.dtype, memory_format=layout)  # first: half of it has to travel
        if self.pinned:
            batch = batch.pin_memory()
        return batch.to(device=self.device, non_blocking=self.pinned)

    def run(self, module: "nn.Module", batch: "Tensor", *arguments: object) -> "dict[str, Tensor]":
        """The maps of a placed network, in float32, on the device, without gradients.

        Args:
            batch: (b, 3, h, w) float32 of the CPU.
            arguments: what the module takes besides, such as the layers.
        """
        import torch

        with torch.inference_mode():
            maps: Mapping[str, Tensor] = module(self.to_device(batch), *arguments)
            return {name: made.float() for name, made in maps.items()}


def choose_devices(
    precision: GpuPrecision = "float16",
    device: DeviceChoice = "auto",
    compile: bool = False,
    probe: Probe | None = None,
) -> Devices:
    """What to use on this machine.

    Args:
        precision: of networks on a GPU. A CPU computes in float32, whatever is asked.
        device: `auto` is a GPU where there is one.
        compile: whether networks go through torch.compile.
        probe: what tells what there is; this machine's libraries if None.

    Raises:
        Unavailable: `cuda` is asked for, and torch sees no GPU.
        BadInput: bfloat16 is asked for, and the GPU does not compute in it.
    """
    probe = ThisMachine() if probe is None else probe
    available = probe.cuda_available() and probe.device_count() > 0
    if device == "cuda" and not available:
        raise Unavailable(
            "device cuda was asked for, and torch sees no GPU: see reseen doctor, or ask for device cpu"
        )
    if device == "cpu" or not available:
        return Devices(compile=compile)
    if precision == "bfloat16" and not probe.bf16():
        raise BadInput("this GPU does not compute in bfloat16: ask for precision float16 or float32")
    return Devices(
        device="cuda",
        precision=precision,
        channels_last=True,
        pinned=True,
        compile=compile,
        gpus=probe.device_count(),
    )


def _keep_results_exact() -> None:
    """Keeps a GPU from rounding float32 to TF32, which it does by default, and from choosing by race."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def describe(devices: Devices) -> str:
    """One line on what each part uses, for `reseen doctor`."""
    if devices.device == "cpu":
        networks = f"networks on the CPU in {devices.precision}"
    else:
        of = f"one of {devices.gpus} GPUs a worker" if devices.gpus > 1 else "the GPU"
        traits = ["channels last"] * devices.channels_last + ["pinned transfers"] * devices.pinned
        networks = ", ".join([f"networks on {of} in {devices.precision}", *traits])
    compiled = ", compiled" if devices.compile else ""
    return f"{networks}{compiled}; decoding, key points, fitting and search on the CPU"
