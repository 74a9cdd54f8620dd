"""The studies of layers, channels, neighbourhoods, networks, cost, and images not aligned.

Each study is a generator that yields the rows of its CSV file.

Reference: Defard et al., arXiv 2011.08785, sections IV-A (Rd-MVTec AD) and V.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.dataset import ImageDataset
from datasets.preprocessing import CROP, RESIZE
from utils.backbone import BACKBONES, Backbone, draw_channels
from utils.evaluation import ScoredImages, evaluate, score_images
from utils.features import (
    FeatureExtractor,
    average_neighbours,
    concatenate,
    load_extractor,
    select_channels,
)
from utils.metrics import METRICS
from utils.model_file import model_bytes
from utils.padim import PaDiM, image_scores
from utils.report.tables import COMPARED

DIMENSIONS = (100, 200)  # paper, table II
NEIGHBOURHOODS = (1, 3, 5)
BEST_NEIGHBOURHOOD = 3  # on four classes of MVTec AD, by the study of neighbourhoods
MAX_ANGLE = 10  # degrees (paper, section IV-A)
MARGIN = 24  # pixels; a corner of the 256-pixel square turned by 10 degrees looks 21 beyond it
WARM_UP, REPEATS = 2, 15  # images, untimed and timed

Features = list[Tensor]  # of each layer, finest first
Transform = Callable[[Features], Features]
Metrics = Mapping[str, float | None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the studies of all classes share.

    Attributes:
        arch: a key of BACKBONES.
        extractor: of all channels of that network, without an average over neighbours.
        load: yields the batches of a data set.
        draws: of channels, by seed. A study that needs one takes the first. The seeds are also
            those of the random versions of the images.
        neighbourhood: over which features are averaged, unless a study varies it.
    """

    arch: str
    extractor: FeatureExtractor
    load: Callable[[Any], Iterable[list[np.ndarray]]]
    draws: Mapping[int, list[int]]
    neighbourhood: int = 1

    @property
    def backbone(self) -> Backbone:
        """The network's entry in BACKBONES."""
        return BACKBONES[self.arch]

    @property
    def n_channels(self) -> int:
        """The number of channels of the three layers together."""
        return sum(self.backbone.layer_channels)

    @property
    def first_draw(self) -> tuple[int, list[int]]:
        """The first seed and its draw of channels."""
        return next(iter(self.draws.items()))


class ClassFeatures:
    """The images of a class and their features, computed once for all studies.

    Args:
        setup: of the studies.
        train, test: the images.
        channels: the channels to keep, as indices into the concatenated layers; None keeps all.

    Attributes:
        train, test: as given.
        good: the features of the training images, a list of layers for each batch.
        unseen: features, images, labels and masks of the test images, for each batch.
    """

    def __init__(
        self, setup: Setup, train: Any, test: Any, channels: Sequence[int] | None = None
    ) -> None:
        def extract(images: np.ndarray) -> Features:
            layers = setup.extractor(images)
            return layers if channels is None else select_channels(layers, channels)

        self.setup, self.train, self.test = setup, train, test
        self.good = [extract(images) for images, _, _ in setup.load(train)]
        self.unseen = [(extract(images), images, *truth) for images, *truth in setup.load(test)]
        self._measured: dict[tuple, Metrics] = {}

    def choose(self, channels: Sequence[int], neighbourhood: int | None = None) -> Transform:
        """A function that selects channels and averages them, by default as the setup says."""
        size = self.setup.neighbourhood if neighbourhood is None else neighbourhood
        return partial(choose, channels=channels, neighbourhood=size)

    def fit(self, transform: Transform) -> PaDiM:
        """PaDiM fitted to the transformed features of the training images."""
        return PaDiM().fit(map(transform, self.good), len(self.train), held_out=())

    def score(self, transform: Transform) -> ScoredImages:
        """The test images, scored by PaDiM on transformed features."""
        unseen = ((transform(features), *rest) for features, *rest in self.unseen)
        size = self.test.image_size
        return score_images(self.fit(transform), unseen, len(self.test), size, keep_maps=True)

    def evaluate(self, scored: ScoredImages) -> Metrics:
        """The metrics of the scored test images; None where one is undefined."""
        return evaluate(scored, self.test.has_masks).metrics

    def measure(self, channels: Sequence[int], neighbourhood: int | None = None) -> Metrics:
        """The metrics of PaDiM on what choose selects; the same is evaluated only once."""
        transform = self.choose(channels, neighbourhood)
        key = (*channels, transform.keywords["neighbourhood"])
        if key not in self._measured:
            self._measured[key] = self.evaluate(self.score(transform))
        return self._measured[key]

    def row(
        self,
        method: str,
        n_features: int,
        seed: int | None,
        metrics: Metrics,
        columns: Iterable[str] = COMPARED,
    ) -> Row:
        """A row with the metrics that columns names."""
        return {
            "class_name": self.test.class_name,
            "method": method,
            "n_features": n_features,
            "seed": seed,
            **{metric: metrics[metric] for metric in columns},
        }


