"""How much memory is free, and what does not fit into it."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# Allowances, set by measurement so that a class does not exceed its estimate.
LIBRARY_BYTES = 150_000_000  # what the libraries take after the estimate is made
# per pixel that the network sees: of those it takes at once, of a batch (read, stacked and its
# maps), and of a batch that is aligned
NETWORK_BYTES, BATCH_BYTES, ALIGNED_BYTES = 250, 20, 40
PIXELS_AT_ONCE = 2**22  # that the network takes at once on the CPU, or a single image
DRAWN_AT_ONCE = 2**24  # pixels of the images of which figures are drawn at once, or a single one
ORIGINAL_BYTES = 30  # per pixel of an original image whose map, regions and files are made
GROUPS = Path("/proc/self/cgroup")  # the control groups of this process
# version 1 and 2 of control groups: where they are, and what a group may use, uses and counts
HIERARCHIES = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
)


def network_bytes(
    batch_size: int, seen: int, feature_bytes: int, aligned: bool, on_gpu: bool
) -> int:
    """Bytes that a batch takes where the network is: activations and features."""
    at_once = batch_size * seen
    if not on_gpu:
        at_once = min(at_once, max(seen, PIXELS_AT_ONCE))
    network = NETWORK_BYTES * at_once + 2 * batch_size * feature_bytes
    return max(network, ALIGNED_BYTES * batch_size * seen) if aligned else network


def free_bytes() -> int:
    """Memory that is free for this process, as the system and the limits on its groups allow."""
    free = psutil.virtual_memory().available
    for folder, limit, used in _list_groups():
        try:
            most, taken, lines = (
                (folder / name).read_text() for name in (limit, used, "memory.stat")
            )
        except OSError:
            continue
        if most.strip() != "max":
            parts = dict(line.split() for line in lines.splitlines())
            names = ("active_file", "inactive_file")  # which Linux would free
            files = sum(int(parts.get(f"total_{name}", parts.get(name, 0))) for name in names)
            free = min(free, int(most) - int(taken) + files)
    return free


def _list_groups() -> Iterator[tuple[Path, str, str]]:
    """This process's control groups and those above them, whose limits count as well.

    In a container a group may have another path than the system outside knows: the root is it.
    """
    lines = GROUPS.read_text().splitlines() if GROUPS.exists() else []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if not controllers or "memory" in controllers.split(","):
            root, *names = HIERARCHIES[controllers == ""]
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield folder, *names


def find_shortage(
    on_host: int, on_device: int, device: torch.device, n_processes: int = 1
) -> str | None:
    """What does not fit into which memory and how much is free there, in words; None if all fits.

    Each of the processes of this machine needs so many bytes on the host and, if the network is on
    a GPU, so many there.
    """
    places = [("memory", n_processes * on_host, free_bytes())]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        sharing = -(-n_processes // torch.cuda.device_count())
        places.insert(0, ("memory of the GPU", sharing * on_device, free))
    for place, needed, free in places:
        if needed > free:
            return f"{needed / 1e9:.1f} GB of {place}, {max(free, 0) / 1e9:.1f} GB are free"
    return None
