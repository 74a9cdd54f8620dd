"""The machine: its cores and GPUs, its versions, and the memory that a run took."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from utils.system.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "pillow")


def count_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N"; "auto" is CUDA where there is a GPU, else the CPU.

    With "auto" and "cuda" the processes of a machine, numbered by local_rank, take its GPUs in
    turn: several processes one GPU if there are more processes.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    there = ["auto", "cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name not in there:
        raise UserError(f"--device {name} is not on this machine; choose from {', '.join(there)}")
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank % count}"
    device = torch.device(name)
    if device.index:
        torch.cuda.set_device(device)  # pinned memory would take up the first GPU otherwise
    return device


def device_name(device: torch.device) -> str:
    """The device in words, such as "cpu (2 threads)"."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def describe_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def peak_memory_bytes(device: torch.device) -> dict[str, int | None]:
    """The most memory that this process has held so far, on the host and on a GPU.

    The host's is None where the system does not say (Windows).
    """
    peak: dict[str, int | None] = {"host": None}
    with suppress(ImportError):
        from resource import RUSAGE_SELF, getrusage

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        peak["host"] = unit * getrusage(RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        import torch

        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
