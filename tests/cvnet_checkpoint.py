"""A CVNet checkpoint with golden weights: every tensor by its published name, some 140 MB, in two seconds."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from index.cvnet import CvLearner
from ingest.network_cvnet import cvnet_r50
from tests.golden.seeded import weight


def golden_state() -> dict[str, Tensor]:
    """Of CVNet-R50, and of what compares two images."""
    with torch.device("meta"):
        own = dict(cvnet_r50().state_dict())
        pairs = {f"cv_learner.{name}": tensor for name, tensor in CvLearner().state_dict().items()}
    return {name: torch.from_numpy(weight(name, tuple(like.shape))) for name, like in (own | pairs).items()}


def write_golden_checkpoint(folder: Path) -> Path:
    """A file as somebody would download it."""
    file = folder / "cvnet-r50.safetensors"
    save_file(golden_state(), file)
    return file
