"""Checkpoints: bytes to a *state*, the tensors of a network by their published names.

What frameworks wrap around a state is taken off: the file format (safetensors, or torch's own without
code), the dictionary around it, `module.` from data-parallel training, and the alias `globalmodel.`. A state
is loaded into a module only if it fits exactly.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ingest.errors import BadInput
from ingest.records import sha256

State = dict[str, Tensor]

_WRAPPERS = ("model_state", "state_dict", "model")
_ALIASES = {"globalmodel.": "encoder_q."}
_LISTED = 8  # keys of each kind that a message names


def read_checkpoint(data: bytes, name: str) -> State:
    """The state in a checkpoint file; which format it has is told by its bytes.

    Args:
        data: a safetensors file, or what `torch.save` wrote (.pth, .pt, .pyth, .tar). No code in it is run.
        name: how messages call it.

    Returns:
        Dense tensors on the CPU, keys without `module.` (if all have it) and aliases. bfloat16 comes as
        float32, which holds each of its values: numpy has no bfloat16.

    Raises:
        BadInput: damaged, holds code, or no state is found in it.
    """
    looks_like_safetensors = data[8:9] == b"{"
    state = _unwrapped(_safetensors(data, name) if looks_like_safetensors else _torch_file(data, name), name)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    renamed = {_without_alias(key): _plain(tensor) for key, tensor in state.items()}
    if len(renamed) != len(state):
        twice = sorted(key for key in state if _without_alias(key) != key and _without_alias(key) in state)
        raise BadInput(f"{name} has tensors under two names: {_some(twice)}; keep one of each")
    return renamed


def _safetensors(data: bytes, name: str) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise BadInput(f"{name} is a damaged safetensors file: {error}; get it again") from error


def _torch_file(data: bytes, name: str) -> object:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a damaged file
        if refused := re.search(r"(?:GLOBAL|global:?|class:?) ((?:\w+\.)+\w+)", str(error)):
            raise BadInput(
                f"{name} holds more than tensors ({refused[1]}), and loading it could run code: if you "
                "trust it, save its tensors alone as safetensors, and use that file"
            ) from error
        reason = re.split(r"\n|\. ", str(error))[0]
        raise BadInput(
            f"{name} is no checkpoint that can be read ({type(error).__name__}: {reason}); give a "
            "safetensors file, or one that torch.save wrote"
        ) from error


def _unwrapped(content: object, name: str) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(inner := content.get(wrapper), Mapping):
            content = inner
            break
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{name} holds no tensors by name; use a checkpoint with a network's state_dict")
    if odd := sorted(str(key) for key, value in content.items() if not isinstance(value, Tensor)):
        raise BadInput(
            f"{name} holds more than tensors: {_some(odd)}; the tensors are looked for under "
            f"{', '.join(_WRAPPERS)}, or alone"
        )
    return {str(key): tensor for key, tensor in content.items()}


def _without_alias(key: str) -> str:
    for alias, published in _ALIASES.items():
        if key.startswith(alias):
            return published + key.removeprefix(alias)
    return key


def _plain(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return dense.float() if dense.dtype == torch.bfloat16 else dense


def below(state: Mapping[str, Tensor], prefix: str, root: str = "") -> State:
    """The tensors whose names begin with `prefix`, which is replaced by `root`; no others."""
    return {root + key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}


def own_tensors(module: nn.Module, state: Mapping[str, Tensor], others: Sequence[str] = ()) -> State:
    """The tensors of a state that are a module's, once it is sure that they fit it exactly.

    Args:
        module: whose names and shapes count; it may be on torch's `meta` device.
        others: prefixes of tensors that are there for something else.

    Returns:
        All tensors of the module, in its order, its shapes and types; one number may come as () or (1,).

    Raises:
        BadInput: keys are missing, left over (but below `others`) or of another shape; all are told at once.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    left_over = [key for key in state if key not in expected and not key.startswith(tuple(others))]
    odd = [key for key in expected if key in state and _shape(state[key]) != _shape(expected[key])]
    if missing or left_over or odd:
        shapes = [f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}" for key in odd]
        problems = {"missing": missing, "left over": left_over, "of another shape": shapes}
        told = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise BadInput(
            f"the checkpoint does not fit {type(module).__name__} ({len(expected)} tensors): {told}; use a "
            "checkpoint of this network"
        )
    return {key: state[key].reshape(own.shape).to(own.dtype) for key, own in expected.items()}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], others: Sequence[str] = ()) -> None:
    """Puts a state into a module, every tensor in its place and none left over (`own_tensors`).

    The state is copied, but into a module on the `meta` device, which then shares the state's memory.

    Raises:
        BadInput: the state does not fit; the module is as it was.
    """
    own = own_tensors(module, state, others)
    module.load_state_dict(own, assign=any(tensor.is_meta for tensor in module.state_dict().values()))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tuple(tensor.shape) == (1,) else tuple(tensor.shape)


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def to_arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """A state as numpy arrays, which share its memory where they can."""
    return {key: _plain(tensor).cpu().contiguous().numpy() for key, tensor in state.items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> State:
    """The inverse of `to_arrays`; read-only arrays are copied, since torch has no such tensors."""
    return {
        key: torch.from_numpy(np.require(array, requirements=["C", "W"])) for key, array in arrays.items()
    }


def seeded_state(module: nn.Module, seed: int) -> State:
    """Random weights for a module, the same for a seed on every machine and for every order of its parts.

    Convolutions and linear layers are normal with variance 2 / fan-in (He et al. 2015), biases and running
    means 0, running variances 1; single factors (the gain of a norm, GeM's p) as the module has them.

    Args:
        module: not on the `meta` device, since what it sets itself is read.
    """
    return {key: _drawn(key, own, seed) for key, own in module.state_dict().items()}


def _drawn(key: str, own: Tensor, seed: int) -> Tensor:
    if own.ndim < 2:
        return torch.zeros_like(own) if key.split(".")[-1] == "bias" else own.detach().clone()
    generator = np.random.RandomState(int(sha256(f"{seed}:{key}".encode())[:8], 16))  # its stream is frozen
    noise = generator.standard_normal(tuple(own.shape))
    fan_in = int(np.prod(own.shape[1:]))
    return torch.from_numpy((noise * np.sqrt(2 / fan_in)).astype(np.float32)).to(own.dtype)
