"""PaDiM: fit to the features of good images, score those of any.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
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
        maps = F.interpolate(
            distances[:, None], size=tuple(size), mode="bilinear", align_corners=False
        )
        return gaussian_filter(maps[:, 0].cpu().numpy(), sigma=SMOOTHING_SIGMA, axes=(1, 2))


def image_scores(anomaly_maps: np.ndarray) -> np.ndarray:
    """The maximum of each map: (N, H, W) to (N,) (paper, section III-C)."""
    return anomaly_maps.max(axis=(1, 2))
