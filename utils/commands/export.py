"""A fitted class as one ONNX file, for programs without Python.

    python main.py export --model bottle.safetensors --onnx bottle.onnx

The graph takes `images` (B, 3, H, W) float32, the window that the network saw, prepared as in
training: RGB in [0, 1], minus the network's mean, divided by its std (ImageNet's). It gives raw
`scores` (B,) and `anomaly_maps` (B, h, w) of the crop; that of an aligned model finds the parts
itself and gives their `poses` (B, 4) as well. It is compared with this suite before it is written.
The file's metadata say how to prepare an image and from which score on it is anomalous.
"""

import json
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.preprocessing import crop_place
from utils.alignment import Alignment, Poses, Search, to_image, to_part
from utils.model_file import model_bytes
from utils.padim import PaDiM
from utils.settings import option
from utils.system.errors import UserError
from utils.system.files import make_folder, replacing
from utils.thresholds import TOP, count_top

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMAT = 2  # of the metadata
OPSET = 20  # torch's default; ONNX Runtime reads it since 1.17
OUTPUTS = ["scores", "anomaly_maps", "poses"]
TOLERANCE = 1e-3  # largest relative difference from the suite
BATCH_SIZES = (1, 3)  # that are compared
MAX_BYTES = 2 * 10**9  # of Gaussians: a single ONNX file ends at 2 GiB, and networks take 0.1 GB


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export."""

    model: Path = option(None, "fitted class (.safetensors)", Path, "FILE", required=True)
    onnx: Path = option(None, "file to write (.onnx)", Path, "FILE", required=True)
    weights: Path | None = option(
        None,
        "local state dict that the model was fitted with, instead of the published weights",
        Path,
        "FILE",
    )


def run(settings: Settings) -> None:
    """Export the model, compare the file with the suite, then give it its name."""
    check_packages()
    if settings.onnx.suffix != ".onnx" or settings.onnx.is_dir():
        raise UserError(f"--onnx takes a file that ends in .onnx, no folder; got {settings.onnx}")
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
            (torch.zeros(2, 3, *model.window_size),),
            input_names=["images"],
            output_names=OUTPUTS[: 2 if model.view.alignment is None else 3],
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
    """Scores, anomaly maps and poses of normalised windows, in operators that ONNX has."""

    def __init__(self, model: PaDiM) -> None:
        super().__init__()
        self.model = model
        self.extractor = model.extractor
        alignment = model.view.alignment
        self.search = None if alignment is None else SearchBySums(alignment).find
        self.eval()
        # indices of channels and cells are kept: real ones, if it runs before the graph is traced
        model.anomaly_maps(np.zeros((1, 3, *model.window_size), dtype=np.uint8))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores (B,), maps (B, h, w) and poses (B, 4), if any, of images (B, 3, H, W)."""
        if self.search is None:
            return self.score(self.find_distances(images), None)
        mean, std = self.extractor.mean, self.extractor.std
        pixels = ((images * std + mean) * 255).round()
        poses = self.model.view.alignment.find_poses(pixels, self.search)
        distances = self.find_distances((to_part(pixels, poses) / 255 - mean) / std)
        return *self.score(distances, poses), torch.stack(poses, dim=1)

    def find_distances(self, images: Tensor) -> Tensor:
        """Distances (B, h, w) of the patches of normalised images as the network sees them."""
        stem, *stages = self.extractor.stages
        output, layers = stem(images), []
        for stage in stages:
            output = stage(output)
            layers.append(output)
        gaussians, features = self.model.gaussians, self.extractor.choose(layers)
        # all patches are one block
        return gaussians.distances(features, block=gaussians.loadings.shape[0])

    def score(self, distances: Tensor, poses: Poses | None) -> tuple[Tensor, Tensor]:
        """The scores (B,) and the maps (B, h, w) of the crop from distances and poses."""
        view = self.model.view
        anomaly_maps = view.to_crop(distances, poses, self.model.window_size)
        pixels = anomaly_maps.flatten(1)
        n = 1 if self.model.image_score == "max" else count_top(pixels.shape[1])
        highest = pixels.topk(n).values
        if n == 1 or view.region is None:
            return highest.mean(dim=1), anomaly_maps
        # of fewer pixels, as only those of the region count, which score more than 0
        n_top = (TOP * (pixels > 0).sum(dim=1, keepdim=True)).round().clamp(min=1)
        is_top = torch.arange(n) < n_top
        return (highest * is_top).sum(dim=1) / n_top[:, 0], anomaly_maps


