"""Anomaly maps from the distances of patches.

Reference: Defard et al., arXiv 2011.08785, sections III-C and IV-B; upstream's main.py.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


@torch.inference_mode()
def enlarge(distances: Tensor, size: Sequence[int]) -> Tensor:
    """Distances (B, h, w) as smooth maps (B, H, W) over images of H x W = size."""
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
