"""How much memory a class needs and how much is free, before the work on it begins."""

from collections.abc import Iterator
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
ORIGINAL_BYTES = 30  # per pixel of an original image whose map, regions and files are made
GROUPS = Path("/proc/self/cgroup")  # the control groups of this process
# version 1 and 2 of control groups: where they are, and what a group may use, uses and counts
HIERARCHIES = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
)


class Work(NamedTuple):
    """What the memory of a class depends on."""

    model_bytes: int  # of the Gaussians and of the features of held-out images, exactly
    pixels: int  # of a preprocessed image
    batch_size: int
    n_held_out: int  # training images of which there are maps, for the thresholds
    n_kept: int  # test images of which the maps are kept, for the metrics
    n_drawn: int  # test images that get a figure


def device_bytes(work: Work) -> int:
    """Bytes needed where the network and the Gaussians are."""
    return work.model_bytes + BATCH_BYTES * work.batch_size * work.pixels


def host_bytes(work: Work) -> int:
    """Bytes needed on the host in any case: maps, masks and images, and the libraries."""
    fitting = HELD_OUT_BYTES * work.n_held_out * work.pixels
    scoring = (KEPT_BYTES * work.n_kept + DRAWN_BYTES * work.n_drawn) * work.pixels
    return LIBRARY_BYTES + max(fitting, scoring)


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


def fit_batch(most: int, pixels: int, original: int, device: torch.device) -> int:
    """The images that may be scored at once, at most as many as given; refuses if none fits.

    Args:
        most: images.
        pixels: of a preprocessed image.
        original: pixels of the largest image before it is preprocessed.
        device: that the network is on.
    """
    on_device, on_host = BATCH_BYTES * pixels, ORIGINAL_BYTES * original
    free, place = free_bytes() - LIBRARY_BYTES, "memory"
    if device.type == "cuda":
        most = min(most, free // on_host) if on_host else most
        on_host, place = 0, "memory of the GPU"
        free, _ = torch.cuda.mem_get_info(device)
    if on_device > free:
        raise UserError(
            f"an image of this model would take about {on_device / 1e9:.1f} GB of {place}, "
            f"{max(free, 0) / 1e9:.1f} GB are free: end other programs, or fit the model again "
            "with a smaller --resize or --crop"
        )
    return max(min(most, free // (on_device + on_host)), 1)


def check_memory(class_name: str, work: Work, device: torch.device, n_processes: int = 1) -> None:
    """Refuse a class whose work does not fit on this machine, where each process needs as much."""
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
