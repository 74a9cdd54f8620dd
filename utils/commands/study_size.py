"""The study of smaller models: what keeps the accuracy in fewer megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.commands.study_methods import (
    BEST_NEIGHBOURHOOD,
    ClassFeatures,
    Features,
    Row,
    Setup,
    Transform,
    principal_axes,
    time_inference,
)
from utils.evaluation import score_images
from utils.features import average_neighbours
from utils.gaussian import Gaussians
from utils.model_file import DTYPES, model_bytes

# the axes (C_l, d_l) onto which each layer is projected; None leaves the layer out
Axes = Sequence[Tensor | None]


def study_size(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Megabytes, milliseconds and metrics of smaller and smaller models."""
    pixels = np.concatenate([batch for _, batch, *_ in images.unseen])
    seed, channels = setup.first_draw
    average = images.choose(range(setup.n_channels), BEST_NEIGHBOURHOOD)
    if len(channels) < setup.n_channels:
        transform = images.choose(channels, BEST_NEIGHBOURHOOD)
        yield measure(setup, images, f"Rd{len(channels)}", transform, pixels)
    everything = [torch.eye(n) for n in setup.backbone.layer_channels]
    yield measure(setup, images, "all channels, float32", average, pixels, "float32")
    yield measure(setup, images, "all channels", average, pixels)
    for method, axes in projections(everything, images, seed).items():

        def transform(layers: Features, axes: Axes = axes) -> Features:
            return project_layers(average(layers), axes)

        yield measure(setup, images, method, transform, pixels)


def projections(everything: Axes, images: ClassFeatures, seed: int) -> dict[str, Axes]:
    """The axes of every method, by its name.

    Args:
        everything: the unit matrix of each layer.
        images: of the class, for principal components.
        seed: of what is drawn at random.
    """
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


@torch.inference_mode()
def project_layers(layers: Features, axes: Axes) -> Features:
    """Each layer (B, C_l, h_l, w_l) projected onto its axes: (B, d_l, h_l, w_l)."""
    return [
        torch.einsum("bchw,cd->bdhw", layer, onto.to(layer.device))
        for layer, onto in zip(layers, axes, strict=True)
        if onto is not None
    ]


def measure(
    setup: Setup,
    images: ClassFeatures,
    method: str,
    transform: Transform,
    pixels: np.ndarray,
    dtype: str = "float16",
) -> Row:
    """The row of a method.

    Args:
        setup: of the studies.
        images: of the class.
        method: its name.
        transform: of the features.
        pixels: of the test images, (N, 3, H, W) uint8.
        dtype: a key of DTYPES, to which the model is rounded.
    """
    model = images.fit(transform)
    model.gaussians = rounded(model.gaussians, DTYPES[dtype])
    unseen = ((transform(features), *rest) for features, *rest in images.unseen)
    size = images.test.image_size
    scored = score_images(model, unseen, len(images.test), size, keep_maps=True)
    n_features = sum(mean.shape[2] for mean in model.gaussians.means)
    _, map_seconds = time_inference(setup.extractor, model, transform, pixels)
    return {
        **images.row(method, n_features, None, images.evaluate(scored)),
        "model_bytes": model_bytes(model, dtype),
        "map_seconds": map_seconds,
    }


def rounded(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    """The Gaussians as they are read from a file in another dtype."""

    def round_all(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(round_all, value))
        return value.to(dtype).float() if isinstance(value, Tensor) else value

    return replace(gaussians, **{name: round_all(value) for name, value in vars(gaussians).items()})
