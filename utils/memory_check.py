"""Refuses a class that does not fit into memory, before anything slow is begun."""

from math import prod

import torch

from datasets.dataset import ImageDataset
from datasets.images import read_size
from datasets.loading import bytes_ahead
from utils import backbone
from utils.gaussian import is_primal
from utils.model_file import DTYPES, features_bytes, gaussians_bytes
from utils.settings import AUTO_BYTES, Experiment
from utils.system.errors import UserError
from utils.system.memory import (
    BATCH_BYTES,
    DRAWN_AT_ONCE,
    LIBRARY_BYTES,
    find_shortage,
    network_bytes,
)
from utils.thresholds import choose_held_out

# Allowances, set by measurement so that a class does not exceed its estimate.
# per pixel of a test image whose map and mask are kept, while the metrics sort them, of the image
# in a figure, and while that is drawn
KEPT_BYTES, SORTED_BYTES, DRAWN_BYTES, DRAWING_BYTES = 5, 14, 3, 20
HELD_OUT_BYTES = 8  # per pixel of the map of a held-out training image, sorted for the threshold
DECODING_BYTES = 16  # per pixel of an original image while it is decoded and preprocessed


def check_memory(
    settings: Experiment,
    train: ImageDataset,
    test: ImageDataset,
    device: torch.device,
    n_processes: int = 1,
) -> None:
    """Refuse a class that does not fit on this machine."""
    needed = estimate_bytes(settings, train, test, device)
    shortage = find_shortage(*needed, device, n_processes)
    if shortage is not None:
        fewer = ", or start fewer processes" if n_processes > 1 else ""
        raise UserError(
            f"{test.class_name} would take about {shortage}: give fewer --n_features, --layers "
            "layer2 layer3, a smaller --resize with a smaller --crop, or a smaller --batch_size"
            f"{fewer}"
        )


def estimate_bytes(
    settings: Experiment, train: ImageDataset, test: ImageDataset, device: torch.device
) -> tuple[int, int]:
    """Bytes that a class needs on the host, and on the GPU if the network is there."""
    on_gpu, n_images = device.type == "cuda", len(train) + len(test)
    seen, pixels = prod(train.window_size), prod(test.image_size)
    model, copied, features = _model_bytes(settings, train, on_gpu)
    batch_size = min(settings.batch_size, n_images)
    network = network_bytes(batch_size, seen, features, settings.align != "off", on_gpu)
    n_drawn = len(test) if settings.figures is None else min(settings.figures, len(test))
    n_kept = len(test) if test.has_masks else n_drawn
    kept = (KEPT_BYTES * n_kept + DRAWN_BYTES * n_drawn) * pixels
    drawing = min(n_drawn * pixels, max(pixels, DRAWN_AT_ONCE))
    beside_images = 0 if on_gpu else model
    stages = (
        beside_images + (0 if on_gpu else network) + BATCH_BYTES * batch_size * seen + kept,
        beside_images + HELD_OUT_BYTES * len(choose_held_out(len(train))) * seen,
        beside_images + copied,
        # the model is freed before the metrics and the figures
        kept + (SORTED_BYTES - KEPT_BYTES) * n_kept * pixels,
        kept + DRAWING_BYTES * drawing,
    )
    originals = (prod(read_size(sample.path)) for sample in (*train.samples, *test.samples))
    reading = bytes_ahead(train.item_bytes, settings.batch_size, n_images)
    reading += max(settings.num_workers, 1) * DECODING_BYTES * max(originals)
    on_device = model + max(network, copied) if on_gpu else 0
    return LIBRARY_BYTES + reading + max(stages), on_device


def _model_bytes(settings: Experiment, train: ImageDataset, on_gpu: bool) -> tuple[int, int, int]:
    """Bytes that a fit keeps, of what is made beside them, and of the features of an image."""
    names = settings.arch, settings.seed, settings.n_features, settings.layers
    channels, n_train = backbone.draw_channels(*names), len(train)
    region = train.read_region(settings.unaligned, settings.align)
    features = features_bytes(channels, train.window_size, region)
    gaussians = gaussians_bytes(channels, train.window_size, n_train, region)
    n_held_out = len(choose_held_out(n_train)) if is_primal(n_train, channels.counts) else 0
    dtype = DTYPES[settings.save_dtype]
    in_file = gaussians * dtype.itemsize // DTYPES["float32"].itemsize
    is_saved = {"none": False, "all": True, "auto": in_file <= AUTO_BYTES}[settings.save_models]
    # float32 tensors on the CPU are written as they are
    saved = in_file if is_saved and (on_gpu or dtype != torch.float32) else 0
    # with near copies, the Gaussians of the held-out images are fitted as well
    refitted = gaussians if 0 < n_held_out < n_train else 0
    return gaussians + n_held_out * features, max(saved, refitted), features
