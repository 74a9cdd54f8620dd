"""A fitted model in a file: tensors, and the settings that are needed to score another image.

The format is safetensors, which holds no code. The file has the hash of the network's weights, not
the weights themselves. A hash of its own content tells a damaged file from one that was saved.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.notes import Header
from datasets.preprocessing import Preprocessing
from utils.alignment import Alignment
from utils.backbone import BACKBONES, PRECISIONS, Channels
from utils.gaussian import Gaussians, count_numbers
from utils.patches import cells_of, make_layout
from utils.system.errors import UserError
from utils.system.files import replacing
from utils.thresholds import Thresholds
from utils.view import SMOOTHING_SIGMA, View

FORMAT = 6
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MATRICES = ("whitening", "loadings", "residual_whitening")
LISTS = ("means", "samples")  # of a tensor for each layer
SCORES = ("good_scores", "pixel_scores", "good_peaks")  # of the thresholds
TEMPLATE = "template"  # of an alignment
REGION = "region"  # of interest, in pixels of the window
KEY = "padim"  # of the settings in the file's metadata
# what reading a file with damaged or foreign content raises
DAMAGE = (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)


def model_bytes(gaussians: Gaussians, dtype: str = "float32") -> int:
    """Size of the file in bytes, without some kilobytes of settings."""
    numbers = sum(tensor.numel() for tensor in _to_tensors(gaussians).values())
    return numbers * DTYPES[dtype].itemsize


def gaussians_bytes(
    channels: Channels,
    window_size: tuple[int, int],
    n_train: int,
    region: np.ndarray | None = None,
) -> int:
    """Bytes of the Gaussians of a fit."""
    layout = make_layout(channels.grids(window_size), region)
    return count_numbers(layout, channels.counts, n_train) * DTYPES["float32"].itemsize


def features_bytes(
    channels: Channels, window_size: tuple[int, int], region: np.ndarray | None = None
) -> int:
    """Bytes of the features of an image that are kept."""
    kept = cells_of(make_layout(channels.grids(window_size), region)).kept
    numbers = sum(len(places) * d for places, d in zip(kept, channels.counts, strict=True))
    return numbers * DTYPES["float32"].itemsize


def write_model(
    path: Path,
    settings: Mapping[str, Any],
    view: View,
    gaussians: Gaussians,
    thresholds: Thresholds,
    dtype: str = "float32",
) -> None:
    """Write a model; the file appears when it is complete.

    The settings are whatever JSON can hold; the Gaussians are kept in a type of DTYPES.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    tensors = {
        name: tensor.to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in _to_tensors(gaussians).items()
    }
    of_thresholds = asdict(thresholds)
    given = [name for name in SCORES if of_thresholds[name] is not None]
    tensors |= {name: torch.from_numpy(of_thresholds.pop(name)) for name in given}
    alignment = view.alignment
    if alignment is not None:
        tensors[TEMPLATE] = alignment.template.cpu()
    if view.region is not None:
        tensors[REGION] = torch.from_numpy(view.region)
    settings = {
        "format": FORMAT,
        **settings,
        "preprocessing": view.preprocessing._asdict(),
        "alignment": None if alignment is None else alignment.describe(),
        "grids": gaussians.grids,
        "eps": gaussians.eps,
        "shrinkage": gaussians.shrinkage,
        "smoothing_sigma": SMOOTHING_SIGMA,
        "thresholds": of_thresholds,
        "thresholds_from": "training images, each scored by the Gaussians of all others",
    }
    settings["sha256"] = _sha256(settings, tensors)
    with replacing(path) as temporary:
        # safetensors would make a file that only its owner can read
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, {KEY: json.dumps(settings)})
        temporary.chmod(mode)


Parts = tuple[dict[str, Any], View, Gaussians, Thresholds]


def read_model(path: Path, device: torch.device) -> Parts:
    """The settings, view, Gaussians (float32 on a device) and thresholds of a file.

    Nothing in the file is run.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; --model takes a .safetensors file of a run")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = settings["format"]
        if found == FORMAT:
            if settings.pop("sha256") != _sha256(settings, tensors):
                raise UserError("its content was changed")
            return _convert(settings, tensors, device)
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged or no model of this suite "
            f"({type(error).__name__}: {str(error)[:120]}); fit it again with main.py"
        ) from error
    raise UserError(
        f"{path} has model format {found}, this version reads {FORMAT}; fit it again with main.py"
    )


def _sha256(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all settings and of all tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy())
    return digest.hexdigest()


def _convert(settings: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Parts:
    """What is read, in the suite's types; refuse what does not fit the network."""
    scores = {name: tensors.pop(name).numpy() for name in SCORES if name in tensors}
    thresholds = Thresholds(**(settings["thresholds"] | scores))
    region = tensors.pop(REGION).numpy() if REGION in tensors else None
    on_device = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
    gaussians = _to_gaussians(on_device, settings, region)
    alignment = settings["alignment"]
    if alignment is not None:
        alignment = Alignment.restore(alignment, on_device[TEMPLATE])
    view = View(Preprocessing(**settings["preprocessing"]), alignment, region)
    settings["window_size"] = tuple(settings["window_size"])
    settings["image_kinds"] = [Header(tuple(s), m, f) for s, m, f in settings["image_kinds"]]
    network = settings["network"]
    for name, accepted in (("arch", BACKBONES), ("precision", PRECISIONS)):
        if network[name] not in accepted:
            raise UserError(f"it needs {network[name]}, this version has {', '.join(accepted)}")
    of_layers = tuple(map(tuple, network["channels"]["of_layers"]))
    network["channels"] = Channels(of_layers, network["channels"]["sha256"])
    return settings, view, gaussians, thresholds


def _to_tensors(gaussians: Gaussians) -> dict[str, Tensor]:
    numbered = {
        f"{name}.{i}": tensor for name in LISTS for i, tensor in enumerate(getattr(gaussians, name))
    }
    return {name: getattr(gaussians, name) for name in MATRICES} | numbered


def _to_gaussians(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], region: np.ndarray | None
) -> Gaussians:
    lists = {
        name: [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.")]
        for name in LISTS
    }
    return Gaussians(
        layout=make_layout(tuple(map(tuple, settings["grids"])), region),
        eps=settings["eps"],
        shrinkage=settings["shrinkage"],
        **{name: tensors[name] for name in MATRICES},
        **lists,
    )
