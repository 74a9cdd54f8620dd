"""PaDiM: fit to the features of good images, score those of any.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from utils.features import select_channels
from utils.gaussian import DualGaussians, Gaussians, fit_gaussians, is_primal

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


class PaDiM:
    """The patch distributions of good images' features, and the anomaly maps they give.

    Args:
        channels: indices into the concatenation of the layers.

    Attributes:
        gaussians, n_train: after fit.
    """

    gaussians: Gaussians
    n_train: int

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = channels

    @torch.inference_mode()
    def fit(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        n_train: int,
        held_out: Collection[int] = (),
    ) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields layer outputs of some images at a time, as FeatureExtractor gives
                them, all of the same sizes.
            n_train: images in all batches together.
            held_out: numbers of the images that held_out_maps is for.

        Raises:
            ValueError: if there are fewer than 2 images or an embedding is not finite.
        """
        self.n_train = n_train
        self._held_out = list(held_out)
        self._held_out_layers: list[list[Tensor]] = []
        self.gaussians = fit_gaussians(self._select(batches), n_train)
        return self

    def _select(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[list[Tensor]]:
        # the dual form keeps all images anyway
        wanted = self._held_out if is_primal(self.n_train, len(self.channels)) else ()
        seen = 0
        for features in batches:
            layers = select_channels(features, self.channels)
            kept = [i for i in range(len(layers[0])) if seen + i in wanted]
            if kept:
                self._held_out_layers.append([layer[kept] for layer in layers])
            seen += len(layers[0])
            yield layers

    @torch.inference_mode()
    def held_out_maps(self, size: Sequence[int]) -> np.ndarray:
        """Maps of the held-out training images, each by the Gaussians of all other images.

        Args:
            size: H and W of the images.

        Returns:
            (n, H, W) float32, as anomaly_maps. What was kept for them is freed.
        """
        if not self._held_out:
            return np.empty((0, *size), dtype=np.float32)
        if isinstance(self.gaussians, DualGaussians):
            return _to_maps(self.gaussians.leave_one_out(self._held_out), size)
        batches, self._held_out_layers = self._held_out_layers, []
        distances = [self.gaussians.leave_one_out(layers, self.n_train) for layers in batches]
        return _to_maps(torch.cat(distances), size)

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
        return _to_maps(distances, size)


def _to_maps(distances: Tensor, size: Sequence[int]) -> np.ndarray:
    return enlarge(distances, size).cpu().numpy()


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
