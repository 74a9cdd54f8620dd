"""Time of all metrics of one class, beside that of scikit-learn's two pixel curves alone.

    python -m tests.benchmark_metrics

The maps are made here, of the number and size of bottle's (83 of 224x224, 63 of them with a
defect), and one process measures both by turns; absolute times drift, the ratio hardly does.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.metrics import precision_recall_curve, roc_auc_score

from utils import metrics

N_IMAGES, N_ANOMALOUS, SIDE = 83, 63, 224
SIGMA = 4  # of the noise, as smooth as anomaly maps
REPEATS = 5


def main() -> None:
    """Print both times and their ratio, medians over the repeats."""
    masks, anomaly_maps = make_maps()
    values, expected = all_metrics(masks, anomaly_maps), sklearn_curves(masks, anomaly_maps)
    if abs(values["pixel AUROC"] - expected) > 1e-9:
        raise SystemExit(f"pixel AUROC is {values['pixel AUROC']}, scikit-learn's is {expected}")

    pairs = [
        (seconds(all_metrics, masks, anomaly_maps), seconds(sklearn_curves, masks, anomaly_maps))
        for _ in range(REPEATS)
    ]
    ours, theirs = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(theirs / ours for ours, theirs in pairs)
    print(f"{N_IMAGES} maps of {SIDE}x{SIDE}, median of {REPEATS}")
    print(f"{', '.join(values)}: {ours:.3f} s")
    print(f"scikit-learn's roc_auc_score + precision_recall_curve of the pixels: {theirs:.3f} s")
    print(f"ratio: {ratio:.1f}")


def make_maps() -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, H, W) bool with one or two disks each, and smooth float32 maps higher there."""
    rng = np.random.default_rng(0)
    masks = np.zeros((N_IMAGES, SIDE, SIDE), dtype=bool)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for mask in masks[:N_ANOMALOUS]:
        for _ in range(rng.integers(1, 3)):
            row, column, radius = rng.integers((30, 30, 10), (SIDE - 30, SIDE - 30, 45))
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    noise = rng.standard_normal(masks.shape, dtype=np.float32) * 20 + masks
    return masks, gaussian_filter(noise, SIGMA, axes=(1, 2))


def all_metrics(masks: np.ndarray, anomaly_maps: np.ndarray) -> dict[str, float]:
    """Every metric of images and pixels by name, and the curves that are drawn."""
    labels, image_scores = masks.any(axis=(1, 2)), anomaly_maps.max(axis=(1, 2))
    values = {}
    for of, scores in (
        ("image", metrics.sort_scores(labels, image_scores, "images")),
        ("pixel", pixels := metrics.sort_scores(masks, anomaly_maps, "pixels")),
    ):
        metrics.roc_curve(scores)
        values[f"{of} AUROC"] = metrics.auroc(scores)
        values[f"{of} AP"] = metrics.average_precision(scores)
        values[f"{of} F1"] = metrics.best_f1(scores)[0]
    return values | {"AUPRO": metrics.aupro(masks, anomaly_maps, pixels=pixels)}


def sklearn_curves(masks: np.ndarray, anomaly_maps: np.ndarray) -> float:
    """The pixel AUROC, after the precision-recall curve."""
    precision_recall_curve(masks.ravel(), anomaly_maps.ravel())
    return float(roc_auc_score(masks.ravel(), anomaly_maps.ravel()))


def seconds(function: Callable, masks: np.ndarray, anomaly_maps: np.ndarray) -> float:
    """Wall time of one call."""
    start = perf_counter()
    function(masks, anomaly_maps)
    return perf_counter() - start


if __name__ == "__main__":
    main()
