"""How well scores separate normal from anomalous: pure functions on raw scores.

Every figure comes from one sort of the scores of each kind, exactly and with ties. Scores are
never rescaled.

Reference: Fawcett, "An introduction to ROC analysis", 2006; upstream's main.py.
"""

from typing import NamedTuple

import numpy as np


class UndefinedMetricError(ValueError):
    """A metric needs normal and anomalous items, and one kind is not there."""


class SortedScores(NamedTuple):
    """The scores of the normal and of the anomalous items, each (n,) ascending."""

    normal: np.ndarray
    anomalous: np.ndarray


def sort_scores(labels: np.ndarray, scores: np.ndarray, of: str = "images") -> SortedScores:
    """Scores split by label and sorted.

    Args:
        labels: bool or 0 and 1 (1 = anomalous), any shape.
        scores: of labels' shape, higher = more anomalous.
        of: what is scored, for the message.

    Raises:
        UndefinedMetricError: if there are only normal or only anomalous items.
        ValueError: if a score is NaN.
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
        np.stack([_fraction_above(part, thresholds), _fraction_from(part, thresholds)], axis=1)
        for part in scores
    )
    return np.concatenate(([0], fpr.ravel(), [1])), np.concatenate(([0], tpr.ravel(), [1]))


def best_f1(scores: SortedScores) -> tuple[float, float]:
    """The best F1 over all thresholds, and the lowest threshold (score >= threshold) that has it.

    Only the scores of anomalous items can be best: to lower a threshold further adds nothing but
    false positives.
    """
    thresholds = np.unique(scores.anomalous)
    true_positives = scores.anomalous.size - np.searchsorted(scores.anomalous, thresholds)
    false_positives = scores.normal.size - np.searchsorted(scores.normal, thresholds)
    f1 = 2 * true_positives / (true_positives + false_positives + scores.anomalous.size)
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


def _fraction_above(part: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return 1 - np.searchsorted(part, thresholds, side="right") / part.size


def _fraction_from(part: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return 1 - np.searchsorted(part, thresholds, side="left") / part.size
