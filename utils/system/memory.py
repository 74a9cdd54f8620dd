"""How much memory a class needs and how much is free, before the work on it begins."""

from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from utils.system.errors import UserError

# Allowances, set by measurement so that a class does not exceed its estimate.
BATCH_BYTES = 320  # per pixel of a batch: network, features, images decoded ahead
LIBRARY_BYTES = 150_000_000  # what the libraries take after the estimate is made
# per pixel of a kept test image (its map and mask, and both sorted for the metrics), of a held-out
# training image (its map, and the map sorted for the threshold) and of the image in a figure
KEPT_BYTES, HELD_OUT_BYTES, DRAWN_BYTES = 13, 8, 3
# the limit on this process's control group, what of it is used, and what of that Linux would free;
# the paths of both versions of control groups
LIMITS = tuple(
    tuple(Path("/sys/fs/cgroup", name) for name in names)
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
)


class Work(NamedTuple):
    """What the memory of a class depends on.

    Attributes:
        model_bytes: of the Gaussians and of the features of held-out images, exactly.
        pixels: of a preprocessed image.
        batch_size: images.
        n_held_out: training images of which there are maps, for the thresholds.
        n_kept: test images of which the maps are kept, for the metrics.
        n_drawn: test images that get a figure.
    """

    model_bytes: int
    pixels: int
    batch_size: int
    n_held_out: int
    n_kept: int
    n_drawn: int


def device_bytes(work: Work) -> int:
    """Bytes needed where the network and the Gaussians are."""
    return work.model_bytes + BATCH_BYTES * work.batch_size * work.pixels


def host_bytes(work: Work) -> int:
    """Bytes needed on the host in any case: maps, masks and images, and the libraries."""
    fitting = HELD_OUT_BYTES * work.n_held_out * work.pixels
    scoring = (KEPT_BYTES * work.n_kept + DRAWN_BYTES * work.n_drawn) * work.pixels
    return LIBRARY_BYTES + max(fitting, scoring)


def free_bytes() -> int:
    """Memory that is free for this process, as the system and a limit on its group allow."""
    free = psutil.virtual_memory().available
    for limit, used, statistics in LIMITS:
        try:
            most, taken, lines = (path.read_text() for path in (limit, used, statistics))
        except OSError:
            continue
        if most.strip() != "max":
            parts = dict(line.split() for line in lines.splitlines())
            files = sum(int(parts.get(f"{kind}_file", 0)) for kind in ("active", "inactive"))
            free = min(free, int(most) - int(taken) + files)
    return free


def check_memory(class_name: str, work: Work, device: torch.device, n_processes: int = 1) -> None:
    """Refuse a class that does not fit.

    Args:
        class_name: in the message.
        work: on the class.
        device: that the network and the Gaussians are on.
        n_processes: on this machine, which need as much each.

    Raises:
        ValueError: if it needs more memory than is free.
    """
    on_host = host_bytes(work)
    needed = {}
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        sharing = -(-n_processes // torch.cuda.device_count())
        needed["memory of the GPU"] = (sharing * device_bytes(work), free)
    else:
        on_host += device_bytes(work)
    needed["memory"] = (n_processes * on_host, free_bytes())
    for place, (wanted, free) in needed.items():
        if wanted > free:
            raise UserError(
                f"{class_name} would take about {wanted / 1e9:.1f} GB of {place}, "
                f"{max(free, 0) / 1e9:.1f} GB are free: lower --n_features, --crop, --resize or "
                "--batch_size, or start fewer processes"
            )
