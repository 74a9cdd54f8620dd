"""The studies of what a model costs: time and memory, and accuracy in fewer megabytes.

Reference: Defard et al., arXiv 2011.08785, section V-D.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.commands.study_methods import (
    BEST_NEIGHBOURHOOD,
    Axes,
    ClassFeatures,
    Features,
    Transform,
    principal_axes,
    project,
)
from utils.commands.study_tables import Row
from utils.features import average_neighbours
from utils.gaussian import Gaussians
from utils.model_file import DTYPES, model_bytes

WARM_UP, REPEATS = 2, 15  # images, untimed and timed


def study_cost(images: ClassFeatures) -> Iterator[Row]:
    """Seconds of inference and bytes of the tensors that are kept.

    As the paper's tables VII and VIII. Time: medians over single images, after warm-up, without
    reading the file; the network with the alignment, if there is one; the map is distances,
    enlarging and smoothing. Memory: the tensors that
    inference needs, float32, 1 MB = 10⁶ bytes.

    The coarser layers' factor is kept once for all patches that share it; the finest layer's
    factor, given the coarser layers, is kept for each patch. Primal: factors of the covariance.
    Dual, where there are no more training images than coarser dimensions: of the inner products of
    the training embeddings. Both give the same distances.
    """
    network_bytes = sum(tensor.nbytes for tensor in images.setup.extractor.state_dict().values())
    for method, _, channels in images.setup.choices():
        transform = images.selecting(channels)
        gaussians = images.fit(transform)
        network_seconds, map_seconds = time_inference(images, gaussians, transform)
        yield {
            "class_name": images.test.class_name,
            "method": method,
            "n_features": len(channels),
            "n_train": len(images.train),
            "form": "primal" if gaussians.is_primal else "dual",
            "network_seconds": network_seconds,
            "map_seconds": map_seconds,
            "network_bytes": network_bytes,
            "gaussians_bytes": model_bytes(gaussians),
        }
        del gaussians  # free its memory before the next fit


def time_inference(
    images: ClassFeatures, gaussians: Gaussians, transform: Transform
) -> tuple[float, float]:
    """Median seconds of the network and of the anomaly map for one test image at a time."""
    device = images.setup.extractor.device
    pixels = np.concatenate([batch for _, batch, *_ in images.unseen])
    timed = []
    for i in range(WARM_UP + REPEATS):
        image = pixels[i % len(pixels), None]
        start = synchronised_time(device)
        seen = images.see(image)
        between = synchronised_time(device)
        images.make_maps(gaussians, transform, seen)
        timed.append((between - start, synchronised_time(device) - between))
    network_seconds, map_seconds = zip(*timed[WARM_UP:], strict=True)
    return median(network_seconds), median(map_seconds)


def synchronised_time(device: torch.device) -> float:
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def study_size(images: ClassFeatures) -> Iterator[Row]:
    """Megabytes, milliseconds and metrics of smaller and smaller models.

    All features averaged over 3 × 3 positions. Half, quarter: of the channels of each layer, drawn
    at random, or projected onto random orthogonal axes or onto the layer's principal components in
    the training images (all patches together). Each model was rounded to float16, as --save_dtype
    float16 saves it, unless the row says float32. Map: distances, enlarging and smoothing of one
    image, median. Efficient: no other method has a higher image ROCAUC in as few megabytes.
    """
    seed, channels = images.setup.first_draw
    average = images.selecting(images.setup.all_channels, BEST_NEIGHBOURHOOD)
    if len(channels) < len(images.setup.all_channels):
        drawn = images.selecting(channels, BEST_NEIGHBOURHOOD)
        yield size_row(images, f"Rd{len(channels)}", drawn)
    yield size_row(images, "all channels, float32", average, "float32")
    yield size_row(images, "all channels", average)
    for method, axes in projections(images, seed).items():

        def transform(layers: Features, axes: Axes = axes) -> Features:
            return project(average(layers), axes)

        yield size_row(images, method, transform)


def size_row(
    images: ClassFeatures, method: str, transform: Transform, dtype: str = "float16"
) -> Row:
    """The row of a method, of a model that is rounded to a dtype of DTYPES."""
    gaussians = rounded(images.fit(transform), DTYPES[dtype])
    n_features = sum(mean.shape[2] for mean in gaussians.means)
    scored = images.score(transform, gaussians)
    _, map_seconds = time_inference(images, gaussians, transform)
    return {
        **images.row(method, n_features, scored),
        "model_bytes": model_bytes(gaussians, dtype),
        "map_seconds": map_seconds,
    }


def rounded(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    """The Gaussians as they are read from a file in another dtype."""

    def round_all(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(round_all, value))
        return value.to(dtype).float() if isinstance(value, Tensor) else value

    return replace(gaussians, **{name: round_all(value) for name, value in vars(gaussians).items()})


def projections(images: ClassFeatures, seed: int) -> dict[str, Axes]:
    """The axes of every method, by its name; seed is of what is drawn at random."""
    everything = [torch.eye(n) for n in images.setup.layer_channels]
    generator = torch.Generator().manual_seed(seed)
    components = [layer_axes(images, layer) for layer in range(len(everything))]

    def drawn(axes: Tensor) -> Tensor:
        return axes[:, torch.randperm(len(axes), generator=generator)]

    def orthogonal(axes: Tensor) -> Tensor:
        return torch.linalg.qr(torch.randn(axes.shape, generator=generator))[0]

    def first(axes: Axes, share: int) -> Axes:
        return [layer[:, : layer.shape[1] // share] for layer in axes]

    _, *coarser = everything
    return {
        "layers 2+3": [None, *coarser],
        "layer 3": [None, None, coarser[-1]],
        "half, drawn by layer": first(list(map(drawn, everything)), 2),
        "half, orthogonal": first(list(map(orthogonal, everything)), 2),
        "half, PCA": first(components, 2),
        "quarter, PCA": first(components, 4),
        "layers 2+3, half, PCA": [None, *first(components[1:], 2)],
    }


def layer_axes(images: ClassFeatures, layer: int) -> Tensor:
    """Principal axes (C_l, C_l) of one layer of the averaged training features."""
    features = ([average_neighbours(layers[layer], BEST_NEIGHBOURHOOD)] for layers in images.good)
    return principal_axes(features)
