"""PaDiM: fit Gaussians to the features of good images, score the features of any image.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from utils.gaussian import Gaussians, fit_gaussians
from utils.held_out import HeldOut

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


class PaDiM:
    """The patch distributions of good images' features, and the anomaly maps they give.

    Attributes:
        gaussians: of every patch position, after fit.
        n_train: number of images they were fitted to.
        held_out: those of the images that thresholds are found with.
    """

    gaussians: Gaussians
    n_train: int
    held_out: HeldOut

    @torch.inference_mode()
    def fit(
        self,
        batches: Iterable[list[Tensor]],
        n_train: int,
        held_out: Sequence[int] | None = None,
        copy_of: Sequence[int] | None = None,
        shrinkage: float | str | None = None,
        region: np.ndarray | None = None,
    ) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields the features of some images at a time, as FeatureExtractor returns
                them, all of the same sizes.
            n_train: images in all batches together.
            held_out: ascending numbers of the images that held_out_maps is for; by default those
                that thresholds are found with.
            copy_of: as in choose_held_out; copies are held out together.
            shrinkage: as in fit_gaussians.
            region: as in fit_gaussians.

        Raises:
            ValueError: if there are fewer than 2 images or a feature is not finite.
        """
        self.n_train = n_train
        self.held_out = HeldOut(n_train, copy_of, held_out, region)
        batches = self.held_out.watch(batches)
        self.gaussians = fit_gaussians(batches, n_train, shrinkage=shrinkage, region=region)
        return self

    @torch.inference_mode()
    def held_out_maps(self, size: Sequence[int]) -> np.ndarray:
        """Maps of the held-out images, each by the Gaussians without it and its copies.

        It can be called only once after a fit: then the features that were kept are freed.

        Args:
            size: H and W of the images.

        Returns:
            (n, H, W) float32, as anomaly_maps.
        """
        if not self.held_out.chosen:
            return np.empty((0, *size), dtype=np.float32)
        return enlarge(self.held_out.distances(self.gaussians), size).numpy(force=True)

    @torch.inference_mode()
    def anomaly_maps(self, features: list[Tensor], size: Sequence[int]) -> Tensor:
        """Raw anomaly maps (section III-C): distances, enlarged to the images and smoothed.

        Args:
            features: of B images, as in fit.
            size: H and W of the images.

        Returns:
            (B, H, W) float32 Mahalanobis distances on the features' device, higher = more
            anomalous.
        """
        return enlarge(self.gaussians.distances(features), size)


def enlarge(distances: Tensor, size: Sequence[int]) -> Tensor:
    """Distances (B, h, w) as smooth maps (B, H, W) over the images."""
    rows, columns = (
        enlarging(*sides, distances.device) for sides in zip(size, distances.shape[1:], strict=True)
    )
    return rows @ distances @ columns.mT


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
