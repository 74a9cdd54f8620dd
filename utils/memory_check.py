"""Refuses a class that does not fit into memory, and names settings with which it would."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import torch

from datasets.dataset import ImageDataset
from datasets.images import read_size
from datasets.loading import bytes_ahead
from utils import backbone
from utils.gaussian import is_primal
from utils.model_file import DTYPES, class_bytes, features_bytes, gaussians_bytes
from utils.settings import AUTO_BYTES, Experiment
from utils.system.errors import UserError
from utils.system.memory import Work, find_shortage, needed_bytes
from utils.thresholds import choose_held_out

FEWER_FEATURES = (300, 200, 100, 50, 30, 15)
RESIZE_STEP, SMALLEST_RESIZE = 0.9, 128  # of the sides that are tried, and their least pixels


def check_memory(
    settings: Experiment,
    train: ImageDataset,
    test: ImageDataset,
    device: torch.device,
    n_processes: int = 1,
) -> None:
    """Refuse a class that does not fit on this machine; the settings that do are computed."""
    sizes = [read_size(s.path, settings.exif) for s in (*train.samples, *test.samples)]
    original = max(map(prod, sizes))

    def estimate(changed: dict[str, Any]) -> Work:
        return estimate_work(replace(settings, **changed), train, test, original, device)

    shortage = find_shortage(estimate({}), device, n_processes)
    if shortage is None:
        return
    fitting = []
    for base, ladders in list_lighter(settings, min(sizes[0])):
        for ladder in ladders:
            for step in ladder:
                changed = base | step
                work = estimate(changed)
                if find_shortage(work, device, n_processes) is None:
                    needed = n_processes * sum(needed_bytes(work, device.type == "cuda"))
                    fitting.append(f"{_to_options(changed)} would need {needed / 1e9:.1f} GB")
                    break
        if len(fitting) > 1:
            break
    place, wanted, free = shortage
    advice = "; ".join(fitting) or "end other programs, or give a small --resize"
    raise UserError(
        f"{test.class_name} would take about {wanted / 1e9:.1f} GB of {place}, "
        f"{max(free, 0) / 1e9:.1f} GB are free: {advice}"
        + ("; or start fewer processes" if n_processes > 1 else "")
    )


def estimate_work(
    settings: Experiment,
    train: ImageDataset,
    test: ImageDataset,
    original: int,
    device: torch.device,
) -> Work:
    """What the memory of a class with these settings depends on."""
    train, test = (replace(data, preprocessing=settings.preprocessing) for data in (train, test))
    names = settings.arch, settings.seed, settings.n_features, settings.layers
    channels, size = backbone.draw_channels(*names), train.window_size
    n_drawn = len(test) if settings.figures is None else min(settings.figures, len(test))
    n_images, n_held_out = len(train) + len(test), len(choose_held_out(len(train)))
    region = train.read_region(settings.unaligned, settings.align)
    gaussians = gaussians_bytes(channels, size, len(train), region)
    return Work(
        model_bytes=class_bytes(channels, size, len(train), region),
        copied_bytes=count_copied(settings, channels, gaussians, len(train), device),
        feature_bytes=features_bytes(channels, size, region),
        seen=prod(size),
        pixels=prod(test.image_size),
        original=original,
        batch_size=min(settings.batch_size, n_images),
        aligned=settings.align != "off",
        bytes_ahead=bytes_ahead(4 * prod(size), settings.batch_size, n_images),
        n_threads=settings.num_workers,
        n_held_out=n_held_out,
        n_kept=len(test) if test.has_masks else n_drawn,
        n_drawn=n_drawn,
    )


def count_copied(
    settings: Experiment,
    channels: backbone.Channels,
    gaussians: int,
    n_train: int,
    device: torch.device,
) -> int:
    """Bytes of what is made beside a model of so many bytes: tensors to save, or a second fit."""
    dtype = DTYPES[settings.save_dtype]
    in_file = gaussians * dtype.itemsize // DTYPES["float32"].itemsize
    is_saved = {"none": False, "all": True, "auto": in_file <= AUTO_BYTES}[settings.save_models]
    # float32 tensors on the CPU are written as they are
    saved = in_file if is_saved and (dtype != torch.float32 or device.type != "cpu") else 0
    # with near copies, the Gaussians of the held-out images are fitted as well
    n_held_out = len(choose_held_out(n_train))
    refitted = n_held_out < n_train and is_primal(n_train, channels.counts)
    return max(saved, gaussians if refitted else 0)


Changed = dict[str, Any]


def list_lighter(settings: Experiment, side: int) -> Iterator[tuple[Changed, list[list[Changed]]]]:
    """Yield changes that all ladders share, and ladders of changes, from the least to the most.

    Args:
        settings: to be changed.
        side: the shorter one of an image.
    """
    batch = {"batch_size": 1} if settings.batch_size > 1 else {}
    coarse: Changed = {}
    if tuple(settings.layers) == backbone.LAYERS:
        coarse = {"layers": list(backbone.LAYERS[1:])}
        most = sum(backbone.BACKBONES[settings.arch].layer_channels[1:])
        if settings.n_features not in (None, backbone.ALL) and settings.n_features > most:
            coarse["n_features"] = backbone.ALL
    side = whole = settings.resize or side
    names = settings.arch, settings.seed, settings.n_features, settings.layers
    n_features = len(backbone.draw_channels(*names))
    sides, fewer = [], [{"n_features": n} for n in FEWER_FEATURES if n < n_features]
    while (side := int(side * RESIZE_STEP)) >= SMALLEST_RESIZE:
        side -= side % (100 if side > 1000 else 10)
        crop = settings.crop * side // whole
        sides.append({"resize": side} | ({"crop": crop} if settings.crop else {}))
    yield {}, [[step] for step in (batch, coarse) if step] + [fewer, sides]
    yield batch | coarse, [fewer, sides]
    yield batch | coarse | (fewer[-1] if fewer else {}), [sides]


def _to_options(changed: Changed) -> str:
    texts = {k: " ".join(v) if k == "layers" else v for k, v in changed.items()}
    return " ".join(f"--{name} {text}" for name, text in texts.items())
