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
NAMES_SHOWN = 5  # of missing or misfitting tensors, in an error message


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by torch.save or safetensors, by the network's own names.

    What a checkpoint has beside the state dict, and what a wrapper put before the names, is taken
    away; a line is printed then, and if the numbers are not float32.
    """
    import torch

    _check_file(path)
    content = _read(path)
    steps = []
    if isinstance(content, dict):
        for key in WRAPPERS:
            if isinstance(content.get(key), dict):
                content, steps = content[key], [f"its {key} is taken"]
                break
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
    dtypes = {value.dtype for value in content.values() if value.is_floating_point()}
    if others := dtypes - {torch.float32}:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in others)
        steps.append(f"{', '.join(names)} becomes float32")
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
    if missing := [name for name in wanted if name not in state_dict]:
        raise UserError(f"{source} do not fit {arch}: missing {_shorten(missing)}")
    misfits = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if state_dict[name].shape != tensor.shape
    ]
    if misfits:
        raise UserError(f"{source} do not fit {arch}: {_shorten(misfits)}")
    if odd := [name for name in wanted if not _is_plain(state_dict[name])]:
        raise UserError(
            f"{source} do not fit {arch}: {_shorten(odd)} are no plain tensors of numbers; save "
            "the state_dict() of a float32 network on the CPU"
        )
    tensors = {name: state_dict[name].detach().float() for name in wanted}
    # after the conversion, as a float64 number can be too large for float32
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{source} hold values that are not finite in {_shorten(broken)}")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds plain real numbers on the CPU."""
    import torch

    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.device.type == "cpu"


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of float32 tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
