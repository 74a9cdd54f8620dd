"""What PaDiM owes to its layers, its channels and to aligned images, and what it costs, measured.

Every study is a generator: it yields one row of its CSV file after the other.

Reference: Defard et al., arXiv 2011.08785, sections IV-A (Rd-MVTec AD) and V.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.dataset import ImageDataset
from datasets.images import CROP, RESIZE, open_image, resize, to_rgb
from utils.backbone import BACKBONES, Backbone
from utils.evaluation import ScoredImages, evaluate, score_images
from utils.features import FeatureExtractor, concatenate
from utils.model_file import model_bytes
from utils.padim import PaDiM, image_scores
from utils.report.tables import COMPARED

DIMENSIONS = (100, 200)  # paper, table II
MAX_ANGLE = 10  # degrees (paper, section IV-A)
MARGIN = 24  # pixels; a corner of the 256-pixel square turned by 10 degrees looks 21 beyond it
WARM_UP, REPEATS = 2, 15  # images, untimed and timed

Features = Mapping[str, Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the studies of all classes share.

    Attributes:
        arch: a key of BACKBONES.
        extractor: its network.
        load: yields the batches of a data set.
        seeds: of the random channels and of the random versions of the images. Where a study
            needs only one draw of channels, it is the first.
    """

    arch: str
    extractor: FeatureExtractor
    load: Callable[[Any], Iterable[list[np.ndarray]]]
    seeds: Sequence[int]

    @property
    def backbone(self) -> Backbone:
        """The network's entry in BACKBONES."""
        return BACKBONES[self.arch]

    @property
    def n_channels(self) -> int:
        """Channels of the three layers together."""
        return sum(self.backbone.layer_channels)

    def draw(self, n_features: int, seed: int) -> list[int]:
        """Random channels; with the backbone's own n_features those of draw_channels."""
        draw = random.Random(seed)  # noqa: S311 (upstream draws with this generator)
        return draw.sample(range(self.n_channels), n_features)


class ClassFeatures:
    """The images of a class with the network's outputs, computed once for all studies."""

    def __init__(self, setup: Setup, train: ImageDataset, test: ImageDataset) -> None:
        self.train, self.test = train, test
        extractor, load = setup.extractor, setup.load
        self.good = [extractor(images) for images, _, _ in load(train)]
        self.unseen = [(extractor(images), images, *truth) for images, *truth in load(test)]
        self._known: dict[tuple[int, ...], Mapping[str, float | None]] = {}

    def fit(self, channels: Sequence[int]) -> PaDiM:
        """PaDiM on these channels of the concatenated layers."""
        return PaDiM(channels).fit(self.good, len(self.train))

    def score(self, channels: Sequence[int]) -> ScoredImages:
        """The test images scored by PaDiM on these channels."""
        return score_images(self.fit(channels), self.unseen, len(self.test), keep_maps=True)

    def measure(self, channels: Sequence[int]) -> Mapping[str, float | None]:
        """The metrics of these scores; what several studies look at is computed once."""
        key = tuple(channels)
        if key not in self._known:
            self._known[key] = self.evaluate(self.score(channels))
        return self._known[key]

    def evaluate(self, scored: ScoredImages) -> Mapping[str, float | None]:
        """The metrics of the test images' scores; one that is not defined is None."""
        return evaluate(scored, self.test.has_masks).metrics

    def score_projected(self, axes: Tensor) -> ScoredImages:
        """The test images scored by PaDiM on embeddings projected onto axes (C, d)."""
        model = PaDiM(range(axes.shape[1]))
        model.fit((project(features, axes) for features in self.good), len(self.train))
        unseen = ((project(features, axes), *rest) for features, *rest in self.unseen)
        return score_images(model, unseen, len(self.test), keep_maps=True)

    def row(
        self, method: str, n_features: int, seed: int | None, metrics: Mapping[str, float | None]
    ) -> Row:
        """A row of the CSV files of metrics."""
        return {
            "class_name": self.test.class_name,
            "method": method,
            "n_features": n_features,
            "seed": seed,
            **{metric: metrics[metric] for metric in COMPARED},
        }


