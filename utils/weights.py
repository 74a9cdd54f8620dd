"""Weights of networks: reading state dicts from files, and checking that they fit.

A file of weights may come from anywhere: nothing in it is run, and what does not fit is refused.
"""

from __future__ import annotations

import hashlib
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

StateDict = Mapping[str, "Tensor"]
NAMES_SHOWN = 5  # of missing or misfitting tensors, in an error message


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by torch.save.

    Raises:
        FileNotFoundError: if path is no file.
        ValueError: if it is not a state dict.
    """
    import torch

    _check_file(path)
    try:
        # torch.save wrote tar archives before 2018; torch would unpack one into a folder first
        if tarfile.is_tarfile(path):
            raise tarfile.TarError
        # torch warns of kinds of tensors that select_tensors refuses
        with warnings.catch_warnings(action="ignore"):
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise is not documented
        raise ValueError(
            f"cannot read weights {path}: damaged, or not a plain state dict "
            f"({type(error).__name__}); --weights takes a torchvision state dict"
        ) from error
    if not isinstance(state_dict, dict) or not all(
        isinstance(value, torch.Tensor) for value in state_dict.values()
    ):
        raise ValueError(
            f"weights {path} hold no state dict of tensors; save the model's state_dict() alone"
        )
    return state_dict


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file of weights.

    Raises:
        FileNotFoundError: if path is no file.
    """
    _check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --weights takes a torchvision state dict")


def select_tensors(
    state_dict: StateDict, network: nn.Module, arch: str, source: str
) -> dict[str, Tensor]:
    """The tensors that a network needs, in float32; others in the state dict are left out.

    Args:
        state_dict: by the network's names.
        network: cut off after layer3, so that weights of a whole network fit as well.
        arch: the network's name, in errors.
        source: where the weights come from, in errors.

    Raises:
        ValueError: if a tensor is missing, has another shape, is sparse, quantised, complex or on
            another device, or holds a value that is not finite.
    """
    # batch norm's count of training batches is not used, and older files lack it
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    if missing := [name for name in wanted if name not in state_dict]:
        raise ValueError(f"{source} do not fit {arch}: missing {_shorten(missing)}")
    misfits = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if state_dict[name].shape != tensor.shape
    ]
    if misfits:
        raise ValueError(f"{source} do not fit {arch}: {_shorten(misfits)}")
    if odd := [name for name in wanted if not _is_plain(state_dict[name])]:
        raise ValueError(
            f"{source} do not fit {arch}: {_shorten(odd)} are no plain tensors of numbers; save "
            "the state_dict() of a float32 network on the CPU"
        )
    tensors = {name: state_dict[name].detach().float() for name in wanted}
    # after the conversion, as a float64 number can be too large for float32
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{source} hold values that are not finite in {_shorten(broken)}")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds plain real numbers on the CPU."""
    import torch

    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.device.type == "cpu"


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def tensors_sha256(tensors: StateDict) -> str:
    """SHA-256 of the names and values of float32 tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
