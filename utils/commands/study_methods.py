"""What the studies share, and those of layers, channels, neighbourhoods, networks and shrinkage.

Each study is a generator that yields the rows of its CSV file.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.loading import load_batches
from utils.alignment import Poses
from utils.backbone import ALL, BACKBONES, LAYERS, Channels, draw_channels
from utils.commands.study_tables import Row
from utils.evaluation import ScoredImages, evaluate, score_images
from utils.features import (
    FeatureExtractor,
    average_neighbours,
    concatenate,
    load_extractor,
    select_channels,
)
from utils.gaussian import Gaussians, fit_gaussians
from utils.settings import MethodSettings
from utils.shrinkage import AUTO
from utils.system.device import device_name
from utils.thresholds import score_maps
from utils.view import View, learn_view

DIMENSIONS = (100, 200)  # paper, table II
NEIGHBOURHOODS = (1, 3, 5)
BEST_NEIGHBOURHOOD = 3  # on four classes of MVTec AD, by the study of neighbourhoods
SHRINKAGES = (0.03, 0.1, 0.2, 0.3, 1.0, AUTO, None)

Features = list[Tensor]  # of each layer, finest first
Transform = Callable[[Features], Features]
Axes = Sequence[Tensor | None]  # (C_l, d_l) to project each layer onto; None leaves it out


@dataclass(frozen=True)
class Setup:
    """What the studies of all classes share.

    Attributes:
        settings: of the method, unless a study varies them.
        extractor: of all channels of a network, without an average over neighbours.
        draws: of channels, by seed. A study that needs one takes the first. The seeds are also
            those of the random versions of the images.
    """

    settings: MethodSettings
    extractor: FeatureExtractor
    draws: Mapping[int, Channels]

    @property
    def arch(self) -> str:
        """The network's name, a key of BACKBONES."""
        return self.extractor.arch

    @property
    def layer_channels(self) -> tuple[int, int, int]:
        """The numbers of channels of the three layers."""
        return BACKBONES[self.arch].layer_channels

    @property
    def all_channels(self) -> Channels:
        """All channels of the three layers."""
        return draw_channels(self.arch, n_features=ALL)

    @property
    def first_draw(self) -> tuple[int, Channels]:
        """The first seed and its draw of channels."""
        return next(iter(self.draws.items()))

    def load(self, images: Any) -> Iterator[list[np.ndarray]]:
        """The batches of a data set: images, labels and masks."""
        return load_batches(images, self.settings.batch_size, self.settings.num_workers)

    def choices(self) -> Iterator[tuple[str, int | None, Channels]]:
        """Title, seed and channels of the first draw, unless it has all, and of all channels."""
        seed, channels = self.first_draw
        if len(channels) < len(self.all_channels):
            yield f"Rd{len(channels)}", seed, channels
        yield "all channels", None, self.all_channels


def make_setup(settings: MethodSettings, draws: Mapping[int, Channels]) -> Setup:
    """The network of the settings and the draws, for all studies."""
    extractor = load_extractor(settings.arch, settings.weights, settings.device, settings.precision)
    print(f"{settings.arch} on {device_name(extractor.device)}")
    return Setup(settings, extractor, draws)


class Seen(NamedTuple):
    """The features of images, their poses if they were aligned, and H and W of what was seen."""

    layers: Features
    poses: Poses | None
    size: tuple[int, int]


