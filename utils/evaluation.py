"""From the test images' anomaly maps to the metrics of a class."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from datasets.mvtec import UNLABELLED
from utils import metrics
from utils.metrics import RocCurve, SortedScores, UndefinedMetricError
from utils.thresholds import score_maps

# anomaly maps of images; images, labels and masks as ImageDataset returns them
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class DrawnImage(NamedTuple):
    """What a figure of a test image shows: (3, H, W) uint8, (H, W) float32 and (H, W) bool."""

    image: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray


class ScoredImages(NamedTuple):
    """The N test images of a class with their scores."""

    labels: np.ndarray  # (N,) int64 as in datasets.mvtec.Sample
    image_scores: np.ndarray  # (N,) float32
    score_range: tuple[float, float]  # the lowest and the highest score of all pixels
    anomaly_maps: np.ndarray  # (n, H, W) float32, of all N images or of those drawn alone
    masks: np.ndarray  # (n, H, W) bool, of the same
    drawn: Mapping[int, DrawnImage]  # the images that get a figure, by number


class Evaluation(NamedTuple):
    """The metrics of a class.

    What is not defined is None, and notes say why. The oracles are the thresholds of the best F1 on
    these very test images: for the figures, not to deploy.
    """

    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    oracle_image: float | None
    oracle_pixel: float | None
    metrics: Mapping[str, float | None]  # by the names in metrics.METRICS
    notes: list[str]
    aupimo: np.ndarray | None = None  # of each image, NaN where it has no anomalous pixel


def choose_drawn(n_images: int, figures: int | None) -> list[int]:
    """The test images that get a figure: all if figures is None, else so many spread evenly."""
    if figures is None:
        return list(range(n_images))
    return np.linspace(0, n_images - 1, min(figures, n_images)).round().astype(int).tolist()


def score_images(
    batches: Iterable[Batch],
    n_images: int,
    size: Sequence[int],
    keep_maps: bool,
    drawn: Sequence[int] = (),
    score: Callable[[np.ndarray], np.ndarray] = score_maps,
) -> ScoredImages:
    """The test images of a class with their scores.

    Args:
        batches: all test images with their maps, some at a time.
        n_images: N, in all batches together.
        size: H and W of the images.
        keep_maps: whether the maps of all images are kept, as pixel metrics need them.
        drawn: numbers of the images that get a figure.
        score: the image scores (B,) of maps (B, H, W).
    """
    labels, scores = np.empty(n_images, dtype=np.int64), np.empty(n_images, dtype=np.float32)
    row_of = {number: row for row, number in enumerate(range(n_images) if keep_maps else drawn)}
    kept_maps = np.empty((len(row_of), *size), dtype=np.float32)
    kept_masks = np.empty(kept_maps.shape, dtype=bool)
    low, high, seen, figures = np.inf, -np.inf, 0, {}
    for anomaly_maps, images, batch_labels, masks in batches:
        here = slice(seen, seen + len(images))
        labels[here], scores[here] = batch_labels, score(anomaly_maps)
        low, high = min(low, anomaly_maps.min()), max(high, anomaly_maps.max())
        for i, number in enumerate(range(here.start, here.stop)):
            if number in row_of:
                row = row_of[number]
                kept_maps[row], kept_masks[row] = anomaly_maps[i], masks[i]
                if number in drawn:
                    figures[number] = DrawnImage(images[i].copy(), kept_maps[row], kept_masks[row])
        seen = here.stop
    return ScoredImages(labels, scores, (float(low), float(high)), kept_maps, kept_masks, figures)


def evaluate(scored: ScoredImages, has_masks: bool, has_region: bool = False) -> Evaluation:
    """Metrics of images, and of pixels pooled over all images, on raw scores.

    Args:
        scored: the test images of one class, with the maps of all images if has_masks.
        has_masks: whether the defects are marked.
        has_region: whether pixels that score 0 are outside a region: they take no part.
    """
    notes: list[str] = []
    masks, maps = scored.masks, scored.anomaly_maps
    seen = maps > 0 if has_region else None
    masks = masks if seen is None else masks & seen
    values = dict.fromkeys(metrics.METRICS)
    images = pixels = of_images = None
    if (scored.labels == UNLABELLED).any():
        notes.append(
            "image metrics need labels; the test images are not in good/ and defect folders"
        )
    else:
        images = _sort(scored.labels, scored.image_scores, "image", notes)
    if has_masks:
        of_pixels = (masks, maps) if seen is None else (masks[seen], maps[seen])
        pixels = _sort(*of_pixels, "pixel", notes)
    else:
        notes.append("pixel metrics need masks; there is no ground_truth folder")
    if pixels is not None:
        values["aupro"] = metrics.aupro(masks, maps, pixels=pixels)
        try:
            of_images = metrics.aupimo(scored.labels, masks, maps, seen=seen)
            values["aupimo"] = float(np.nanmean(of_images))
        except UndefinedMetricError as error:
            notes.append(f"AUPIMO: {error}")
    image_curve, oracle_image = _evaluate_level(images, "image", values)
    pixel_curve, oracle_pixel = _evaluate_level(pixels, "pixel", values)
    thresholds = oracle_image, oracle_pixel
    return Evaluation(image_curve, pixel_curve, *thresholds, values, notes, of_images)


def _sort(
    labels: np.ndarray, scores: np.ndarray, level: str, notes: list[str]
) -> SortedScores | None:
    """The sorted scores of images or pixels; None, and a note, if one kind is missing."""
    try:
        return metrics.sort_scores(labels, scores, f"{level}s")
    except UndefinedMetricError as error:
        notes.append(f"{level} metrics: {error}")
        return None


def _evaluate_level(
    scores: SortedScores | None, level: str, values: dict[str, float | None]
) -> tuple[RocCurve | None, float | None]:
    """Fill in the values of images or pixels; return their ROC curve and best-F1 threshold."""
    if scores is None:
        return None, None
    auroc = metrics.auroc(scores)
    f1, threshold = metrics.best_f1(scores)
    values[f"{level}_auroc"] = auroc
    values[f"{level}_ap"] = metrics.average_precision(scores)
    values[f"{level}_f1"] = f1
    return RocCurve(*metrics.roc_curve(scores), auroc), threshold
