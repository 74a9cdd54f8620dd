"""PaDiM and its metrics written a second time, slowly: float64, a patch or a threshold at a time.

It follows the paper (arXiv 2011.08785, section III) and shares nothing with utils.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis
from skimage.measure import label
from sklearn.metrics import roc_auc_score
from torch import Tensor

EPS = 0.01


def naive_embeddings(layers: Sequence[Tensor], channels: Sequence[int] | None = None) -> np.ndarray:
    """All layers (N, C_l, h_l, w_l) on the first one's grid, then the channels: (N, d, h, w)."""
    grid = layers[0].shape[2:]
    repeated = [F.interpolate(layer.double(), grid, mode="nearest") for layer in layers]
    embeddings = torch.cat(repeated, dim=1).numpy()
    return embeddings if channels is None else embeddings[:, list(channels)]


def naive_fit(embeddings: np.ndarray, eps: float = EPS) -> tuple[np.ndarray, np.ndarray]:
    """Means (d, P) and covariances (d, d, P) of (N, d, h, w), in the embeddings' precision."""
    flat = embeddings.reshape(*embeddings.shape[:2], -1)
    _, d, n_patches = flat.shape
    covariance = np.zeros((d, d, n_patches), dtype=flat.dtype)
    for i in range(n_patches):
        covariance[:, :, i] = np.cov(flat[:, :, i], rowvar=False) + eps * np.identity(d)
    return flat.mean(axis=0), covariance


def naive_measure(embeddings: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Mahalanobis distances (M, h, w) of (M, d, h, w)."""
    n, d, height, width = embeddings.shape
    flat = embeddings.reshape(n, d, -1)
    distances = []
    for i in range(height * width):
        inverse = np.linalg.inv(covariance[:, :, i])
        distances.append([mahalanobis(one[:, i], mean[:, i], inverse) for one in flat])
    return np.array(distances).T.reshape(n, height, width)


def naive_distances(train: np.ndarray, test: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Distances (M, h, w) of test (M, d, h, w) to the Gaussians of train, in float64."""
    return naive_measure(np.float64(test), *naive_fit(np.float64(train), eps))


def naive_maps(distances: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Distances (M, h, w) enlarged to size and smoothed, one image at a time."""
    maps = F.interpolate(
        torch.from_numpy(distances)[:, None],
        size=tuple(size),
        mode="bilinear",
        align_corners=False,
    )
    return np.stack([gaussian_filter(image_map, sigma=4) for image_map in maps[:, 0].numpy()])


def naive_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve over all entries."""
    return float(roc_auc_score(labels.ravel(), scores.ravel()))


def naive_aupro(masks: np.ndarray, maps: np.ndarray, fpr_limit: float) -> float:
    """The PRO curve from threshold to threshold, then trapezoids up to fpr_limit."""
    regions = []
    for mask, scores in zip(masks, maps, strict=True):
        labelled = label(mask, connectivity=2)
        regions += [scores[labelled == i] for i in range(1, labelled.max() + 1)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fpr.append(np.mean(maps[~masks] >= threshold))
        pro.append(np.mean([np.mean(region >= threshold) for region in regions]))
    end = next(i for i, rate in enumerate(fpr) if rate >= fpr_limit)
    at_limit = np.interp(fpr_limit, fpr[end - 1 : end + 1], pro[end - 1 : end + 1])
    return np.trapezoid([*pro[:end], at_limit], [*fpr[:end], fpr_limit]) / fpr_limit


def naive_aupimo(
    normal: np.ndarray, anomalous: np.ndarray, bounds: tuple[float, float], n: int = 20_001
) -> float:
    """The PIMO curve of an image from threshold to threshold, integrated numerically.

    Args:
        normal: scores of all pixels of normal images.
        anomalous: scores of the image's anomalous pixels.
        bounds: of the false positive rate.
        n: rates at which the curve is looked at.
    """
    thresholds = np.unique([*normal, *anomalous])[::-1]
    fpr = np.array([0, *(np.mean(normal >= threshold) for threshold in thresholds)])
    tpr = np.array([0, *(np.mean(anomalous >= threshold) for threshold in thresholds)])
    rates = np.geomspace(*bounds, n)
    # at a rate with several thresholds the curve is vertical
    right = np.searchsorted(fpr, rates).clip(1, len(fpr) - 1)
    share = (rates - fpr[right - 1]) / (fpr[right] - fpr[right - 1])
    overlap = tpr[right - 1] + share * (tpr[right] - tpr[right - 1])
    return np.trapezoid(overlap, np.log(rates)) / np.log(bounds[1] / bounds[0])