class ClassFeatures:
    """The images of a class and their features, computed once for all studies that need them.

    Args:
        setup: of the studies.
        train, test: the images.
        view: how the network sees them; None takes or learns it as the settings say.
    """

    def __init__(self, setup: Setup, train: Any, test: Any, view: View | None = None) -> None:
        self.setup, self.train, self.test = setup, train, test
        self._view = view
        self._rows: dict[tuple, Row] = {}

    @cached_property
    def view(self) -> View:
        """How the network sees the images."""
        settings, view = self.setup.settings, View(self.train.preprocessing)
        if self._view is not None:
            return self._view
        if settings.align != "off":
            some = (images for images, *_ in self.setup.load(self.train.sample()))
            view, sentence = learn_view(some, settings.unaligned, settings.align)
            print(f"{self.test.class_name} is {sentence}")
        frame = "off" if view.alignment is None else "on"
        return view._replace(region=self.train.read_region(view.preprocessing, frame))

    @cached_property
    def good(self) -> list[Features]:
        """The layers of each batch of training images."""
        return [self.see(images).layers for images, *_ in self.setup.load(self.train)]

    @cached_property
    def unseen(self) -> list[tuple[Seen, np.ndarray, np.ndarray, np.ndarray]]:
        """Features, images, labels and masks of each batch of test images."""
        return [(self.see(images), images, *truth) for images, *truth in self.setup.load(self.test)]

    def see(self, images: np.ndarray) -> Seen:
        """What the network makes of images."""
        seen, poses = self.view.see(images)
        return Seen(self.setup.extractor(seen), poses, tuple(seen.shape[2:]))

    def selecting(self, channels: Channels, neighbourhood: int | None = None) -> Transform:
        """A function that selects channels and averages them, by default as the settings say."""
        size = neighbourhood or self.setup.settings.neighbourhood
        return lambda layers: average(select_channels(layers, channels), size)

    @torch.inference_mode()
    def fit(self, transform: Transform) -> Gaussians:
        """The Gaussians of the transformed features of the training images."""
        options = {"shrinkage": self.setup.settings.shrinkage, "region": self.view.region}
        return fit_gaussians(map(transform, self.good), len(self.train), **options)

    @torch.inference_mode()
    def make_maps(self, gaussians: Gaussians, transform: Transform, seen: Seen) -> np.ndarray:
        """The anomaly maps (B, H, W) of images."""
        return self.view.lay_back(
            gaussians.distances(transform(seen.layers)), seen.poses, seen.size
        )

    def score(self, transform: Transform, gaussians: Gaussians | None = None) -> ScoredImages:
        """The test images, scored on transformed features; None fits Gaussians to them."""
        gaussians = gaussians or self.fit(transform)
        maps = ((self.make_maps(gaussians, transform, seen), *rest) for seen, *rest in self.unseen)
        size, keep_maps = self.test.image_size, True
        return score_images(maps, len(self.test), size, keep_maps, score=self.image_scores)

    def image_scores(self, anomaly_maps: np.ndarray) -> np.ndarray:
        """The scores (B,) of images from their maps."""
        image_score = self.setup.settings.image_score
        return score_maps(anomaly_maps, image_score, self.view.seen(anomaly_maps))

    def row_of(
        self,
        method: str,
        channels: Channels,
        seed: int | None = None,
        neighbourhood: int | None = None,
    ) -> Row:
        """The row of PaDiM on what selecting selects; the same is evaluated only once."""
        key = channels.of_layers, neighbourhood or self.setup.settings.neighbourhood
        if key not in self._rows:
            scored = self.score(self.selecting(channels, neighbourhood))
            self._rows[key] = self.row(method, len(channels), scored)
        return self._rows[key] | {"method": method, "seed": seed}

    def row(self, method: str, n_features: int, scored: ScoredImages) -> Row:
        """The row of scored test images."""
        named = {"class_name": self.test.class_name, "method": method, "n_features": n_features}
        has_region = self.view.region is not None
        metrics = evaluate(scored, self.test.has_masks, has_region).metrics
        return {**named, "seed": None, **metrics}


def average(layers: Features, neighbourhood: int) -> Features:
    """All layers, averaged over neighbouring positions."""
    return [average_neighbours(layer, neighbourhood) for layer in layers]


