"""How well scores separate normal from anomalous: pure functions on raw scores.

Every metric comes from one sort of the normal and one of the anomalous scores, and is exact, also
with ties. Scores are never rescaled.

Reference: Fawcett, "An introduction to ROC analysis", 2006; Bergmann et al., "The MVTec Anomaly
Detection Dataset", IJCV 129, 2021 (per-region overlap); Bertoldo et al., "AUPIMO", arXiv 2401.01984
(per-image overlap); upstream's main.py.
"""

from typing import NamedTuple

import numpy as np

# names and titles, in the order of columns and tables
METRICS = {
    "image_auroc": "image ROCAUC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel ROCAUC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1",
    "aupro": "AUPRO",
    "aupimo": "AUPIMO",
}
FPR_LIMIT = 0.3  # of AUPRO: Bergmann et al., 2021
FPR_BOUNDS = (1e-5, 1e-4)  # of AUPIMO: Bertoldo et al., 2024
# pixels that touch at an edge or a corner are one region; those of two images never are
NEIGHBOURS = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


class UndefinedMetricError(ValueError):
    """A metric needs normal and anomalous items, and one kind is missing."""


class SortedScores(NamedTuple):
    """The scores of the normal and of the anomalous items, each (n,) ascending."""

    normal: np.ndarray
    anomalous: np.ndarray


class RocCurve(NamedTuple):
    """False and true positive rates, each (n,) from 0 to 1, and the area under them."""

    fpr: np.ndarray
    tpr: np.ndarray
    auroc: float


def sort_scores(labels: np.ndarray, scores: np.ndarray, of: str = "images") -> SortedScores:
    """Scores split by label (bool or 0 and 1, 1 = anomalous) and sorted.

    An UndefinedMetricError says which kind of items is missing; of is what errors call them.
    """
    assert labels.shape == scores.shape
    anomalous = labels.astype(bool)
    parts = SortedScores(np.sort(scores[~anomalous]), np.sort(scores[anomalous]))
    if not parts.normal.size or not parts.anomalous.size:
        raise UndefinedMetricError(
            f"needs both normal and anomalous {of}; "
            f"got {parts.normal.size} normal and {parts.anomalous.size} anomalous"
        )
    # NaN sorts last
    if np.isnan(parts.normal[-1]) or np.isnan(parts.anomalous[-1]):
        raise ValueError(f"the scores of some {of} are not numbers")
    return parts


def auroc(scores: SortedScores) -> float:
    """Area under the ROC curve: the chance that an anomalous item outscores a normal one.

    A tie counts one half (Mann-Whitney U statistic).
    """
    below = np.searchsorted(scores.normal, scores.anomalous, side="left").sum(dtype=np.int64)
    through = np.searchsorted(scores.normal, scores.anomalous, side="right").sum(dtype=np.int64)
    return float(below + through) / (2 * scores.normal.size * scores.anomalous.size)


