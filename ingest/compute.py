"""What a run may choose about how features are computed, without changing them: devices and processes."""

from dataclasses import dataclass

from ingest.devices import DeviceChoice, Devices


@dataclass(frozen=True)
class Compute:
    """Wishes of a run; none of them is part of a digest.

    device: `auto` (a GPU where there is one), `cpu` or `cuda`.
    decoders: decoding processes a worker, 60 MB each; None for one, or, where a GPU has to be fed, for one a
        processor of the worker.
    window: images that are decoded before a network sees them, so that equal sizes meet in a batch; each
        takes longest_side^2 x 3 bytes at most (1.2 MB at 640).
    threads: of a network on a CPU; None for all there are. Another number gives other last bits (1e-5 of a
        map), so what is stored is computed by one a worker, and workers are as many as processors.
    compile: whether networks go through torch.compile; a minute at the start, and other last bits.
    """

    device: DeviceChoice = "auto"
    decoders: int | None = None
    window: int = 32
    threads: int | None = 1
    compile: bool = False

    def decoding_processes(self, devices: Devices | None) -> int:
        """How many decoding processes a worker has whose networks use some devices (None: no network)."""
        if self.decoders is not None:
            return self.decoders
        if devices is None or devices.device == "cpu":
            return 1
        import torch

        return max(1, torch.get_num_threads() - 1)
