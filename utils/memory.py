"""How much memory a class takes, told before the work begins.

The terms that grow are exact; what the network and the libraries need beside them is an allowance,
set by measurement so that the sum is not exceeded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from datasets.loading import READ_AHEAD
from utils.backbone import BACKBONES, count_layer_features, layer_grids
from utils.distributed import ALONE, World
from utils.features import CPU_BATCH
from utils.gaussian import PATCH_BLOCK, count_numbers, is_primal
from utils.patches import Pyramid
from utils.thresholds import choose_held_out

FLOAT = 4  # bytes
# allowances
NETWORK_FLOATS = 48  # per pixel of the images in the network at once
LIBRARIES = 300_000_000  # bytes, imported later than the estimate is made
# a limit on this process's group and what of it is taken, in Linux's two versions of the interface
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Work(NamedTuple):
    """What the memory of a class depends on.

    Attributes:
        arch: a key of BACKBONES.
        channels: drawn.
        image_size: H and W of the preprocessed images.
        n_train, n_test: images.
        batch_size: of all processes together.
        keeps_features: whether the network's outputs for all images are kept.
        keeps_maps: whether the maps of all test images are.
        n_drawn: test images kept for figures.
    """

    arch: str
    channels: Sequence[int]
    image_size: tuple[int, int]
    n_train: int
    n_test: int
    batch_size: int
    keeps_features: bool
    keeps_maps: bool
    n_drawn: int


def gaussian_bytes(work: Work, world: World = ALONE) -> int:
    """Bytes of the Gaussians of this process's patches."""
    features = count_layer_features(work.arch, work.channels)
    grids = layer_grids(work.image_size)
    there = [(grid, d_l) for grid, d_l in zip(grids, features, strict=True) if d_l]
    pyramid = Pyramid.whole([grid for grid, _ in there]).split(world.size)[world.rank]
    return FLOAT * count_numbers(pyramid, [d_l for _, d_l in there], work.n_train)


def estimate_bytes(work: Work, world: World = ALONE) -> int:
    """The most that this process will take for a class, beside what it has already."""
    height, width = work.image_size
    pixels = height * width
    areas = [h * w for h, w in layer_grids(work.image_size)]
    own = -(-work.batch_size // world.size)

    def per_image(counts: Sequence[int]) -> int:
        return FLOAT * sum(n * area for n, area in zip(counts, areas, strict=True))

    outputs = per_image(BACKBONES[work.arch].layer_channels)
    embedding = per_image(count_layer_features(work.arch, work.channels))
    network = FLOAT * NETWORK_FLOATS * pixels * min(own, CPU_BATCH)
    batch = own * (2 * outputs + 3 * embedding) + network
    if work.keeps_features:
        batch += -(-(work.n_train + work.n_test) // world.size) * outputs

    d = len(work.channels)
    primal = is_primal(work.n_train, d)
    held_out = len(choose_held_out(work.n_train)) * embedding // world.size if primal else 0
    block = 3 * FLOAT * PATCH_BLOCK * min(d, work.n_train) ** 2
    # scores, labels and masks of all pixels; sorted and as regions once more
    scored = (13 if work.keeps_maps else 0) * work.n_test * pixels + 8 * work.n_drawn * pixels
    scored = scored if world.leads else 0
    read_ahead = max(READ_AHEAD, 4 * own * pixels)
    fixed = gaussian_bytes(work, world) + batch + read_ahead + LIBRARIES
    return fixed + max(held_out + block, scored)


def free_bytes() -> int:
    """Memory that is free for this process, as the system and a limit on its group allow."""
    free = psutil.virtual_memory().available
    for limit, used in LIMITS:
        try:
            most, taken = (Path(path).read_text().strip() for path in (limit, used))
        except OSError:
            continue
        if most != "max":
            free = min(free, int(most) - int(taken))
    return free


def check_memory(class_name: str, work: Work, device: torch.device, world: World = ALONE) -> None:
    """Refuse a class that does not fit.

    Raises:
        ValueError: if it takes more memory than is free.
    """
    needed = estimate_bytes(work, world)
    places = {"memory": (needed * world.local_size, free_bytes())}
    if device.type == "cuda":
        # what grows with the images stays on the host
        places["memory of the GPU"] = (gaussian_bytes(work, world), torch.cuda.mem_get_info()[0])
    for place, (wanted, free) in places.items():
        if wanted > free:
            raise ValueError(
                f"{class_name} would take about {wanted / 1e9:.1f} GB of {place}, "
                f"{max(free, 0) / 1e9:.1f} GB are free: lower --n_features "
                f"({len(work.channels)}), --crop or --resize ({work.image_size[1]}x"
                f"{work.image_size[0]} pixels) or --seeds, or share it with torchrun"
            )
