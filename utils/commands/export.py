"""A fitted class as one ONNX file, for programs without Python.

    python main.py export --model bottle.safetensors --onnx bottle.onnx

The graph takes `images` (B, 3, H, W) float32, H x W as fitted, prepared as in training: RGB in
[0, 1], minus the network's mean, divided by its std (ImageNet's). It gives `scores` (B,) and
`anomaly_maps` (B, H, W), both raw, and is compared with this suite before it is written. The file's
metadata say how to prepare an image and from which score on it is anomalous.
"""

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.backbone import BACKBONES, LAYERS
from utils.commands.options import add_option
from utils.detector import Detector
from utils.gaussian import Gaussians
from utils.model_file import TrainedModel, model_bytes
from utils.padim import enlarging, image_scores
from utils.patches import Cells, cells_on
from utils.system.errors import UserError
from utils.system.files import make_folder, replacing

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMAT = 1  # of the metadata
OPSET = 20  # torch's default; ONNX Runtime reads it since 1.17
TOLERANCE = 1e-3  # largest relative difference from the suite
BATCH_SIZES = (1, 3)  # that are compared
MAX_BYTES = 2 * 10**9  # of Gaussians: a single ONNX file ends at 2 GiB, and networks take 0.1 GB
CPU = torch.device("cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    for name, help in (("model", "fitted class (.safetensors)"), ("onnx", "file to write (.onnx)")):
        add_option(parser, name, help, type=Path, required=True, metavar="FILE")
    add_option(
        parser,
        "weights",
        "local state dict that the model was fitted with, instead of the published weights",
        type=Path,
        metavar="FILE",
    )


def run(args: argparse.Namespace) -> None:
    """Export the model, compare the file with the suite, then give it its name.

    Raises:
        ValueError: if packages are missing, the model cannot be exported, it was made with other
            weights, or the graph's results differ; nothing is written then.
        OSError: if a file cannot be read or written.
    """
    check_packages()
    check_path(args.onnx)
    detector = Detector.load(args.model, args.weights, "cpu")
    check_model(detector.model)
    with replacing(args.onnx) as temporary:
        metadata = describe_model(detector)
        export(ExportedModel(detector), detector.model.image_size, metadata, temporary)
        difference = compare(temporary, detector)
        if not difference <= TOLERANCE:
            raise UserError(
                f"ONNX Runtime differs from the suite by {difference:.1e}, relative; at most "
                f"{TOLERANCE:.0e} is accepted, so {args.onnx} was not written; try other "
                f"versions of {', '.join(PACKAGES)}"
            )
    print(f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.1f} MB, opset {OPSET}")
    print(f"largest relative difference from the suite: {difference:.1e}")


def check_packages() -> None:
    """Import the packages that only this command needs.

    Raises:
        ValueError: if one of them is not installed.
    """
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise UserError(
            f"export needs more packages ({error}); pip install {' '.join(PACKAGES)}"
        ) from error


def check_path(path: Path) -> None:
    """Refuse a path to which no ONNX file can be written; make its folder.

    Raises:
        ValueError: if it has another suffix or is a folder.
        OSError: if its folder cannot be written in.
    """
    if path.suffix != ".onnx":
        raise UserError(f"--onnx takes a file name that ends in .onnx; got {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another --onnx")
    make_folder(path.parent, "--onnx")


def check_model(model: TrainedModel) -> None:
    """Refuse a model that a single ONNX file of float32 cannot hold.

    Raises:
        ValueError: if the Gaussians are too large, or the network computes in less than float32.
    """
    if model.precision != "float32":
        raise UserError(
            f"the model was fitted with --precision {model.precision}, an ONNX file computes in "
            "float32; fit it again with --precision float32"
        )
    size = model_bytes(model.padim)
    if size > MAX_BYTES:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB, an ONNX file holds {MAX_BYTES / 1e9:.0f} GB; "
            "fit it to fewer or smaller images, or use a smaller --arch"
        )


class ExportedModel(nn.Module):
    """Scores and anomaly maps of images, all patches at once, in operators that ONNX has.

    Args:
        detector: on the CPU.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        model = detector.model
        self.extractor = detector.extractor
        self.gaussians = model.padim.gaussians
        self.grid = self.gaussians.grids[0]
        self.cells = cells_on(self.gaussians.layout, CPU)
        for name, *sides in zip(("rows", "columns"), model.image_size, self.grid, strict=True):
            self.register_buffer(name, enlarging(*sides, CPU))
        self.eval()
        # select_channels caches its indices: real ones, if it runs before the graph is traced
        detector.score_batch(np.zeros((1, 3, *model.image_size), dtype=np.uint8))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and anomaly maps (B, H, W) of normalised images (B, 3, H, W)."""
        stem, *stages = self.extractor.stages
        output, layers = stem(images), []
        for stage in stages:
            output = stage(output)
            layers.append(output)
        distances = measure(self.gaussians, self.cells, self.extractor.choose(layers))
        anomaly_maps = self.rows @ distances.mT.unflatten(1, self.grid) @ self.columns.mT
        return anomaly_maps.amax(dim=(1, 2)), anomaly_maps