def roc_curve(scores: SortedScores) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate from (0, 0) to (1, 1), at the corners of the curve.

    Between two corners the curve is straight.
    """
    thresholds = np.unique(scores.anomalous)[::-1]
    fpr, tpr = (
        # above the threshold, then from it on
        [1 - np.searchsorted(part, thresholds, side) / part.size for side in ("right", "left")]
        for part in scores
    )
    fpr, tpr = (np.stack(rates, axis=1).ravel() for rates in (fpr, tpr))
    return np.concatenate(([0], fpr, [1])), np.concatenate(([0], tpr, [1]))


def best_f1(scores: SortedScores) -> tuple[float, float]:
    """The best F1 over all thresholds, and the lowest threshold (score >= threshold) that has it.

    Only scores of anomalous items need to be tried: between two of them, a lower threshold adds
    nothing but false positives.
    """
    true_positives, false_positives = _positives(scores)
    f1 = 2 * true_positives / (true_positives + false_positives + scores.anomalous.size)
    # the first of equals has the lowest threshold
    best = int(np.argmax(f1))
    return float(f1[best]), float(scores.anomalous[best])


def average_precision(scores: SortedScores) -> float:
    """Area under the steps of the precision-recall curve, as scikit-learn defines it.

    Recall rises only at the scores of anomalous items, for each by the same step: the sum of step
    times precision is the mean of the precisions (score >= threshold) at these scores.
    """
    true_positives, false_positives = _positives(scores)
    return float(np.mean(true_positives / (true_positives + false_positives)))


def aupro(
    masks: np.ndarray,
    anomaly_maps: np.ndarray,
    fpr_limit: float = FPR_LIMIT,
    pixels: SortedScores | None = None,
) -> float:
    """Area under the per-region-overlap (PRO) curve up to fpr_limit in (0, 1], as a share of it.

    PRO is the share of a defect region (8-connected within a mask) that scores at least the
    threshold, averaged over all regions of all masks (N, H, W). It is drawn against the false
    positive rate over all normal pixels, at every distinct score, straight in between.

    So the curve is the mean of the regions' ROC curves against all normal pixels, and each of
    these the mean of its pixels' curves: the areas are averaged in the same way, and only the
    anomalous pixels need to be looked at. The pixels, sorted before, save a second sort.
    """
    # takes long to import, and few who import this module need a PRO curve
    from scipy import ndimage

    assert masks.ndim == 3
    assert masks.shape == anomaly_maps.shape
    if pixels is None:
        pixels = sort_scores(masks, anomaly_maps, "pixels")

    anomalous = masks.astype(bool)
    scores = anomaly_maps[anomalous]
    regions = ndimage.label(anomalous, NEIGHBOURS)[0][anomalous] - 1  # numbered from 0
    assert scores.size == pixels.anomalous.size

    # neighbouring searches in a sorted array are about four times as fast
    order = np.argsort(scores)
    foot, top = _ramps(pixels.normal, scores[order])
    limit = fpr_limit * pixels.normal.size  # in false positives
    climbed = np.clip(limit, foot, top) - foot
    # without a tie there is no ramp: climbed is 0
    under_ramp = climbed**2 / (2 * np.maximum(top - foot, 1))
    areas = (under_ramp + np.maximum(limit - top, 0)) / limit
    area_of_region = np.bincount(regions[order], weights=areas) / np.bincount(regions)
    return float(area_of_region.mean())


def aupimo(
    labels: np.ndarray,
    masks: np.ndarray,
    anomaly_maps: np.ndarray,
    bounds: tuple[float, float] = FPR_BOUNDS,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """Area under the per-image overlap (PIMO) curve of each image (Bertoldo et al., 2024).

    The curve is the share of an image's anomalous pixels that score at least the threshold, drawn
    against the logarithm of the false positive rate over the pixels of normal images alone. The
    area between two such rates is given as a share of the largest possible one. As in aupro, it is
    the mean of the areas of the image's anomalous pixels.

    Args:
        labels: (N,), 0 for normal images.
        masks: (N, H, W) bool or 0 and 1 (1 = anomalous).
        anomaly_maps: (N, H, W), none of them NaN.
        bounds: the false positive rates between which the area is taken.
        seen: (N, H, W) bool, the pixels that take part, and all anomalous ones; None is all.

    Returns:
        (N,) float64; NaN for images without anomalous pixels.
    """
    normal = anomaly_maps[labels == 0]
    normal = normal.ravel() if seen is None else normal[seen[labels == 0]]
    if not normal.size:
        raise UndefinedMetricError("needs normal images; got none")
    low, high = (rate * normal.size for rate in bounds)  # in false positives
    # only as many of the highest normal scores matter as there may be false positives
    most = min(int(high) + 1, normal.size)
    normal.partition(normal.size - most)
    highest = np.sort(normal[normal >= normal[normal.size - most]])

    anomalous = masks.astype(bool)
    foot, top = _ramps(highest, anomaly_maps[anomalous])
    start, end = np.clip(foot, low, high), np.clip(top, low, high)
    # a straight ramp in the rate: the integral of (z - foot) / (top - foot) / z
    under_ramp = (end - start - foot * np.log(end / start)) / np.maximum(top - foot, 1)
    areas = (under_ramp + np.log(high / end)) / np.log(high / low)
    counts = anomalous.sum(axis=(1, 2))
    sums = np.bincount(np.repeat(np.arange(len(masks)), counts), areas, minlength=len(masks))
    return np.divide(sums, counts, out=np.full(len(masks), np.nan), where=counts > 0)


def _ramps(normal: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each score alone, where its ROC curve leaves 0 and where it reaches 1.

    Over the number of false positives, the curve of one score is 0 up to the number of normal
    scores above it, and 1 from the number of those at least as high. In between it is straight.
    """
    foot = normal.size - np.searchsorted(normal, scores, side="right")
    top = normal.size - np.searchsorted(normal, scores, side="left")
    return foot, top


def _positives(scores: SortedScores) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (score >= threshold), the thresholds being scores.anomalous."""
    normal, anomalous = scores
    true_positives = anomalous.size - np.searchsorted(anomalous, anomalous)
    false_positives = normal.size - np.searchsorted(normal, anomalous)
    return true_positives, false_positives