def study_layers(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of the layers alone, of the sum of their maps and of their concatenation.

    As the paper's table I. Layer n: PaDiM on all channels of that layer, on its own grid; layers
    1+2+3: the sum of these three anomaly maps; concatenation: one Gaussian per patch over all
    three layers; Rdn: over n random channels, as in the main run.
    """
    total, everything = 0, images.setup.all_channels
    for number, layer in enumerate(LAYERS, start=1):
        of_layer = draw_channels(images.setup.arch, n_features=ALL, layers=[layer])
        scored = images.score(images.selecting(of_layer))
        yield images.row(f"layer {number}", len(of_layer), scored)
        total = total + scored.anomaly_maps
    summed = scored._replace(anomaly_maps=total, image_scores=images.image_scores(total))
    yield images.row("layers 1+2+3", len(everything), summed)
    yield images.row_of("concatenation", everything)
    seed, channels = images.setup.first_draw
    if len(channels) < len(everything):
        yield images.row_of(f"concatenation, Rd{len(channels)}", channels, seed)


def study_dimensions(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of random channels and of principal components.

    As the paper's table II. Rdn: n random channels, mean ± sd over the draws (the paper averages
    10); PCAn: the first n principal components of the class's training embeddings, all patches of
    all images together (the paper does not say over what it takes them).
    """
    setup, everything = images.setup, images.setup.all_channels
    yield images.row_of("all channels", everything)
    averaged = images.selecting(everything)
    axes = principal_axes(map(averaged, images.good))
    n_drawn = len(setup.first_draw[1])
    for n_features in sorted({*DIMENSIONS, n_drawn}):
        if n_features >= len(everything):
            continue
        for seed, channels in setup.draws.items():
            if n_features != n_drawn:
                channels = draw_channels(setup.arch, seed, n_features)
            yield images.row_of(f"Rd{n_features}", channels, seed)

        def transform(layers: Features, axes: Tensor = axes[:, :n_features]) -> Features:
            return project([concatenate(averaged(layers))], [axes])

        yield images.row(f"PCA{n_features}", n_features, images.score(transform))


@torch.inference_mode()
def principal_axes(batches: Iterable[Features]) -> Tensor:
    """Principal axes (C, C) of the embeddings of all images and patches, in orthonormal columns.

    They are eigenvectors of the covariance, by descending variance. It is summed image by image:
    scikit-learn's IncrementalPCA took 5 to 7 times as long, and no AUROC differed by more than
    1e-5. The mean is not needed, as a shift changes no Mahalanobis distance.
    """
    total, scatter, count = 0, 0, 0
    for layers in batches:
        for image in zip(*(layer.split(1) for layer in layers), strict=True):
            patches = concatenate(image)[0].flatten(1).double()  # (C, h * w)
            total = total + patches.sum(dim=1)
            scatter = scatter + patches @ patches.mT
            count += patches.shape[1]
    covariance = (scatter - torch.outer(total, total) / count) / (count - 1)
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


@torch.inference_mode()
def project(layers: Features, axes: Axes) -> Features:
    """Each layer (B, C_l, h_l, w_l) projected onto its axes: (B, d_l, h_l, w_l)."""
    return [
        torch.einsum("bchw,cd->bdhw", layer, onto.to(layer.device))
        for layer, onto in zip(layers, axes, strict=True)
        if onto is not None
    ]


def study_draws(images: ClassFeatures) -> Iterator[Row]:
    """All metrics of the main run for several draws of channels, a row for each seed.

    Rdn: n random channels, as many as in the main run; mean ± sd over the draws. The first draw is
    the main run's.
    """
    for seed, channels in images.setup.draws.items():
        yield images.row_of(f"Rd{len(channels)}", channels, seed)


def study_neighbourhood(images: ClassFeatures) -> Iterator[Row]:
    """The metrics with larger and larger neighbourhoods, of random and of all channels.

    K × K: each layer's output is averaged over K × K of its own positions, at the border over those
    that exist, as --neighbourhood K does; with the main run's channels (Rdn) and with all.
    """
    yield from vary_neighbourhood(images, NEIGHBOURHOODS)


def study_networks(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of the network of the setup, and of others whose weights are at hand.

    The network of --arch, and all whose published weights are installed or were downloaded before;
    each with the channels that it draws by default (Rdn) and with all, without and with an average
    over 3 × 3 positions.
    """
    setup, sizes = images.setup, (1, BEST_NEIGHBOURHOOD)
    yield from vary_neighbourhood(images, sizes, f"{setup.arch}, ")
    device, precision = str(setup.extractor.device), setup.extractor.precision
    for arch, network in BACKBONES.items():
        if arch != setup.arch and network.has_weights():
            extractor = load_extractor(arch, None, device, precision)
            draws = {seed: draw_channels(arch, seed) for seed in setup.draws}
            other = Setup(setup.settings, extractor, draws)
            of_other = ClassFeatures(other, images.train, images.test, images.view)
            yield from vary_neighbourhood(of_other, sizes, f"{arch}, ")


def study_shrinkage(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of shrinkage from small to large, of Ledoit and Wolf's, and of the paper's eps.

    All channels, averaged over 3 × 3 positions. Shrinkage R adds R times the mean variance of all
    features of the class to the diagonal of each covariance, as --shrinkage R does; eps adds 0.01,
    as the paper does. The column eps is what was added.
    """
    everything = images.setup.all_channels
    transform = images.selecting(everything, BEST_NEIGHBOURHOOD)
    for shrinkage in SHRINKAGES:
        with torch.inference_mode():
            features = map(transform, images.good)
            options = {"shrinkage": shrinkage, "region": images.view.region}
            gaussians = fit_gaussians(features, len(images.train), **options)
        method = "eps" if shrinkage is None else f"R = {shrinkage}"
        row = images.row(method, len(everything), images.score(transform, gaussians))
        yield row | {"shrinkage": gaussians.shrinkage, "eps": gaussians.eps}


def vary_neighbourhood(
    images: ClassFeatures, sizes: Sequence[int], prefix: str = ""
) -> Iterator[Row]:
    """Rows of the first draw and of all channels, averaged over neighbourhoods of these sizes."""
    for method, seed, channels in images.setup.choices():
        for size in sizes:
            yield images.row_of(f"{prefix}{method}, {size} × {size}", channels, seed, size)
