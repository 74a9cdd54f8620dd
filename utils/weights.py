"""Weights of networks: reading state dicts from files, and checking that they fit.

A file of weights may come from anywhere: nothing in it is run, and what does not fit is refused.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.system.errors import UserError
from utils.system.processes import Processes

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of checkpoints
# of DataParallel, torch.compile, others
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
SHOWN = 5  # faults, in an error message


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by torch.save or safetensors, by the network's own names.

    What a checkpoint has beside the state dict, and what a wrapper put before the names, is taken
    away; a line is printed then, and if the numbers are not float32.
    """
    import torch

    _check_file(path)
    content, steps = _read(path), []
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            steps.append(f"its {key} is taken")
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise UserError(
            f"weights {path} hold no state dict of tensors; save the model's state_dict() alone"
        )
    for prefix in PREFIXES:
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
            steps.append(f"{prefix} is taken off the names")
    dtypes = {str(value.dtype) for value in content.values() if value.is_floating_point()}
    if others := sorted(dtypes - {"torch.float32"}):
        steps.append(f"{', '.join(others)} becomes float32")
    if steps and Processes.from_environment().leads:
        print(f"weights {path}: {', '.join(steps)}", flush=True)
    return content


def _read(path: Path) -> Any:
    """The content of a file of weights; nothing in it is run."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torch warns of kinds of tensors that select_tensors refuses
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise is not documented
        raise UserError(
            f"cannot read weights {path}: damaged, or not a plain state dict "
            f"({type(error).__name__}); --weights takes a torchvision state dict"
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file of weights."""
    _check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no file {path}; --weights takes a torchvision state dict")


def select_tensors(
    state_dict: Mapping[str, Tensor], network: nn.Module, arch: str, source: str
) -> dict[str, Tensor]:
    """The tensors that a network needs, in float32; others in the state dict are left out.

    So weights of a whole network fit one that is cut off. Errors say arch and source.
    """
    # batch norm's count of training batches is not used, and older files lack it
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    found = {name: _find_fault(state_dict.get(name), wanted[name].shape) for name in wanted}
    if faults := [f"{name} {fault}" for name, fault in found.items() if fault]:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{source} do not fit {arch}: {', '.join(faults[:SHOWN])}{more}")
    return {name: state_dict[name].detach().float() for name in wanted}


def _find_fault(tensor: Tensor | None, shape: Sequence[int]) -> str | None:
    """Why a tensor cannot be used for one of this shape; None if it can."""
    import torch

    if tensor is None:
        return "is missing"
    if tensor.shape != shape:
        return f"has shape {tuple(tensor.shape)} instead of {tuple(shape)}"
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    if not plain or tensor.is_complex() or tensor.device.type != "cpu":
        return "is no plain tensor of real numbers on the CPU"
    # a float64 number can be too large for float32
    return None if tensor.float().isfinite().all() else "is not finite in float32"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of float32 tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
