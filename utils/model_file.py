"""A fitted class in a file: tensors, and the settings that are needed to score another image.

The format is safetensors, which holds no code. The file has the hash of the network's weights, not
the weights themselves.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.images import Preprocessing, check_preprocessing
from utils.backbone import BACKBONES, LAYERS, PRECISIONS, chosen_layers
from utils.gaussian import COVARIANCE_EPS, Gaussians, count_numbers, is_primal
from utils.padim import SMOOTHING_SIGMA, PaDiM
from utils.patches import cells_of
from utils.system.files import replacing
from utils.thresholds import Thresholds, choose_held_out

FORMAT = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# of a number in the file: fit refuses features above some thousands, and no square overflows
LARGEST = 1e6
MATRICES = ("whitening", "loadings", "residual_whitening")
KEY = "padim"  # of the settings in the file's metadata


@dataclass(frozen=True)
class TrainedModel:
    """A fitted class and how its images are prepared.

    Attributes:
        class_name: what it was fitted to.
        arch: a key of BACKBONES.
        channels: indices into the concatenation of the network's layers.
        weights_sha256: of the network, as in Network.
        precision: in which the network computes, a key of PRECISIONS.
        preprocessing: of every image.
        image_size: H and W of a preprocessed image.
        training_sha256: of the names, sizes and times of the training images.
        padim: fitted.
        thresholds: from its training images.
    """

    class_name: str
    arch: str
    channels: list[int]
    weights_sha256: str
    precision: str
    preprocessing: Preprocessing
    image_size: tuple[int, int]
    training_sha256: str
    padim: PaDiM
    thresholds: Thresholds


def model_bytes(padim: PaDiM, dtype: str = "float32") -> int:
    """Size of the file in bytes, without some kilobytes of settings."""
    gaussians = padim.gaussians
    layer_features = [mean.shape[2] for mean in gaussians.means]
    return count_numbers(gaussians.grids, layer_features, padim.n_train) * DTYPES[dtype].itemsize


def class_bytes(
    arch: str, channels: Sequence[int], image_size: tuple[int, int], n_train: int
) -> int:
    """Bytes that a fit keeps: the Gaussians, and in primal form the features of held-out images."""
    grids, features = chosen_layers(arch, channels, image_size)
    n_numbers = count_numbers(grids, features, n_train)
    if is_primal(n_train, features):
        of_image = sum(h * w * d for (h, w), d in zip(grids, features, strict=True))
        n_numbers += len(choose_held_out(n_train)) * of_image
    return n_numbers * DTYPES["float32"].itemsize


def save_model(path: Path, model: TrainedModel, dtype: str = "float32") -> None:
    """Write the model; the file appears when it is complete.

    Args:
        path: of the file, by custom <class>.safetensors.
        model: on any device.
        dtype: a key of DTYPES, in which the numbers are kept.

    Raises:
        ValueError: if dtype is no key of DTYPES.
        OSError: if the file cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    tensors = {
        name: tensor.to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in _to_tensors(model.padim.gaussians).items()
    }
    tensors["good_scores"] = torch.from_numpy(model.thresholds.good_scores)
    thresholds = asdict(model.thresholds)
    del thresholds["good_scores"]
    settings = {
        "format": FORMAT,
        "class_name": model.class_name,
        "arch": model.arch,
        "layers": LAYERS,
        "channels": list(model.channels),
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "preprocessing": model.preprocessing._asdict(),
        "image_size": model.image_size,
        "eps": COVARIANCE_EPS,
        "smoothing_sigma": SMOOTHING_SIGMA,
        "n_train": model.padim.n_train,
        "training_sha256": model.training_sha256,
        "grids": model.padim.gaussians.grids,
        "thresholds": thresholds,
        "thresholds_from": "training images, each scored by the Gaussians of all others",
    }
    with replacing(path) as temporary:
        # safetensors would make a file that only its owner can read
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, {KEY: json.dumps(settings)})
        temporary.chmod(mode)


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Read a model that save_model wrote; nothing in the file is run.

    Args:
        path: of the file.
        device: where its tensors go, as float32.

    Raises:
        FileNotFoundError: if path is no file.
        ValueError: if the file is no such model, has another format or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --model takes a .safetensors file of a run")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})[KEY])
            found = settings["format"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if found == FORMAT:
            return _from_file(settings, tensors, device)
    except (
        *(SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError),
        RuntimeError,  # a tensor of a dtype that torch cannot handle
    ) as error:
        raise ValueError(
            f"{path} is damaged or no model of this suite ({_first_words(error)}); "
            "make it again with main.py"
        ) from error
    raise ValueError(
        f"{path} has model format {found}, this version reads {FORMAT}; make it again with main.py"
    )


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"


def _from_file(
    settings: Mapping[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> TrainedModel:
    for name, tensor in tensors.items():
        try:
            finite = tensor.isfinite().all()
        except RuntimeError as error:  # a dtype that torch can only store
            raise ValueError(f"{name} is of {tensor.dtype}") from error
        if not finite:
            raise ValueError(f"{name} is not finite")
    _check_settings(settings)
    padim = PaDiM()
    good_scores = tensors.pop("good_scores").numpy()
    if good_scores.ndim != 1 or not len(good_scores) or (np.diff(good_scores) < 0).any():
        raise ValueError("good_scores are not in ascending order")
    padim.n_train = settings["n_train"]
    tensors = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
    padim.gaussians = _to_gaussians(tensors, settings)
    _check_magnitudes(tensors, settings["eps"])
    return TrainedModel(
        class_name=settings["class_name"],
        arch=settings["arch"],
        channels=settings["channels"],
        weights_sha256=settings["weights_sha256"],
        precision=settings["precision"],
        preprocessing=Preprocessing(**settings["preprocessing"]),
        image_size=tuple(settings["image_size"]),
        training_sha256=settings["training_sha256"],
        padim=padim,
        thresholds=Thresholds(**settings["thresholds"], good_scores=good_scores),
    )


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings with which scoring would fail, or give numbers that mean nothing."""
    backbone = BACKBONES[settings["arch"]]
    if not all(
        type(c) is int and 0 <= c < sum(backbone.layer_channels) for c in settings["channels"]
    ):
        raise ValueError("channels that the network does not have")
    if settings["precision"] not in PRECISIONS:
        raise ValueError(f"unknown precision {settings['precision']!r}")
    for name in ("class_name", "weights_sha256", "training_sha256"):
        if not isinstance(settings[name], str):
            raise TypeError(f"{name} is {settings[name]!r}")
    if type(settings["n_train"]) is not int or settings["n_train"] < 2:
        raise ValueError(f"n_train is {settings['n_train']!r}")
    _check_numbers("eps", [settings["eps"]], above=1e-6, below=1e6)
    preprocessing = Preprocessing(**settings["preprocessing"])
    if not all(type(side) is int and side >= 0 for side in preprocessing):
        raise ValueError(f"preprocessing is {settings['preprocessing']}")
    check_preprocessing(preprocessing)
    size, crop = settings["image_size"], preprocessing.crop
    sides = len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not sides or (crop and list(size) != [crop, crop]):
        raise ValueError(f"image_size is {size}")
    grids, _ = chosen_layers(settings["arch"], settings["channels"], size)
    if list(grids) != [tuple(grid) for grid in settings["grids"]]:
        raise ValueError(f"grids are {settings['grids']} with image_size {size}")
    thresholds = settings["thresholds"]
    rates = [thresholds[name] for name in ("target_fpr", "image_fpr") if name in thresholds]
    _check_numbers("thresholds", thresholds.values(), above=-1e30, below=1e30)
    _check_numbers("thresholds", rates, above=0, below=1)


def _check_magnitudes(tensors: Mapping[str, Tensor], eps: float) -> None:
    """Refuse numbers that no fit gives, or that would make distances overflow."""
    for name, tensor in tensors.items():
        # L⁻¹ of a matrix that is eps or more in every direction; twice that is beyond rounding
        limit = 2 / eps**0.5 if name.endswith("whitening") else LARGEST
        if tensor.numel() and tensor.abs().max() > limit:
            raise ValueError(f"{name} is beyond {limit:g}")


def _check_numbers(name: str, values: Iterable[Any], above: float, below: float) -> None:
    if not all(type(value) in (int, float) and above < value < below for value in values):
        raise ValueError(f"{name} out of range")


def _to_tensors(gaussians: Gaussians) -> dict[str, Tensor]:
    tensors = {name: getattr(gaussians, name) for name in MATRICES}
    tensors |= {f"mean.{i}": mean for i, mean in enumerate(gaussians.means)}
    return tensors | {f"samples.{i}": samples for i, samples in enumerate(gaussians.samples)}


def _to_gaussians(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Gaussians:
    grids, features = chosen_layers(settings["arch"], settings["channels"], settings["image_size"])
    n, sizes = settings["n_train"], [height * width for height, width in grids]
    means = [tensors[f"mean.{i}"] for i in range(len(grids))]
    for mean, size, d in zip(means, sizes, features, strict=True):
        _check_shape(mean, size, 1, d)
    # a single layer counts as coarser
    first_coarser = min(len(grids) - 1, 1)
    finest, k = sum(features[:first_coarser]), sum(features[first_coarser:])
    samples = []
    if not is_primal(n, features):
        k = n
        samples = [tensors[f"samples.{i}"] for i in range(len(grids) - first_coarser)]
        shapes = zip(sizes[first_coarser:], features[first_coarser:], strict=True)
        for kept, (size, d) in zip(samples, shapes, strict=True):
            _check_shape(kept, size, n, d)
    whitening, loadings, residual_whitening = (tensors[name] for name in MATRICES)
    _check_shape(whitening, len(cells_of(grids).members), k, k)
    _check_shape(loadings, sizes[0], k, finest)
    _check_shape(residual_whitening, sizes[0], finest, finest)
    return Gaussians(
        grids=grids,
        means=means,
        samples=samples,
        whitening=whitening,
        loadings=loadings,
        residual_whitening=residual_whitening,
        eps=settings["eps"],
    )


def _check_shape(tensor: Tensor, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"a tensor has shape {tuple(tensor.shape)} instead of {shape}")
