"""The machine a run happens on: its device, its versions, the memory it took."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from utils.backbone import Network, channels_sha256

if TYPE_CHECKING:
    import torch

    from utils.system.processes import World

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "pillow")


def count_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str, world: World | None = None) -> torch.device:
    """The device called name; "auto" is CUDA where there is one, else the CPU.

    Several processes of a machine take a GPU each.

    Raises:
        ValueError: if name is no device of this machine, or it has fewer GPUs than processes.
    """
    import torch

    from utils.system.processes import ALONE

    world = world or ALONE
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if world.size == 1:
            return torch.device(name)
    count = torch.cuda.device_count()
    there = ["auto", "cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name not in there:
        raise ValueError(f"--device {name} is not on this machine; choose from {', '.join(there)}")
    if name == "cpu" or world.size == 1:
        return torch.device(name)
    if name != "cuda" or count < world.local_size:
        raise ValueError(
            f"--device {name} does not suit {world.local_size} processes on a machine with "
            f"{count} GPUs: each takes one of its own; start as many processes or give --device cpu"
        )
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def device_name(device: torch.device) -> str:
    """The device in words, such as "cpu (2 threads)"."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def describe_run(
    arguments: Mapping[str, Any],
    arch: str,
    network: Network,
    channels: Sequence[int],
    device: torch.device,
    world: World | None = None,
) -> dict[str, Any]:
    """What another run would need to give the same numbers, and what this one took.

    Args:
        arguments: of the command line, as given.
        arch: of the network.
        network: with its weights.
        channels: those of the first draw.
        device: that it ran on.
        world: the processes that shared the work.
    """
    size = world.size if world else 1
    packages = {name: version(name) for name in PACKAGES}
    start = ["python"] if size == 1 else ["torchrun", f"--nproc_per_node={size}"]
    return {
        "command": shlex.join([*start, "main.py", *sys.argv[1:]]),
        "arguments": dict(arguments),
        "arch": arch,
        "data": "the demo set" if arguments["demo"] else arguments["data_path"].resolve().name,
        "channels_sha256": channels_sha256(channels),
        "weights_sha256": network.weights_sha256,
        "versions": {"python": platform.python_version(), **packages},
        "device": device_name(device),
        "processes": size,
        "date": date.today().isoformat(),
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def peak_memory_bytes(device: torch.device) -> dict[str, int | None]:
    """The most memory that this process has held so far, on the host and on an accelerator.

    The host's is None where the system does not tell (Windows).
    """
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        host = None
    else:
        # bytes on macOS, KiB elsewhere
        host = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = {"host": host}
    if device.type == "cuda":
        import torch

        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
