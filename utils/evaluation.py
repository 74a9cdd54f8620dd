"""From the test images' anomaly maps to the numbers of a class."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from datasets.mvtec import UNLABELLED
from utils import metrics
from utils.metrics import RocCurve, SortedScores, UndefinedMetricError
from utils.padim import PaDiM, image_scores
from utils.results import METRICS


class ScoredImages(NamedTuple):
    """Test images and what a model says of them.

    images (N, 3, H, W) uint8, labels (N,) int64 as in Sample, masks (N, H, W) bool, anomaly_maps
    (N, H, W) float32, image_scores (N,) float32.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    anomaly_maps: np.ndarray
    image_scores: np.ndarray


class Evaluation(NamedTuple):
    """What the scores of a class are worth.

    A curve, a threshold or a metric (by the keys of METRICS) that is not defined is None, and
    notes says why. The thresholds are those of the best F1 on these very test images: oracles for
    the figures, not thresholds to deploy.
    """

    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    image_threshold: float | None
    pixel_threshold: float | None
    metrics: Mapping[str, float | None]
    notes: list[str]


def score_images(
    model: PaDiM,
    batches: Iterable[tuple[Mapping[str, Tensor], np.ndarray, np.ndarray, np.ndarray]],
) -> ScoredImages:
    """Score test images.

    Args:
        model: fitted.
        batches: yields features, as FeatureExtractor gives them, and images, labels and masks, as
            ImageDataset gives them.
    """
    parts = [
        (images, labels, masks, model.anomaly_maps(features, images.shape[2:]))
        for features, images, labels, masks in batches
    ]
    images, labels, masks, anomaly_maps = map(np.concatenate, zip(*parts, strict=True))
    return ScoredImages(images, labels, masks, anomaly_maps, image_scores(anomaly_maps))


def evaluate(scored: ScoredImages, has_masks: bool) -> Evaluation:
    """Metrics of images, and of pixels pooled over all images, on raw scores.

    Args:
        scored: the test images of one class.
        has_masks: whether the defects are marked.
    """
    notes: list[str] = []
    values = dict.fromkeys(METRICS)
    if (scored.labels == UNLABELLED).any():
        images = None
        notes.append("image metrics need labels; the test images are in no folders that tell")
    else:
        images = _sort(scored.labels, scored.image_scores, "image", notes)
    if has_masks:
        pixels = _sort(scored.masks, scored.anomaly_maps, "pixel", notes)
    else:
        pixels = None
        notes.append("pixel metrics need masks; there is no ground_truth folder")
    if pixels is not None:
        values["aupro"] = metrics.aupro(scored.masks, scored.anomaly_maps, pixels=pixels)
    image_curve, image_threshold = _evaluate_level(images, "image", values)
    pixel_curve, pixel_threshold = _evaluate_level(pixels, "pixel", values)
    return Evaluation(image_curve, pixel_curve, image_threshold, pixel_threshold, values, notes)


def _sort(
    labels: np.ndarray, scores: np.ndarray, level: str, notes: list[str]
) -> SortedScores | None:
    try:
        return metrics.sort_scores(labels, scores, f"{level}s")
    except UndefinedMetricError as error:
        notes.append(f"{level} metrics: {error}")
        return None


def _evaluate_level(
    scores: SortedScores | None, level: str, values: dict[str, float | None]
) -> tuple[RocCurve | None, float | None]:
    """Fill in the level's values; its ROC curve and the threshold of its best F1."""
    if scores is None:
        return None, None
    auroc = metrics.auroc(scores)
    f1, threshold = metrics.best_f1(scores)
    values[f"{level}_auroc"] = auroc
    values[f"{level}_ap"] = metrics.average_precision(scores)
    values[f"{level}_f1"] = f1
    return RocCurve(*metrics.roc_curve(scores), auroc), threshold
