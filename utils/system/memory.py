"""How much memory a class takes, told before the work begins.

The terms that grow are exact; what the network and the libraries need beside them is an allowance,
set by measurement so that the sum is not exceeded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from datasets.loading import BATCHES_AHEAD
from utils.backbone import BACKBONES, count_layer_features, layer_grids
from utils.features import count_at_once
from utils.gaussian import PATCH_BLOCK, count_numbers, is_primal
from utils.model_file import DTYPES
from utils.patches import Pyramid, cells_of
from utils.saving import AUTO_BYTES
from utils.system.processes import ALONE, World
from utils.thresholds import choose_held_out

FLOAT = 4  # bytes
# allowances
NETWORK_FLOATS = 48  # per pixel of the images in the network at once
LIBRARIES = 100_000_000  # bytes, used later than the estimate is made
# a limit on this process's group, what of it is taken, and what of that the system would give back,
# in Linux's two versions of the interface
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
        arch: a key of BACKBONES.
        channels: drawn.
        image_size: H and W of the preprocessed images.
        n_train, n_test: images.
        batch_size: of all processes together.
        keeps_features: whether the network's outputs for all images are kept.
        keeps_maps: whether the maps of all test images are.
        n_drawn: test images kept for figures.
        save_models, save_dtype: as is_saved takes them.
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
    save_models: str
    save_dtype: str


def gaussian_bytes(work: Work, world: World = ALONE) -> int:
    """Bytes of the Gaussians of this process's patches."""
    pyramid, features = _layers_of(work)
    own = pyramid.split(world.size)[world.rank]
    return FLOAT * count_numbers(own, features, work.n_train)


def _layers_of(work: Work) -> tuple[Pyramid, list[int]]:
    """Grids and numbers of channels of the layers that have some."""
    features = count_layer_features(work.arch, work.channels)
    grids = layer_grids(work.image_size)
    there = [(grid, d_l) for grid, d_l in zip(grids, features, strict=True) if d_l]
    return Pyramid.whole([grid for grid, _ in there]), [d_l for _, d_l in there]


def estimate_bytes(work: Work, world: World = ALONE) -> int:
    """The most that this process will take for a class on the CPU, beside what it has already."""
    passing = max(_running_bytes(work, count_at_once(), world), _ending_bytes(work, world))
    return _lasting_bytes(work, world) + _host_bytes(work, world) + passing


def _lasting_bytes(work: Work, world: World) -> int:
    """What lies where the network runs until the class is done."""
    lasting = gaussian_bytes(work, world)
    if is_primal(work.n_train, _layers_of(work)[1]):
        embedding = _image_bytes(work, count_layer_features(work.arch, work.channels))
        lasting += _share(len(choose_held_out(work.n_train)) * embedding, world)
    if work.keeps_features:
        outputs = _image_bytes(work, BACKBONES[work.arch].layer_channels)
        lasting += _share(work.n_train + work.n_test, world) * outputs
    return lasting


def _running_bytes(work: Work, at_once: int, world: World) -> int:
    """What lies there while the network runs, on at_once images or a smaller batch."""
    outputs = _image_bytes(work, BACKBONES[work.arch].layer_channels)
    embedding = _image_bytes(work, count_layer_features(work.arch, work.channels))
    own = _share(work.batch_size, world)
    whole = own if work.keeps_features else min(own, at_once)  # with all of their channels
    network = FLOAT * NETWORK_FLOATS * work.image_size[0] * work.image_size[1]
    passing = 2 * whole * outputs + 3 * own * embedding + min(own, at_once) * network
    return passing + _block_bytes(work, own)


def _block_bytes(work: Work, n_images: int) -> int:
    """What lies there while the Gaussians of a block of patches are worked on."""
    pyramid, features = _layers_of(work)
    of_patches, _, members = cells_of(pyramid)
    cells = -(-PATCH_BLOCK * len(members) // len(of_patches))
    k = min(sum(features[1:] or features), work.n_train)
    # matrices and their factors, and embeddings of the cells, of the patches
    numbers = cells * k * (3 * k + 3 * n_images) + PATCH_BLOCK * n_images * (k + 3 * features[0])
    return FLOAT * numbers


def _host_bytes(work: Work, world: World) -> int:
    """What is on the host in any case: images, and scores and masks of all pixels."""
    pixels = work.image_size[0] * work.image_size[1]
    waiting = BATCHES_AHEAD * 4 * work.batch_size * pixels + LIBRARIES
    # maps and masks of all images, or of those that are drawn
    maps = 5 * (work.n_test if work.keeps_maps else work.n_drawn)
    return waiting + ((maps + 3 * work.n_drawn) * pixels if world.leads else 0)


def _ending_bytes(work: Work, world: World) -> int:
    """What is there in turn when all is scored, in the process that leads."""
    pixels = work.image_size[0] * work.image_size[1]
    held_out = 2 * FLOAT * len(choose_held_out(work.n_train)) * pixels  # maps, and sorted
    metrics = 8 * work.n_test * pixels if work.keeps_maps else 0  # sorted, and as regions
    return max(held_out, metrics, _saved_bytes(work, world)) if world.leads else 0


def _image_bytes(work: Work, layer_channels: Sequence[int]) -> int:
    """Bytes of an image's layers with so many channels."""
    grids = layer_grids(work.image_size)
    return FLOAT * sum(n * h * w for n, (h, w) in zip(layer_channels, grids, strict=True))


def _saved_bytes(work: Work, world: World) -> int:
    """What saving takes: the whole model where it was shared, and a copy of another type."""
    whole = gaussian_bytes(work)
    size = whole * DTYPES[work.save_dtype].itemsize // FLOAT
    if work.save_models == "none" or (work.save_models == "auto" and size > AUTO_BYTES):
        return 0
    return (whole if world.size > 1 else 0) + size


def _share(total: int, world: World) -> int:
    return -(-total // world.size)


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


def check_memory(class_name: str, work: Work, device: torch.device, world: World = ALONE) -> None:
    """Refuse a class that does not fit.

    Raises:
        ValueError: if it takes more memory than is free.
    """
    if device.type == "cuda":
        needed = _host_bytes(work, world) + _ending_bytes(work, world)
        own = _lasting_bytes(work, world) + _running_bytes(work, work.batch_size, world)
        places = {"memory of the GPU": (own, torch.cuda.mem_get_info(device)[0])}
    else:
        needed, places = estimate_bytes(work, world), {}
    places["memory"] = (needed * world.local_size, free_bytes())
    for place, (wanted, free) in places.items():
        if wanted > free:
            raise ValueError(
                f"{class_name} would take about {wanted / 1e9:.1f} GB of {place}, "
                f"{max(free, 0) / 1e9:.1f} GB are free: lower --n_features "
                f"({len(work.channels)}), --crop or --resize ({work.image_size[1]}x"
                f"{work.image_size[0]} pixels) or --seeds, or share it with torchrun"
            )
