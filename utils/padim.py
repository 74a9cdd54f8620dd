"""PaDiM: fit to the features of good images, score those of any.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from utils.features import select_channels
from utils.gaussian import fit_gaussians

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


class PaDiM:
    """The patch distributions of good images' features, and the anomaly maps they give.

    Args:
        channels: indices into the concatenation of the layers.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = channels

    @torch.inference_mode()
    def fit(self, batches: Iterable[Mapping[str, Tensor]], n_train: int) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields layer outputs of some images at a time, as FeatureExtractor gives
                them, all of the same sizes.
            n_train: images in all batches together.

        Raises:
            ValueError: if there are fewer than 2 images or an embedding is not finite.
        """
        layers = (select_channels(features, self.channels) for features in batches)
        self.gaussians = fit_gaussians(layers, n_train)
        return self

    @torch.inference_mode()
    def anomaly_maps(self, features: Mapping[str, Tensor], size: Sequence[int]) -> np.ndarray:
        """Raw anomaly maps (section III-C): distances, enlarged to the images and smoothed.

        Args:
            features: layer outputs of B images.
            size: H and W of the images.

        Returns:
            (B, H, W) float32 Mahalanobis distances, higher = more anomalous.
        """
        distances = self.gaussians.distances(select_channels(features, self.channels))
        rows, columns = (
            enlarging(*sides, distances.device)
            for sides in zip(size, distances.shape[1:], strict=True)
        )
        return (rows @ distances @ columns.mT).cpu().numpy()


@cache
def enlarging(to_side: int, from_side: int, device: torch.device) -> Tensor:
    """The matrix (to_side, from_side) that enlarges an axis of distances and smooths it.

    It is bilinear interpolation (align_corners False), then scipy's gaussian_filter, applied to
    unit vectors: both are linear and work axis by axis (paper, section IV-B; upstream).
    """
    unit = torch.eye(from_side, dtype=torch.float64)[None, None]
    enlarged = F.interpolate(unit, size=(to_side, from_side), mode="bilinear", align_corners=False)
    smoothed = gaussian_filter1d(enlarged[0, 0].numpy(), SMOOTHING_SIGMA, axis=0)
    return torch.from_numpy(smoothed).float().to(device)


def image_scores(anomaly_maps: np.ndarray) -> np.ndarray:
    """The maximum of each map: (N, H, W) to (N,) (paper, section III-C)."""
    return anomaly_maps.max(axis=(1, 2))
