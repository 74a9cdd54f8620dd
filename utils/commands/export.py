"""A fitted class as one ONNX file, for programs without Python.

    python main.py export --model bottle.safetensors --onnx bottle.onnx

The graph takes `images` (B, 3, H, W) float32, H x W as fitted, prepared as in training: RGB in
[0, 1], minus the network's mean, divided by its std (ImageNet's). It gives `scores` (B,) and
`anomaly_maps` (B, H, W), both raw, and is compared with this suite before it is written. The file's
metadata say how to prepare an image and from which score on it is anomalous.
"""

import json
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.maps import enlarge
from utils.model_file import model_bytes
from utils.padim import PaDiM
from utils.settings import option
from utils.system.errors import UserError
from utils.system.files import make_folder, replacing
from utils.thresholds import score_maps

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMAT = 1  # of the metadata
OPSET = 20  # torch's default; ONNX Runtime reads it since 1.17
TOLERANCE = 1e-3  # largest relative difference from the suite
BATCH_SIZES = (1, 3)  # that are compared
MAX_BYTES = 2 * 10**9  # of Gaussians: a single ONNX file ends at 2 GiB, and networks take 0.1 GB


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export."""

    model: Path = option(
        None, "fitted class (.safetensors)", parse=Path, required=True, metavar="FILE"
    )
    onnx: Path = option(None, "file to write (.onnx)", parse=Path, required=True, metavar="FILE")
    weights: Path | None = option(
        None,
        "local state dict that the model was fitted with, instead of the published weights",
        parse=Path,
        metavar="FILE",
    )


def run(settings: Settings) -> None:
    """Export the model, compare the file with the suite, then give it its name."""
    check_packages()
    if settings.onnx.suffix != ".onnx":
        raise UserError(f"--onnx takes a file name that ends in .onnx; got {settings.onnx}")
    if settings.onnx.is_dir():
        raise UserError(f"{settings.onnx} is a folder; choose another --onnx")
    make_folder(settings.onnx.parent, "--onnx")
    model = PaDiM.load(settings.model, settings.weights, "cpu")
    check_model(model)
    with replacing(settings.onnx) as temporary:
        export(model, temporary)
        difference = compare(temporary, model)
        if not difference <= TOLERANCE:
            raise UserError(
                f"ONNX Runtime differs from the suite by {difference:.1e}, relative; at most "
                f"{TOLERANCE:.0e} is accepted, so {settings.onnx} was not written; try other "
                f"versions of {', '.join(PACKAGES)}"
            )
    print(f"{settings.onnx}: {settings.onnx.stat().st_size / 1e6:.1f} MB, opset {OPSET}")
    print(f"largest relative difference from the suite: {difference:.1e}")


def check_packages() -> None:
    """Import the packages that only this command needs."""
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise UserError(
            f"export needs more packages ({error}); pip install {' '.join(PACKAGES)}"
        ) from error


def check_model(model: PaDiM) -> None:
    """Refuse a model that a single ONNX file of float32 cannot hold."""
    precision = model.extractor.precision
    if precision != "float32":
        raise UserError(
            f"the model was fitted with --precision {precision}, an ONNX file computes in "
            "float32; fit it again with --precision float32"
        )
    size = model_bytes(model.gaussians)
    if size > MAX_BYTES:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB, an ONNX file holds {MAX_BYTES / 1e9:.0f} GB; "
            "fit it to fewer or smaller images, or use a smaller --arch"
        )


def export(model: PaDiM, path: Path) -> None:
    """Write the model's graph, for any number of images, and its metadata as a single file."""
    import onnx

    with warnings.catch_warnings():
        # torch 2.11 uses what it calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            ExportedModel(model),
            # with one image, B would be taken for a constant
            (torch.zeros(2, 3, *model.image_size),),
            input_names=["images"],
            output_names=["scores", "anomaly_maps"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )
    # ONNX has texts alone: each value is written as JSON
    metadata = {name: json.dumps(value) for name, value in make_metadata(model).items()}
    proto = program.model_proto  # a new one each time it is asked for
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)


class ExportedModel(nn.Module):
    """Scores and anomaly maps of normalised images, in operators that ONNX has.

    Args:
        model: on the CPU.
    """

    def __init__(self, model: PaDiM) -> None:
        super().__init__()
        self.model = model
        self.extractor = model.extractor
        self.eval()
        # indices of channels and cells are kept: real ones, if it runs before the graph is traced
        model.anomaly_maps(np.zeros((1, 3, *model.image_size), dtype=np.uint8))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and anomaly maps (B, H, W) of normalised images (B, 3, H, W)."""
        stem, *stages = self.extractor.stages
        output, layers = stem(images), []
        for stage in stages:
            output = stage(output)
            layers.append(output)
        gaussians, features = self.model.gaussians, self.extractor.choose(layers)
        # all patches are one block
        distances = gaussians.distances(features, block=gaussians.loadings.shape[0])
        anomaly_maps = enlarge(distances, self.model.image_size)
        return anomaly_maps.amax(dim=(1, 2)), anomaly_maps


def make_metadata(model: PaDiM) -> dict[str, Any]:
    """What a program needs besides the graph, by the names in the file's metadata.

    Sizes are in pixels: of the shorter side after resizing and of the centre crop, 0 for neither,
    and [H, W] of the graph's images. Mean and std are of RGB in [0, 1]. Scores from a threshold on
    are anomalous. good_scores are those of held-out training images, ascending.
    """
    extractor, thresholds = model.extractor, model.thresholds
    return {
        "format": FORMAT,
        "class_name": model.class_name,
        "arch": model.arch,
        "weights_sha256": extractor.weights_sha256,
        "layers": extractor.channels.layers,
        "neighbourhood": extractor.neighbourhood,
        **model.preprocessing._asdict(),
        "image_size": model.image_size,
        "interpolation": "lanczos",
        "mean": extractor.mean.flatten().tolist(),
        "std": extractor.std.flatten().tolist(),
        "image_threshold": thresholds.image,
        "pixel_threshold": thresholds.pixel,
        "target_fpr": thresholds.target_fpr,
        "image_fpr": thresholds.image_fpr,
        "n_good_images": len(thresholds.good_scores),
        "good_scores": thresholds.good_scores.tolist(),
    }


def compare(path: Path, model: PaDiM) -> float:
    """The largest relative difference of the file's scores and maps from the suite's.

    It is measured on images of noise, and NaN if one of the values is.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = model.extractor.mean.numpy(), model.extractor.std.numpy()
    rng = np.random.default_rng(0)
    differences = []
    for batch_size in BATCH_SIZES:
        shape = (batch_size, 3, *model.image_size)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        maps = model.anomaly_maps(images)
        normalised = (images.astype(np.float32) / 255 - mean) / std
        found = session.run(["scores", "anomaly_maps"], {"images": normalised})
        for values, expected in zip(found, (score_maps(maps), maps), strict=True):
            differences.append(np.abs(values / expected - 1).max())
    return float(np.max(differences))
