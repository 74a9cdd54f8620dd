"""How much memory a class needs and how much is free, before the work on it begins."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from utils.system.errors import UserError

# Allowances, set by measurement so that a class does not exceed its estimate.
LIBRARY_BYTES = 150_000_000  # what the libraries take after the estimate is made
# per pixel that the network sees: of those it takes at once, of a batch (read, stacked and its
# maps), and of a batch that is aligned
NETWORK_BYTES, BATCH_BYTES, ALIGNED_BYTES = 250, 20, 40
PIXELS_AT_ONCE = 2**22  # that the network takes at once on the CPU, or a single image
# per pixel of a test image whose map and mask are kept, while the metrics sort them, of the image
# in a figure, and while that is drawn
KEPT_BYTES, SORTED_BYTES, DRAWN_BYTES, DRAWING_BYTES = 5, 14, 3, 20
DRAWN_AT_ONCE = 2**24  # pixels of the images of which figures are drawn at once, or a single one
HELD_OUT_BYTES = 8  # per pixel of the map of a held-out training image, sorted for the threshold
DECODING_BYTES = 16  # per pixel of an original image while it is decoded and preprocessed
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
    copied_bytes: int  # of a second model, while it is saved or fitted without near copies
    feature_bytes: int  # of an image
    seen: int  # pixels of an image that the network sees
    pixels: int  # of a preprocessed image: of its map and mask
    original: int  # pixels of the largest image before it is preprocessed
    batch_size: int
    aligned: bool  # whether images may be turned and moved
    bytes_ahead: int  # of images that are read before they are needed
    n_threads: int  # that read them
    n_held_out: int  # training images of which there are maps, for the thresholds
    n_kept: int  # test images of which the maps are kept, for the metrics
    n_drawn: int  # test images that get a figure


def network_bytes(
    batch_size: int, seen: int, feature_bytes: int, aligned: bool, on_gpu: bool
) -> int:
    """Bytes that a batch takes where the network is: activations and features."""
    at_once = batch_size * seen
    if not on_gpu:
        at_once = min(at_once, max(seen, PIXELS_AT_ONCE))
    network = NETWORK_BYTES * at_once + 2 * batch_size * feature_bytes
    return max(network, ALIGNED_BYTES * batch_size * seen) if aligned else network


def needed_bytes(work: Work, on_gpu: bool) -> tuple[int, int]:
    """Bytes needed on the host, and on the GPU if the network is there."""
    network = network_bytes(work.batch_size, work.seen, work.feature_bytes, work.aligned, on_gpu)
    kept = (KEPT_BYTES * work.n_kept + DRAWN_BYTES * work.n_drawn) * work.pixels
    drawing = min(work.n_drawn * work.pixels, max(work.pixels, DRAWN_AT_ONCE))
    model, activations = (0, 0) if on_gpu else (work.model_bytes, network)
    stages = (
        model + activations + BATCH_BYTES * work.batch_size * work.seen + kept,  # fit and score
        model + HELD_OUT_BYTES * work.n_held_out * work.seen,  # thresholds
        model + work.copied_bytes,
        # the model is freed before
        kept + (SORTED_BYTES - KEPT_BYTES) * work.n_kept * work.pixels,
        kept + DRAWING_BYTES * drawing,
    )
    reading = work.bytes_ahead + max(work.n_threads, 1) * DECODING_BYTES * work.original
    on_device = work.model_bytes + max(network, work.copied_bytes) if on_gpu else 0
    return LIBRARY_BYTES + reading + max(stages), on_device


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


def fit_batch(
    most: int, seen: int, feature_bytes: int, original: int, aligned: bool, device: torch.device
) -> int:
    """The images that may be scored at once, at most as many as given; refuses if none fits.

    Args:
        most: images.
        seen: pixels of an image that the network sees.
        feature_bytes: of an image.
        original: pixels of the largest image before it is preprocessed.
        aligned: whether images are turned and moved.
        device: that the network is on.
    """
    on_gpu = device.type == "cuda"
    free = {"memory": free_bytes() - LIBRARY_BYTES}
    if on_gpu:
        free["memory of the GPU"], _ = torch.cuda.mem_get_info(device)
    for batch_size in range(most, 0, -1):
        on_device = network_bytes(batch_size, seen, feature_bytes, aligned, on_gpu)
        on_host = batch_size * (BATCH_BYTES * seen + ORIGINAL_BYTES * original)
        needed = {"memory of the GPU": on_device} if on_gpu else {}
        needed["memory"] = on_host if on_gpu else on_host + on_device
        short = [place for place in needed if needed[place] > free[place]]
        if not short:
            return batch_size
    place = short[0]
    raise UserError(
        f"an image of {original / 1e6:.1f} megapixels would take about {needed[place] / 1e9:.1f} "
        f"GB of {place}, {max(free[place], 0) / 1e9:.1f} GB are free: end other programs, or fit "
        "the model again with a smaller --resize or --crop"
    )


def find_shortage(
    work: Work, device: torch.device, n_processes: int = 1
) -> tuple[str, int, int] | None:
    """Where memory is short for a class, the bytes that it needs and those that are free there.

    Each of the processes of this machine needs as much. None if it fits.
    """
    on_gpu = device.type == "cuda"
    on_host, on_device = needed_bytes(work, on_gpu)
    needed = {"memory": (n_processes * on_host, free_bytes())}
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        sharing = -(-n_processes // torch.cuda.device_count())
        needed = {"memory of the GPU": (sharing * on_device, free)} | needed
    for place, (wanted, free) in needed.items():
        if wanted > free:
            return place, wanted, free
    return None
