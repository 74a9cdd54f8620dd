"""PaDiM: fit on good images, score any.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from utils.features import FeatureExtractor, select_channels
from utils.gaussian import fit_gaussians

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


class PaDiM:
    """The patch distributions of good images, and the anomaly maps they give.

    Args:
        extractor: the frozen network; its device is the model's.
        channels: indices into the concatenation of the layers.
    """

    def __init__(self, extractor: FeatureExtractor, channels: Sequence[int]) -> None:
        self.extractor = extractor
        self.channels = channels

    def fit(self, batches: Iterable[Tensor], n_train: int) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields images (B, 3, H, W) uint8 RGB, all of one size.
            n_train: images in all batches together.

        Raises:
            ValueError: if there are fewer than 2 images or an embedding is not finite.
        """
        self.gaussians = fit_gaussians((self._embed(images) for images in batches), n_train)
        return self

    @torch.inference_mode()
    def anomaly_maps(self, images: Tensor) -> np.ndarray:
        """Raw anomaly maps (section III-C): distances, enlarged to the image and smoothed.

        Args:
            images: (B, 3, H, W) uint8 RGB.

        Returns:
            (B, H, W) float32 Mahalanobis distances, higher = more anomalous.
        """
        distances = self.gaussians.distances(self._embed(images))
        maps = F.interpolate(
            distances[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        return gaussian_filter(maps[:, 0].cpu().numpy(), sigma=SMOOTHING_SIGMA, axes=(1, 2))

    def _embed(self, images: Tensor) -> list[Tensor]:
        return select_channels(self.extractor(images), self.channels)


def image_scores(anomaly_maps: np.ndarray) -> np.ndarray:
    """The maximum of each map: (N, H, W) to (N,) (paper, section III-C)."""
    return anomaly_maps.max(axis=(1, 2))