def study_layers(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Correlation between layers (section V-A, table I).

    PaDiM on all channels of each layer alone, on its own grid; the sum of these three models'
    anomaly maps; and PaDiM on the concatenated layers, with all channels and with the first draw.
    """
    maps, first = [], 0
    for number, n_channels in enumerate(setup.backbone.layer_channels, start=1):
        alone = images.score(range(first, first + n_channels))
        yield images.row(f"layer {number}", n_channels, None, images.evaluate(alone))
        maps.append(alone.anomaly_maps)
        first += n_channels
    summed = images.evaluate(sum_maps(alone, maps))
    yield images.row("layers 1+2+3", first, None, summed)
    yield images.row("concatenation", first, None, images.measure(range(first)))
    n_features, seed = setup.backbone.n_features, setup.seeds[0]
    if n_features < first:
        metrics = images.measure(setup.draw(n_features, seed))
        yield images.row(f"concatenation, Rd{n_features}", n_features, seed, metrics)


def sum_maps(scored: ScoredImages, anomaly_maps: Sequence[np.ndarray]) -> ScoredImages:
    """The images with the sum of several models' maps; the image score is its maximum."""
    total = np.sum(anomaly_maps, axis=0)
    return scored._replace(anomaly_maps=total, image_scores=image_scores(total))


def study_dimensions(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Random channels against principal components (section V-A, table II)."""
    total = setup.n_channels
    yield images.row("all channels", total, None, images.measure(range(total)))
    sizes = [d for d in sorted({*DIMENSIONS, setup.backbone.n_features}) if d < total]
    axes = principal_axes(images.good)
    for n_features in sizes:
        for seed in setup.seeds:
            metrics = images.measure(setup.draw(n_features, seed))
            yield images.row(f"Rd{n_features}", n_features, seed, metrics)
        metrics = images.evaluate(images.score_projected(axes[:, :n_features]))
        yield images.row(f"PCA{n_features}", n_features, None, metrics)


@torch.inference_mode()
def principal_axes(batches: Iterable[Features]) -> Tensor:
    """Principal axes of the embeddings of all images and patches together.

    Args:
        batches: yields layer outputs, as FeatureExtractor gives them, C channels in all.

    Returns:
        (C, C) float32, orthonormal columns by falling variance. The mean is not needed: a shift
        changes no Mahalanobis distance.
    """
    total, scatter, count = 0, 0, 0
    for features in batches:
        layers = list(features.values())
        for i in range(len(layers[0])):
            image = concatenate([layer[i : i + 1] for layer in layers])
            patches = image[0].flatten(1).double()  # (C, h * w)
            total = total + patches.sum(dim=1)
            scatter = scatter + patches @ patches.mT
            count += patches.shape[1]
    covariance = (scatter - torch.outer(total, total) / count) / (count - 1)
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


@torch.inference_mode()
def project(features: Features, axes: Tensor) -> Features:
    """Embeddings (B, C, h, w) of the layers as a single layer (B, d, h, w) along axes (C, d)."""
    embeddings = concatenate(list(features.values()))
    return {"components": torch.einsum("bchw,cd->bdhw", embeddings, axes)}


def study_cost(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Inference time and memory (section V-D, tables VII and VIII).

    Seconds are medians over single images: of the network, and of the anomaly map (distances,
    enlarging and smoothing). Bytes are those of the tensors kept.
    """
    pixels = np.concatenate([batch for _, batch, *_ in images.unseen])
    total, n_features = setup.n_channels, setup.backbone.n_features
    draws = (
        {f"Rd{n_features}": setup.draw(n_features, setup.seeds[0])} if n_features < total else {}
    )
    for method, channels in {**draws, "all channels": range(total)}.items():
        model = images.fit(channels)
        network_seconds, map_seconds = time_inference(setup.extractor, model, pixels)
        yield {
            "class_name": images.test.class_name,
            "method": method,
            "n_features": len(channels),
            "n_train": len(images.train),
            "form": "primal" if model.gaussians.is_primal else "dual",
            "network_seconds": network_seconds,
            "map_seconds": map_seconds,
            "network_bytes": tensor_bytes(setup.extractor.state_dict().values()),
            "gaussians_bytes": model_bytes(model),
        }
        del model  # before the next fit takes its memory


def time_inference(
    extractor: FeatureExtractor, model: PaDiM, pixels: np.ndarray
) -> tuple[float, float]:
    """Median seconds of the network and of the anomaly map for one image at a time.

    Args:
        extractor: gives the features.
        model: fitted to them.
        pixels: (N, 3, H, W) uint8; taken in turn, the first WARM_UP untimed.
    """
    timed = []
    for i in range(WARM_UP + REPEATS):
        image = pixels[i % len(pixels), None]
        start = _now(extractor.device)
        features = extractor(image)
        between = _now(extractor.device)
        model.anomaly_maps(features, image.shape[2:])
        timed.append((between - start, _now(extractor.device) - between))
    return tuple(median(seconds) for seconds in zip(*timed[WARM_UP:], strict=True))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.nbytes for tensor in tensors)


def study_rotation(setup: Setup, images: ClassFeatures) -> Iterator[Row]:
    """Images that are not aligned (section V-C, table VI): Rd-MVTec AD against MVTec AD.

    A model is fitted and tested on each random version of the class, one per seed; all models
    have the channels of the first draw.
    """
    n_features = setup.backbone.n_features
    channels = setup.draw(n_features, setup.seeds[0])
    yield images.row("aligned", n_features, None, images.measure(channels))
    for seed in setup.seeds:
        train, test = RotatedDataset(images.train, seed), RotatedDataset(images.test, seed)
        good = (setup.extractor(batch, channels) for batch, _, _ in setup.load(train))
        model = PaDiM(channels).fit(good, len(train))
        unseen = (
            (setup.extractor(batch, channels), batch, *truth) for batch, *truth in setup.load(test)
        )
        metrics = images.evaluate(score_images(model, unseen, len(test), keep_maps=True))
        yield images.row("rotated", n_features, seed, metrics)


class Move(NamedTuple):
    """Degrees to turn the resized square counter-clockwise, then the corner of the crop in it."""

    angle: float
    left: int
    top: int


class RotatedDataset:
    """The images of a class, each turned and cropped at random with its mask, as in Rd-MVTec AD.

    The paper gives the angle (up to 10 degrees) and the crop (from 256 to 224 pixels), not what
    fills the corners: here the image is reflected at its border, as black corners would be
    something else to detect.

    Args:
        dataset: whose images and masks are moved.
        seed: of the version; with its class, split and name it fixes how an image is moved.
    """

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset = dataset
        self.class_name, self.split = dataset.class_name, dataset.split
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, CROP, CROP) uint8 RGB, its label and its mask (CROP, CROP) bool.

        Raises:
            ValueError: if the image or the mask cannot be read; the message names the file.
        """
        sample = self.dataset.samples[index]
        move = draw_move(f"{self.seed} {self.class_name} {self.split} {sample.name}")
        image = to_rgb(open_image(sample.path), sample.path)
        image = turn_and_crop(
            _square(image, Image.Resampling.LANCZOS), move, Image.Resampling.BICUBIC
        )
        mask = np.zeros((CROP, CROP), dtype=bool)
        for path in sample.mask_paths:
            nearest = Image.Resampling.NEAREST
            marked = _square(open_image(path).convert("RGB"), nearest)
            mask |= np.asarray(turn_and_crop(marked, move, nearest)).any(axis=2)
        return np.array(image).transpose(2, 0, 1), sample.label, mask


def draw_move(key: str) -> Move:
    """The move of an image, the same for the same key."""
    draw = random.Random(key)  # noqa: S311 (no secret)
    angle = draw.uniform(-MAX_ANGLE, MAX_ANGLE)
    return Move(angle, draw.randint(0, RESIZE - CROP), draw.randint(0, RESIZE - CROP))


def turn_and_crop(square: Image.Image, move: Move, resample: Image.Resampling) -> Image.Image:
    """A square RGB image of side RESIZE turned about its centre, then its crop of side CROP."""
    pad = (MARGIN, MARGIN)
    pixels = np.pad(np.asarray(square), (pad, pad, (0, 0)), mode="reflect")
    turned = Image.fromarray(pixels).rotate(move.angle, resample)
    left, top = MARGIN + move.left, MARGIN + move.top
    return turned.crop((left, top, left + CROP, top + CROP))


def _square(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The centre of side RESIZE of the image with its shorter side at RESIZE."""
    image = resize(image, RESIZE, resample)
    left, top = round((image.width - RESIZE) / 2), round((image.height - RESIZE) / 2)
    return image.crop((left, top, left + RESIZE, top + RESIZE))


def _now(device: torch.device) -> float:
    """The time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


METHODS = {
    "layers": study_layers,
    "dimensions": study_dimensions,
    "cost": study_cost,
    "rotation": study_rotation,
}
