"""A fitted class as one ONNX file, for programs without Python.

    python main.py export --model bottle.safetensors --onnx bottle.onnx

The graph takes `images` (B, 3, H, W) float32, H x W as fitted, prepared as in training: RGB in
[0, 1], minus the network's mean, divided by its std (ImageNet's). It gives `scores` (B,) and
`anomaly_maps` (B, H, W), both raw, and is compared with this suite before it is written.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.commands.options import add_option, make_folder
from utils.detector import Detector
from utils.features import LAYERS, FeatureExtractor, select_channels
from utils.gaussian import Gaussians
from utils.model_file import TrainedModel, model_bytes
from utils.padim import enlarging, image_scores
from utils.patches import Cells, Pyramid, cells_on
from utils.system.files import replacing

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20  # torch's default; ONNX Runtime reads it since 1.17
TOLERANCE = 1e-3  # largest relative difference from the suite
BATCH_SIZES = (1, 3)  # that are compared
MAX_BYTES = 2 * 10**9  # of Gaussians: a single ONNX file ends at 2 GiB, and networks take 0.1 GB
CPU = torch.device("cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
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
    """Export, compare, write.

    Raises:
        ValueError: if packages are missing, the model cannot be exported, its weights are others,
            or the graph's results differ; nothing is written then.
        OSError: if a file cannot be read or written.
    """
    check_packages()
    if args.onnx.suffix != ".onnx":
        raise ValueError(f"--onnx takes a file name that ends in .onnx; got {args.onnx}")
    if args.onnx.is_dir():
        raise ValueError(f"{args.onnx} is a folder; choose another --onnx")
    make_folder(args.onnx.parent, "--onnx")
    detector = Detector.load(args.model, args.weights, "cpu")
    extractor, model = detector.extractor, detector.model
    check_model(model)
    with replacing(args.onnx) as temporary:
        export(ExportedModel(extractor, model), model.image_size, temporary)
        difference = compare(temporary, extractor, model)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"ONNX Runtime differs from the suite by {difference:.1e}, relative; at most "
                f"{TOLERANCE:.0e} is accepted, so {args.onnx} was not written; try other "
                f"versions of {', '.join(PACKAGES)}"
            )
    print(f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.1f} MB, opset {OPSET}")
    print(f"largest relative difference from the suite: {difference:.1e}")


def check_packages() -> None:
    """Import what exporting needs beyond requirements.txt.

    Raises:
        ValueError: if some of it is not installed.
    """
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise ValueError(
            f"export needs more packages ({error}); pip install {' '.join(PACKAGES)}"
        ) from error


def check_model(model: TrainedModel) -> None:
    """Refuse what a single ONNX file of float32 cannot hold.

    Raises:
        ValueError: if the Gaussians are too large, or the network computes in less than float32.
    """
    if model.precision != "float32":
        raise ValueError(
            f"the model was fitted with --precision {model.precision}, an ONNX file computes in "
            "float32; fit it again with --precision float32"
        )
    size = model_bytes(model.padim)
    if size > MAX_BYTES:
        raise ValueError(
            f"the model has {size / 1e9:.1f} GB, an ONNX file holds {MAX_BYTES / 1e9:.0f} GB; "
            "fit it to fewer or smaller images, or use a smaller --arch"
        )


class ExportedModel(nn.Module):
    """Images to scores and anomaly maps, all patches at once, in operators that ONNX has.

    Args:
        extractor: of the model's network, on the CPU.
        model: on the CPU.
    """

    def __init__(self, extractor: FeatureExtractor, model: TrainedModel) -> None:
        super().__init__()
        self.stages = extractor.stages
        self.channels = model.padim.channels
        blank = np.zeros((1, 3, *model.image_size), dtype=np.uint8)
        grids = [layer.shape[2:] for layer in select_channels(extractor(blank), self.channels)]
        self.grid = tuple(grids[0])
        self.cells = cells_on(Pyramid.whole(grids), CPU)
        self.gaussians = model.padim.gaussians
        for name, *sides in zip(("rows", "columns"), model.image_size, self.grid, strict=True):
            self.register_buffer(name, enlarging(*sides, CPU))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and anomaly maps (B, H, W) of normalised images (B, 3, H, W)."""
        stem, *stages = self.stages
        output, features = stem(images), {}
        for name, stage in zip(LAYERS, stages, strict=True):
            output = features[name] = stage(output)
        # (B, d_l, h_l, w_l) to (h_l * w_l, d_l, B)
        layers = select_channels(features, self.channels)
        patches = [layer.flatten(2).permute(2, 1, 0) for layer in layers]
        distances = measure(self.gaussians, patches, self.cells).mT.unflatten(1, self.grid)
        anomaly_maps = self.rows @ distances @ self.columns.mT
        return anomaly_maps.amax(dim=(1, 2)), anomaly_maps


def measure(gaussians: Gaussians, patches: Sequence[Tensor], cells: Cells) -> Tensor:
    """As Gaussians.distances, of patches (P_l, d_l, B) per layer: (P, B)."""
    centred = [z - mean.mT for z, mean in zip(patches, gaussians.means, strict=True)]
    finest, *coarser = centred if len(centred) > 1 else (None, *centred)

    def repeat(layers: Sequence[Tensor]) -> list[Tensor]:
        return [z.index_select(0, own) for z, own in zip(layers, cells.parents, strict=True)]

    if gaussians.is_primal:
        whitened = gaussians.whitening @ torch.cat(repeat(coarser), dim=1)
        squared = whitened.square().sum(dim=1)
    else:
        products = [x @ z for x, z in zip(gaussians.samples, coarser, strict=True)]
        whitened = gaussians.whitening @ sum(repeat(products))
        lengths = sum(repeat([z.square().sum(dim=1) for z in coarser]))
        squared = ((lengths - whitened.square().sum(dim=1)) / gaussians.eps).clamp(min=0)
    squared = squared.index_select(0, cells.of_patches)
    if finest is not None:
        told = gaussians.loadings.mT @ whitened.index_select(0, cells.of_patches)
        residual = gaussians.residual_whitening @ (finest - told)
        squared = squared + residual.square().sum(dim=1)
    return squared.sqrt()


def export(module: nn.Module, size: Sequence[int], path: Path) -> None:
    """Write the module's graph, for any number of images of H x W = size, as a single file."""
    import onnx

    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, *size),),  # with one image, B would be taken for a constant
        input_names=["images"],
        output_names=["scores", "anomaly_maps"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        verbose=False,
    )
    onnx.save(program.model_proto, path)


def compare(path: Path, extractor: FeatureExtractor, model: TrainedModel) -> float:
    """The largest relative difference of the file's scores and maps from the suite's.

    Measured on images of noise. Not a number if one of the values is not.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    differences = []
    for batch_size in BATCH_SIZES:
        images = rng.integers(0, 256, (batch_size, 3, *model.image_size), dtype=np.uint8)
        maps = model.padim.anomaly_maps(extractor(images), model.image_size).numpy()
        normalised = (torch.from_numpy(images).float() / 255 - extractor.mean) / extractor.std
        results = session.run(["scores", "anomaly_maps"], {"images": normalised.numpy()})
        for found, expected in zip(results, (image_scores(maps), maps), strict=True):
            differences.append(np.abs(found / expected - 1).max())
    return float(np.max(differences))