class SearchBySums(Search):
    """A search for parts without FFT, as the exporter knows no complex numbers."""

    def __init__(self, alignment: Alignment) -> None:
        super().__init__(alignment.template, alignment.limits)
        sides = self.coarse_side, self.coarse_side
        self.windows, self.templates = (
            torch.fft.irfft2(spectra.conj(), sides)[:, None]
            for spectra in (self.window_spectra, self.template_spectra)
        )
        self.shifted = [
            slice(sides[0] + int(shifts[0]), 2 * sides[0] + int(shifts[-1]))
            for shifts in (self.rows, self.columns)
        ]

    def cross_correlate(self, small: Tensor) -> list[Tensor]:
        """As that of Search."""
        rows, columns = self.shifted
        periodic = small[:, None].repeat(1, 1, 3, 3)[:, :, rows, columns]
        pairs = (periodic, self.windows), (periodic.square(), self.windows)
        return [F.conv2d(*pair) for pair in (*pairs, (periodic, self.templates))]


def make_metadata(model: PaDiM) -> dict[str, Any]:
    """What a program needs besides the graph, by the names in the file's metadata.

    Sizes are in pixels: of the shorter side after resizing and of the centre crop, 0 for neither,
    and [height, width] of the graph's images (window) and of its maps (image). crop_place is [top,
    left] of the maps in the window. Mean and std are of RGB in [0, 1]. Scores from a threshold on
    are anomalous; a region of pixels from theirs on counts in an anomalous image, if one reaches
    the peak threshold. good_scores are those of held-out training images, ascending.
    """
    extractor, thresholds = model.extractor, model.thresholds
    as_it_is = model.preprocessing._replace(resize=0)
    return {
        "format": FORMAT,
        "class_name": model.class_name,
        "arch": model.arch,
        "weights_sha256": extractor.weights_sha256,
        "layers": extractor.channels.layers,
        "neighbourhood": extractor.neighbourhood,
        **model.preprocessing._asdict(),
        **model.describe(),
        "image_size": model.image_size,
        "window_size": model.window_size,
        "crop_place": crop_place(model.window_size[::-1], as_it_is)[:2],
        "image_score": model.image_score,
        "interpolation": "lanczos",
        "mean": extractor.mean.flatten().tolist(),
        "std": extractor.std.flatten().tolist(),
        "image_threshold": thresholds.image,
        "pixel_threshold": thresholds.pixel,
        "peak_threshold": thresholds.peak,
        "target_fpr": thresholds.target_fpr,
        "pixel_fpr": thresholds.pixel_fpr,
        "image_fpr": thresholds.image_fpr,
        "n_good_images": len(thresholds.good_scores),
        "good_scores": thresholds.good_scores.tolist(),
    }


def compare(path: Path, model: PaDiM) -> float:
    """The largest relative difference of the file's scores and maps from the suite's.

    NaN if one of the values is. The maps of an aligned model are compared at the graph's poses,
    relative to their highest, and the correlations with those that the suite reaches: rounding
    decides between poses that are equally good, also from one size of the suite's batches to
    another. Pixels at the edge of what an aligned image shows may be 0 in one of the maps.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = model.extractor.mean.numpy(), model.extractor.std.numpy()
    rng = np.random.default_rng(0)
    differences = []
    for batch_size in BATCH_SIZES:
        images = draw_images(model, batch_size, rng)
        normalised = (images.astype(np.float32) / 255 - mean) / std
        scores, maps, *poses = session.run(None, {"images": normalised})
        if poses:
            expected, correlations = maps_at(model, images, Poses(*torch.tensor(poses[0]).mT))
            differences.append(np.abs(poses[0][:, 3] - correlations).max())
        else:
            expected = model.anomaly_maps(images)
        scale = expected.max() if poses else np.where(expected, expected, 1)
        where = (maps != 0) & (expected != 0)
        differences.append(np.abs((maps - expected) / scale).max(where=where, initial=0))
        differences.append(np.abs(scores / model.image_scores(expected) - 1).max())
    return float(np.max(differences))


def maps_at(model: PaDiM, images: np.ndarray, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    """The suite's maps of windows at given poses, and the correlations of the poses it finds."""
    pixels = torch.from_numpy(images)
    with torch.inference_mode():
        distances = model.gaussians.distances(model.extractor(to_part(pixels, poses)))
        correlations = model.view.alignment.find_poses(pixels).correlation
    return model.view.lay_back(distances, poses, model.window_size), correlations.numpy()


def draw_images(model: PaDiM, n: int, rng: np.random.Generator) -> np.ndarray:
    """Windows (n, 3, H, W) uint8 of noise, which lies over the part if the model is aligned."""
    noise = rng.integers(0, 256, (n, 3, *model.window_size), dtype=np.uint8)
    alignment = model.view.alignment
    if alignment is None:
        return noise
    start, extent, top, bottom, left, right = alignment.range
    low, size = (start, top, left), (extent, bottom - top, right - left)
    poses = torch.from_numpy(rng.uniform(low, np.add(low, size), (n, 3))).float().unbind(1)
    template = F.interpolate(alignment.template[None, None], model.window_size)[:, 0]
    parts = to_image(template.expand(n, -1, -1), Poses(*poses, poses[0]))
    return (0.9 * parts[:, None].numpy() + 0.1 * noise).astype(np.uint8)
