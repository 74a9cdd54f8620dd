"""From the test images' anomaly maps to the numbers of a class."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from utils import metrics
from utils.metrics import SortedScores, UndefinedMetricError
from utils.padim import PaDiM, image_scores


class ScoredImages(NamedTuple):
    """Test images and what the model says of them.

    images (N, 3, H, W) uint8, labels (N,) int64, masks (N, H, W) bool, anomaly_maps (N, H, W)
    float32, image_scores (N,) float32.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    anomaly_maps: np.ndarray
    image_scores: np.ndarray


class RocCurve(NamedTuple):
    """False and true positive rates, each (n,) from 0 to 1, and the area under them."""

    fpr: np.ndarray
    tpr: np.ndarray
    auroc: float


class Evaluation(NamedTuple):
    """What the scores of a class are worth.

    A curve that is not defined is None, and notes says why. The threshold is the one of the best
    pixel F1 on these very test images: an oracle for the figures, not one to deploy.
    """

    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    threshold: float | None
    notes: list[str]

    @property
    def image_auroc(self) -> float | None:
        """Area under the image curve."""
        return self.image_curve and self.image_curve.auroc

    @property
    def pixel_auroc(self) -> float | None:
        """Area under the pixel curve."""
        return self.pixel_curve and self.pixel_curve.auroc


def score_images(model: PaDiM, batches: Iterable[list[Tensor]]) -> ScoredImages:
    """Score test images, batches of (images, labels, masks) as MVTecDataset gives them."""
    parts = [
        (images.numpy(), labels.numpy(), masks.numpy(), model.anomaly_maps(images))
        for images, labels, masks in batches
    ]
    images, labels, masks, anomaly_maps = map(np.concatenate, zip(*parts, strict=True))
    return ScoredImages(images, labels, masks, anomaly_maps, image_scores(anomaly_maps))


def evaluate(scored: ScoredImages, has_masks: bool) -> Evaluation:
    """ROC curves of images and of pixels pooled over all images, on raw scores.

    Args:
        scored: the test images of one class.
        has_masks: whether the defects are marked.
    """
    notes = []
    images = _sort(scored.labels, scored.image_scores, "image", notes)
    if has_masks:
        pixels = _sort(scored.masks, scored.anomaly_maps, "pixel", notes)
    else:
        pixels = None
        notes.append("pixel metrics need masks; there is no ground_truth folder")
    threshold = None if pixels is None else metrics.best_f1(pixels)[1]
    return Evaluation(_curve(images), _curve(pixels), threshold, notes)


def _sort(
    labels: np.ndarray, scores: np.ndarray, level: str, notes: list[str]
) -> SortedScores | None:
    try:
        return metrics.sort_scores(labels, scores, f"{level}s")
    except UndefinedMetricError as error:
        notes.append(f"{level} metrics: {error}")
        return None


def _curve(scores: SortedScores | None) -> RocCurve | None:
    return scores and RocCurve(*metrics.roc_curve(scores), metrics.auroc(scores))
