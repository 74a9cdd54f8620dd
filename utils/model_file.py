"""A fitted class in a file: tensors, and the settings that are needed to score another image.

The format is safetensors, which holds no code. The file has the hash of the network's weights, not
the weights themselves. A hash of its own content tells a damaged file from one that was saved.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.preprocessing import Preprocessing
from utils.backbone import BACKBONES, LAYERS, PRECISIONS, chosen_layers
from utils.gaussian import Gaussians, count_numbers, is_primal
from utils.padim import SMOOTHING_SIGMA, PaDiM
from utils.patches import Layout
from utils.system.errors import UserError
from utils.system.files import replacing
from utils.thresholds import Thresholds, choose_held_out

FORMAT = 4
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MATRICES = ("whitening", "loadings", "residual_whitening")
SCORES = ("good_scores", "pixel_scores", "good_peaks")  # of the thresholds
KEY = "padim"  # of the settings in the file's metadata
# what reading a file with damaged or foreign content raises
DAMAGE = (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class TrainedModel:
    """A fitted class and how its images are prepared.

    Attributes:
        class_name: what it was fitted to.
        arch: a key of BACKBONES.
        channels: indices into the concatenation of the network's layers.
        neighbourhood: over which features are averaged, as in FeatureExtractor.
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
    neighbourhood: int
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
    return count_numbers(gaussians.layout, layer_features, padim.n_train) * DTYPES[dtype].itemsize


def class_bytes(
    arch: str, channels: Sequence[int], image_size: tuple[int, int], n_train: int
) -> int:
    """Bytes that a fit keeps: the Gaussians, and in primal form the features of held-out images."""
    grids, features = chosen_layers(arch, channels, image_size)
    n_numbers = count_numbers(Layout(grids), features, n_train)
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
        raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    tensors = {
        name: tensor.to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in _to_tensors(model.padim.gaussians).items()
    }
    thresholds = asdict(model.thresholds)
    given = [name for name in SCORES if thresholds[name] is not None]
    tensors |= {name: torch.from_numpy(thresholds.pop(name)) for name in given}
    settings = {
        "format": FORMAT,
        "class_name": model.class_name,
        "arch": model.arch,
        "layers": LAYERS,
        "channels": list(model.channels),
        "neighbourhood": model.neighbourhood,
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "preprocessing": model.preprocessing._asdict(),
        "image_size": model.image_size,
        "eps": model.padim.gaussians.eps,
        "smoothing_sigma": SMOOTHING_SIGMA,
        "n_train": model.padim.n_train,
        "training_sha256": model.training_sha256,
        "grids": model.padim.gaussians.grids,
        "thresholds": thresholds,
        "thresholds_from": "training images, each scored by the Gaussians of all others",
    }
    settings["sha256"] = _sha256(settings, tensors)
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
        raise UserError(f"no file {path}; --model takes a .safetensors file of a run")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = settings["format"]
        if found == FORMAT:
            if settings.pop("sha256") != _sha256(settings, tensors):
                raise UserError("its content was changed")
            model = _to_model(settings, tensors, device)
            _check_fit(model)
            return model
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged or no model of this suite "
            f"({type(error).__name__}: {str(error)[:120]}); make it again with main.py"
        ) from error
    raise UserError(
        f"{path} has model format {found}, this version reads {FORMAT}; make it again with main.py"
    )


def _sha256(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all settings and of all tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy())
    return digest.hexdigest()


def _to_model(
    settings: Mapping[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> TrainedModel:
    scores = {name: tensors.pop(name).numpy() for name in SCORES if name in tensors}
    padim = PaDiM()
    padim.n_train = settings["n_train"]
    padim.gaussians = _to_gaussians(
        {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}, settings
    )
    return TrainedModel(
        class_name=settings["class_name"],
        arch=settings["arch"],
        channels=settings["channels"],
        neighbourhood=settings["neighbourhood"],
        weights_sha256=settings["weights_sha256"],
        precision=settings["precision"],
        preprocessing=Preprocessing(**settings["preprocessing"]),
        image_size=tuple(settings["image_size"]),
        training_sha256=settings["training_sha256"],
        padim=padim,
        thresholds=Thresholds(**(settings["thresholds"] | scores)),
    )


def _check_fit(model: TrainedModel) -> None:
    """Refuse settings that do not fit the network or the Gaussians.

    Raises:
        ValueError: if they do not.
    """
    for value, accepted in ((model.arch, BACKBONES), (model.precision, PRECISIONS)):
        if value not in accepted:
            raise UserError(f"it needs {value}, this version has {', '.join(accepted)}")
    gaussians = model.padim.gaussians
    found = gaussians.grids, [mean.shape[2] for mean in gaussians.means]
    if found != chosen_layers(model.arch, model.channels, model.image_size):
        raise UserError(f"its Gaussians do not fit its channels of {model.arch} and its image size")


def _to_tensors(gaussians: Gaussians) -> dict[str, Tensor]:
    tensors = {name: getattr(gaussians, name) for name in MATRICES}
    tensors |= {f"mean.{i}": mean for i, mean in enumerate(gaussians.means)}
    return tensors | {f"samples.{i}": samples for i, samples in enumerate(gaussians.samples)}


def _to_gaussians(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Gaussians:
    def numbered(name: str) -> list[Tensor]:
        return [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.")]

    return Gaussians(
        layout=Layout(tuple(tuple(grid) for grid in settings["grids"])),
        means=numbered("mean"),
        samples=numbered("samples"),
        eps=settings["eps"],
        **{name: tensors[name] for name in MATRICES},
    )
