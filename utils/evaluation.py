"""From the test images' anomaly maps to the numbers of a class."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from datasets.mvtec import UNLABELLED
from utils import metrics
from utils.features import Features
from utils.metrics import RocCurve, SortedScores, UndefinedMetricError
from utils.padim import PaDiM, image_scores
from utils.report.results import METRICS

# features as FeatureExtractor gives them, and images, labels and masks as ImageDataset does
Batch = tuple[Features, np.ndarray, np.ndarray, np.ndarray]


class DrawnImage(NamedTuple):
    """What a figure of a test image needs: (3, H, W) uint8, (H, W) float32 and (H, W) bool."""

    image: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray


class ScoredImages(NamedTuple):
    """What a model says of test images.

    Attributes:
        labels: (N,) int64 as in Sample.
        image_scores: (N,) float32.
        score_range: the lowest and the highest score of all pixels.
        anomaly_maps, masks: (N, H, W) float32 and bool; None if they are not kept.
        drawn: by number, the images of which there are figures.
    """

    labels: np.ndarray
    image_scores: np.ndarray
    score_range: tuple[float, float]
    anomaly_maps: np.ndarray | None
    masks: np.ndarray | None
    drawn: Mapping[int, DrawnImage]


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


def choose_drawn(n_images: int, figures: int | None) -> list[int]:
    """The test images that get a figure: all, or so many spread evenly over them."""
    if figures is None:
        return list(range(n_images))
    return np.linspace(0, n_images - 1, min(figures, n_images)).round().astype(int).tolist()


def score_images(
    model: PaDiM,
    batches: Iterable[Batch],
    n_images: int,
    keep_maps: bool,
    drawn: Collection[int] = (),
) -> ScoredImages | None:
    """Score test images one batch after the other.

    Args:
        model: fitted.
        batches: this process's share of the test images.
        n_images: of all batches of all processes together.
        keep_maps: whether the maps of all images are kept, as pixel metrics need them.
        drawn: numbers of the images to keep for figures.

    Returns:
        What was scored by all processes, in the one that leads; None in the others.
    """
    labels, scores = np.empty(n_images, dtype=np.int64), np.empty(n_images, dtype=np.float32)
    lows, highs, kept, seen = [], [], {}, 0
    all_maps = all_masks = None
    for batch in batches:
        gathered = _score_batch(model, *batch)
        del batch  # while the next one is made, nothing holds this one
        if gathered is None:
            continue
        images, batch_labels, masks, anomaly_maps = gathered
        here = slice(seen, seen + len(images))
        labels[here], scores[here] = batch_labels, image_scores(anomaly_maps)
        lows.append(anomaly_maps.min())
        highs.append(anomaly_maps.max())
        if keep_maps:
            if all_maps is None:
                all_maps = np.empty((n_images, *masks.shape[1:]), dtype=np.float32)
                all_masks = np.empty(all_maps.shape, dtype=bool)
            all_maps[here], all_masks[here] = anomaly_maps, masks
            anomaly_maps, masks = all_maps[here], all_masks[here]  # kept once, also if drawn
        for i in range(here.start, here.stop):
            if i in drawn:
                pixels = (anomaly_maps[i - seen], masks[i - seen])
                own = pixels if keep_maps else map(np.copy, pixels)
                kept[i] = DrawnImage(images[i - seen].copy(), *own)
        seen = here.stop
    if not model.world.leads:
        return None
    score_range = (float(min(lows)), float(max(highs)))
    return ScoredImages(labels, scores, score_range, all_maps, all_masks, kept)


def _score_batch(
    model: PaDiM,
    features: Features,
    images: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
) -> list[np.ndarray] | None:
    """Images, labels, masks and maps of all processes, in the one that leads."""
    anomaly_maps = model.anomaly_maps(features, images.shape[2:]).cpu()
    shares = [*map(torch.from_numpy, (images, labels, masks)), anomaly_maps]
    gathered = [model.world.gather(share) for share in shares]
    return [tensor.numpy() for tensor in gathered] if model.world.leads else None


def evaluate(scored: ScoredImages, has_masks: bool) -> Evaluation:
    """Metrics of images, and of pixels pooled over all images, on raw scores.

    Args:
        scored: the test images of one class, with their maps if has_masks.
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
