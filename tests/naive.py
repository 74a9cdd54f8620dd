"""PaDiM written a second time, slowly: float64, one patch at a time, every matrix inverted.

It follows the paper (arXiv 2011.08785, section III) and shares nothing with utils.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score
from torch import Tensor


def naive_anomaly_maps(
    train_features: Sequence[Tensor],
    test_features: Sequence[Tensor],
    channels: Sequence[int],
    size: tuple[int, int],
) -> np.ndarray:
    """Maps (M, *size) of test images from layer outputs, each (N or M, C_l, h_l, w_l)."""
    train = naive_embeddings(train_features, channels)
    test = naive_embeddings(test_features, channels)
    return naive_maps(naive_distances(train, test), size)


def naive_embeddings(features: Sequence[Tensor], channels: Sequence[int]) -> np.ndarray:
    """All layers repeated to the first one's grid, concatenated, then chosen: (N, d, h, w)."""
    height, width = features[0].shape[2:]
    repeated = []
    for feature in features:
        values = feature.double().numpy()
        values = np.repeat(values, height // feature.shape[2], axis=2)
        repeated.append(np.repeat(values, width // feature.shape[3], axis=3))
    return np.concatenate(repeated, axis=1)[:, list(channels)]


def naive_distances(train: np.ndarray, test: np.ndarray, eps: float = 0.01) -> np.ndarray:
    """Mahalanobis distances (M, h, w) of test (M, d, h, w) to the Gaussians of train."""
    _, d, height, width = train.shape
    distances = np.empty((len(test), height, width))
    for i in range(height):
        for j in range(width):
            samples = np.asarray(train[:, :, i, j], dtype=np.float64)
            covariance = np.cov(samples, rowvar=False).reshape(d, d) + eps * np.identity(d)
            precision = np.linalg.inv(covariance)
            for m in range(len(test)):
                embedding = np.asarray(test[m, :, i, j], dtype=np.float64)
                distances[m, i, j] = mahalanobis(embedding, samples.mean(axis=0), precision)
    return distances


def naive_maps(distances: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Distances (M, h, w) enlarged to size and smoothed, one image at a time."""
    maps = F.interpolate(
        torch.from_numpy(distances)[:, None], size=size, mode="bilinear", align_corners=False
    )
    return np.stack([gaussian_filter(image_map, sigma=4) for image_map in maps[:, 0].numpy()])


def naive_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve over all entries."""
    return float(roc_auc_score(labels.ravel(), scores.ravel()))