def measure(gaussians: Gaussians, cells: Cells, layers: Sequence[Tensor]) -> Tensor:
    """The distances of Gaussians.distances without blocks: layers (B, d_l, h_l, w_l) to (P, B)."""
    patches = [layer.flatten(2).permute(2, 1, 0) for layer in layers]  # (P_l, d_l, B)
    centred = [z - mean.mT for z, mean in zip(patches, gaussians.means, strict=True)]
    finest, *coarser = centred if len(centred) > 1 else (None, *centred)

    def at_cells(values: Sequence[Tensor]) -> list[Tensor]:
        """Of each coarser layer the patches that the cells repeat."""
        return [z.index_select(0, index) for z, index in zip(values, cells.parents, strict=True)]

    if gaussians.is_primal:
        whitened = gaussians.whitening @ torch.cat(at_cells(coarser), dim=1)
        squared = whitened.square().sum(dim=1)
    else:
        products = [x @ z for x, z in zip(gaussians.samples, coarser, strict=True)]
        whitened = gaussians.whitening @ sum(at_cells(products))
        lengths = sum(at_cells([z.square().sum(dim=1) for z in coarser]))
        squared = ((lengths - whitened.square().sum(dim=1)) / gaussians.eps).clamp(min=0)
    squared = squared.index_select(0, cells.of_patches)
    if finest is not None:
        conditional_mean = gaussians.loadings.mT @ whitened.index_select(0, cells.of_patches)
        residual = gaussians.residual_whitening @ (finest - conditional_mean)
        squared = squared + residual.square().sum(dim=1)
    return squared.sqrt()


def describe_model(detector: Detector) -> dict[str, Any]:
    """What a program needs besides the graph, by the names in the file's metadata.

    Sizes are in pixels: of the shorter side after resizing and of the centre crop, 0 for neither,
    and [H, W] of the graph's images. Mean and std are of RGB in [0, 1]. Scores from a threshold on
    are anomalous. good_scores are those of held-out training images, ascending.
    """
    model, thresholds = detector.model, detector.model.thresholds
    ends = np.cumsum(BACKBONES[model.arch].layer_channels)
    layers = np.unique(np.searchsorted(ends, model.channels, side="right"))
    return {
        "format": FORMAT,
        "class_name": model.class_name,
        "arch": model.arch,
        "weights_sha256": model.weights_sha256,
        "layers": [LAYERS[i] for i in layers],
        "neighbourhood": model.neighbourhood,
        **model.preprocessing._asdict(),
        "image_size": model.image_size,
        "interpolation": "lanczos",
        "mean": detector.extractor.mean.flatten().tolist(),
        "std": detector.extractor.std.flatten().tolist(),
        "image_threshold": thresholds.image,
        "pixel_threshold": thresholds.pixel,
        "target_fpr": thresholds.target_fpr,
        "image_fpr": thresholds.image_fpr,
        "n_good_images": len(thresholds.good_scores),
        "good_scores": thresholds.good_scores.tolist(),
    }


def export(module: nn.Module, size: Sequence[int], metadata: Mapping[str, Any], path: Path) -> None:
    """Write the module's graph, for any number of images of H x W = size, as a single file.

    Each value of the metadata is written as JSON: ONNX has texts alone.
    """
    import onnx

    with warnings.catch_warnings():
        # torch 2.11 uses what it calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, *size),),  # with one image, B would be taken for a constant
            input_names=["images"],
            output_names=["scores", "anomaly_maps"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(model, path)


def compare(path: Path, detector: Detector) -> float:
    """The largest relative difference of the file's scores and maps from the suite's.

    It is measured on images of noise, and NaN if one of the values is.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = detector.extractor.mean.numpy(), detector.extractor.std.numpy()
    rng = np.random.default_rng(0)
    differences = []
    for batch_size in BATCH_SIZES:
        shape = (batch_size, 3, *detector.model.image_size)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        maps = detector.score_batch(images)
        normalised = (images.astype(np.float32) / 255 - mean) / std
        found = session.run(["scores", "anomaly_maps"], {"images": normalised})
        for values, expected in zip(found, (image_scores(maps), maps), strict=True):
            differences.append(np.abs(values / expected - 1).max())
    return float(np.max(differences))