def choose(layers: Features, channels: Sequence[int], neighbourhood: int = 1) -> Features:
    """The channels of all layers, averaged over neighbouring positions."""
    chosen = select_channels(layers, channels)
    return [average_neighbours(layer, neighbourhood) for layer in chosen]


def study_layers(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Correlation between layers (section V-A, table I).

    PaDiM runs on all channels of each layer alone, on that layer's grid. Then the three anomaly
    maps are summed. Last, PaDiM runs on the concatenated layers, with all channels and with the
    first draw.
    """
    maps, first = [], 0
    for number, n_channels in enumerate(setup.backbone.layer_channels, start=1):
        scored = images.score(images.choose(range(first, first + n_channels)))
        yield images.row(f"layer {number}", n_channels, None, images.evaluate(scored))
        maps.append(scored.anomaly_maps)
        first += n_channels
    summed = images.evaluate(sum_maps(scored, maps))
    yield images.row("layers 1+2+3", first, None, summed)
    yield images.row("concatenation", first, None, images.measure(range(first)))
    seed, channels = setup.first_draw
    n_features = len(channels)
    if n_features < first:
        metrics = images.measure(channels)
        yield images.row(f"concatenation, Rd{n_features}", n_features, seed, metrics)


def sum_maps(scored: ScoredImages, anomaly_maps: Sequence[np.ndarray]) -> ScoredImages:
    """The images with the sum of several models' maps; the image score is its maximum."""
    total = np.sum(anomaly_maps, axis=0)
    return scored._replace(anomaly_maps=total, image_scores=image_scores(total))


def study_dimensions(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Random channels against principal components (section V-A, table II)."""
    total = setup.n_channels
    yield images.row("all channels", total, None, images.measure(range(total)))
    averaged = images.choose(range(total))
    axes = principal_axes(map(averaged, images.good))
    n_drawn = len(setup.first_draw[1])
    for n_features in sorted({*DIMENSIONS, n_drawn}):
        if n_features >= total:
            continue
        for seed, channels in setup.draws.items():
            if n_features != n_drawn:
                channels = draw_channels(setup.arch, seed, n_features)
            yield images.row(f"Rd{n_features}", n_features, seed, images.measure(channels))
        components = axes[:, :n_features]
        scored = images.score(lambda layers, axes=components: project(averaged(layers), axes))
        yield images.row(f"PCA{n_features}", n_features, None, images.evaluate(scored))


@torch.inference_mode()
def principal_axes(batches: Iterable[Features]) -> Tensor:
    """Principal axes of the embeddings of all images and patches together.

    They are eigenvectors of the covariance, which is summed image by image. scikit-learn's
    IncrementalPCA took 5 to 7 times as long, and no AUROC differed by more than 1e-5.

    Args:
        batches: features with C channels in all.

    Returns:
        (C, C) float32, orthonormal columns by descending variance. The mean is not needed: a shift
        changes no Mahalanobis distance.
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
def project(layers: Features, axes: Tensor) -> Features:
    """The embeddings (B, C, h, w) projected onto axes (C, d): a single layer (B, d, h, w)."""
    return [torch.einsum("bchw,cd->bdhw", concatenate(layers), axes)]


def study_draws(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """All metrics of the main run for several draws of channels, a row for each seed."""
    for seed, channels in setup.draws.items():
        n_features = len(channels)
        yield images.row(f"Rd{n_features}", n_features, seed, images.measure(channels), METRICS)


def study_neighbourhood(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Features averaged over larger and larger neighbourhoods, of random and of all channels."""
    for method, seed, channels in chosen_channels(setup):
        for neighbourhood in NEIGHBOURHOODS:
            metrics = images.measure(channels, neighbourhood)
            title = f"{method}, {neighbourhood} × {neighbourhood}"
            yield images.row(title, len(channels), seed, metrics)


def study_networks(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """The network of the setup, and the others whose weights are at hand."""
    yield from _study_network(setup, images)
    for arch, network in BACKBONES.items():
        if arch != setup.arch and network.has_weights():
            extractor = load_extractor(
                arch, None, str(setup.extractor.device), setup.extractor.precision
            )
            draws = {seed: draw_channels(arch, seed) for seed in setup.draws}
            other = replace(setup, arch=arch, extractor=extractor, draws=draws)
            yield from _study_network(other, ClassFeatures(other, images.train, images.test))


def _study_network(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    for method, seed, channels in chosen_channels(setup):
        for neighbourhood in (1, BEST_NEIGHBOURHOOD):
            metrics = images.measure(channels, neighbourhood)
            title = f"{setup.arch}, {method}, {neighbourhood} × {neighbourhood}"
            yield images.row(title, len(channels), seed, metrics)


def chosen_channels(setup: Setup) -> Iterator[tuple[str, int | None, Sequence[int]]]:
    """Title, seed and channels of the first draw, unless it has all, and of all channels."""
    seed, channels = setup.first_draw
    if len(channels) < setup.n_channels:
        yield f"Rd{len(channels)}", seed, channels
    yield "all channels", None, range(setup.n_channels)


def study_cost(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Inference time and memory (section V-D, tables VII and VIII).

    Seconds are medians over single images: of the network, and of the anomaly map (distances,
    enlarging and smoothing). Bytes are those of the tensors kept.
    """
    pixels = np.concatenate([batch for _, batch, *_ in images.unseen])
    for method, _, channels in chosen_channels(setup):
        transform = images.choose(channels)
        model = images.fit(transform)
        network_seconds, map_seconds = time_inference(setup.extractor, model, transform, pixels)
        yield {
            "class_name": images.test.class_name,
            "method": method,
            "n_features": len(channels),
            "n_train": len(images.train),
            "form": "primal" if model.gaussians.is_primal else "dual",
            "network_seconds": network_seconds,
            "map_seconds": map_seconds,
            "network_bytes": sum(tensor.nbytes for tensor in setup.extractor.state_dict().values()),
            "gaussians_bytes": model_bytes(model),
        }
        del model  # free its memory before the next fit


def time_inference(
    extractor: FeatureExtractor, model: PaDiM, transform: Transform, pixels: np.ndarray
) -> tuple[float, float]:
    """Median seconds of the network and of the anomaly map for one image at a time.

    Args:
        extractor: of all channels.
        model: fitted to transformed features.
        transform: of features.
        pixels: (N, 3, H, W) uint8; taken in turn, the first WARM_UP untimed.
    """
    timed = []
    for i in range(WARM_UP + REPEATS):
        image = pixels[i % len(pixels), None]
        start = _synchronised_time(extractor.device)
        layers = extractor(image)
        between = _synchronised_time(extractor.device)
        model.anomaly_maps(transform(layers), image.shape[2:])
        timed.append((between - start, _synchronised_time(extractor.device) - between))
    network_seconds, map_seconds = zip(*timed[WARM_UP:], strict=True)
    return median(network_seconds), median(map_seconds)


def _synchronised_time(device: torch.device) -> float:
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def study_rotation(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Images that are not aligned (section V-C, table VI): Rd-MVTec AD against MVTec AD.

    One model is fitted and tested for each seed, on a random version of the images. All models
    have the channels of the first draw.
    """
    _, channels = setup.first_draw
    n_features = len(channels)
    yield images.row("aligned", n_features, None, images.measure(channels))
    for seed in setup.draws:
        train, test = RotatedDataset(images.train, seed), RotatedDataset(images.test, seed)
        # only the chosen channels are kept, so all of them are measured
        metrics = ClassFeatures(setup, train, test, channels).measure(range(n_features))
        yield images.row("rotated", n_features, seed, metrics)


class Move(NamedTuple):
    """Degrees to turn the resized square counter-clockwise, then the corner of the crop in it."""

    angle: float
    left: int
    top: int


class RotatedDataset:
    """The images of a class, each turned and cropped at random with its mask, as in Rd-MVTec AD.

    The paper gives the angle (up to 10 degrees) and the crop (from 256 to 224 pixels), not what
    fills the corners. Here the image is reflected at its border, because black corners would be
    one more thing to detect.

    Args:
        dataset: whose images and masks are turned.
        seed: of this version; together with class, split and name it fixes an image's move.
    """

    image_size = (CROP, CROP)

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.class_name, self.split = dataset.class_name, dataset.split
        self.has_masks = dataset.has_masks
        self.seed = seed
        preprocessing = dataset.preprocessing._replace(resize=RESIZE, crop=RESIZE)
        self._squares = replace(dataset, preprocessing=preprocessing)

    def __len__(self) -> int:
        return len(self._squares)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, CROP, CROP) uint8 RGB, its label and its mask (CROP, CROP) bool.

        Raises:
            ValueError: if the image or the mask cannot be read; the message names the file.
        """
        image, label, mask = self._squares[index]
        name = self._squares.samples[index].name
        move = draw_move(f"{self.seed} {self.class_name} {self.split} {name}")
        image = turn_and_crop(image.transpose(1, 2, 0), move, Image.Resampling.BICUBIC)
        mask = turn_and_crop(mask.astype(np.uint8), move, Image.Resampling.NEAREST)
        return image.transpose(2, 0, 1), label, mask.astype(bool)


def draw_move(key: str) -> Move:
    """A random move; the same key always gives the same."""
    draw = random.Random(key)  # noqa: S311 (no secret)
    angle = draw.uniform(-MAX_ANGLE, MAX_ANGLE)
    return Move(angle, draw.randint(0, RESIZE - CROP), draw.randint(0, RESIZE - CROP))


def turn_and_crop(square: np.ndarray, move: Move, resample: Image.Resampling) -> np.ndarray:
    """A square of side RESIZE turned about its centre, then its crop of side CROP.

    Args:
        square: (RESIZE, RESIZE, 3) or (RESIZE, RESIZE) uint8.
        move: angle and corner of the crop.
        resample: how the turned pixels are interpolated.
    """
    pad = [(MARGIN, MARGIN)] * 2 + [(0, 0)] * (square.ndim - 2)
    padded = Image.fromarray(np.pad(square, pad, mode="reflect"))
    left, top = MARGIN + move.left, MARGIN + move.top
    turned = padded.rotate(move.angle, resample).crop((left, top, left + CROP, top + CROP))
    return np.asarray(turned)


METHODS = {
    "layers": study_layers,
    "dimensions": study_dimensions,
    "draws": study_draws,
    "neighbourhood": study_neighbourhood,
    "networks": study_networks,
    "cost": study_cost,
    "rotation": study_rotation,
}
