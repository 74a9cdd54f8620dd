"""Training images that are nearly copies of each other: bursts of a camera, augmentations.

A threshold comes from good images that are held out in turn. An image whose near copies stay in the
fit scores far lower than a new one, so near copies are held out together.

Two images are compared by their features, with the variation that is usual among the training
images divided out: the main directions of the coarsest layer are whitened at a grid of positions,
and correlated over all of them. Among images that are taken independently of each other, each has
several that are about as much like it as the nearest one. A group of near copies stands apart from
all other images.

Reference: average linkage, Sokal and Michener, 1958. What these constants find
is measured by tests/near_copies.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.patches import cells_of, grids_of, make_layout

POSITIONS = 7  # of the coarsest layer that are compared, along an axis
CHANNELS = 48  # of that layer
DIRECTIONS = 16  # of most variance at a position; the others are mostly noise
NOISE = 0.1  # of their mean variance, added: few images leave some directions without any
TINY = torch.finfo(torch.float32).tiny
JOINED = 0.3  # mean correlation of two groups from which on they are one
# how much more the median image is like one of its group than like any other image: 0.25 at most in
# four classes of MVTec AD, 0.37 to 0.75 in bursts and tenfold augmentations of their images
APART = 0.29
FEWEST = 4  # images: fewer say nothing of what is usual
MOST_COMPARED = 2048  # images with each other; affects memory and time


def take_samples(layers: Sequence[Tensor], region: np.ndarray | None = None) -> Tensor:
    """What is kept of each of B images to compare it: (B, d, p) float32.

    These are at most CHANNELS channels at POSITIONS x POSITIONS positions, in the region, of the
    coarsest of the layers (B, d_l, h_l, w_l).
    """
    _, d, *grid = layers[-1].shape
    if region is None:
        rows, columns = (_spread(side, POSITIONS) for side in grid)
        positions = (rows[:, None] * grid[1] + columns).flatten()
    else:
        inside = torch.from_numpy(cells_of(make_layout(grids_of(layers), region)).kept[-1])
        positions = inside[_spread(len(inside), POSITIONS**2)]
    return layers[-1][:, _spread(d, CHANNELS)].flatten(2)[..., positions]


def _spread(n: int, most: int) -> Tensor:
    """At most so many of n indices, evenly spread."""
    k = min(n, most)
    return ((torch.arange(k) + 0.5) * n / k).long()


def group_near_copies(samples: Tensor, chosen: Sequence[int]) -> list[list[int]] | None:
    """Groups of images that are nearly copies; None unless most images have a near copy.

    The images, whose samples (N, d, p) are from take_samples, all differ. A group is the numbers of
    a chosen image and of its near copies; images without a near copy are alone.
    """
    # takes a fifth of a second to import, which predict need not wait for
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(samples) < FEWEST or not samples.isfinite().all():  # a fit refuses the latter
        return None
    whitened = _whiten(samples)
    compared = torch.arange(len(samples))
    if len(samples) > MOST_COMPARED:  # those most like the chosen ones
        alike = whitened[chosen] @ whitened.T
        compared = alike.topk(MOST_COMPARED // len(chosen)).indices.unique().cpu()
    alike = (whitened[compared] @ whitened[compared].T).cpu().double().numpy()
    pairs = np.triu_indices(len(alike), 1)
    joined = linkage(1 - alike[pairs].clip(max=1), method="average")
    labels = fcluster(joined, 1 - JOINED, criterion="distance")
    np.fill_diagonal(alike, -1)
    nearest_other = np.where(labels[:, None] == labels, -1, alike).max(axis=1)
    is_chosen = np.isin(compared, chosen)
    apart = (alike.max(axis=1) - nearest_other)[is_chosen]
    # images most of which are in one group are the class itself
    if np.median(apart) < APART or np.bincount(labels).max() > len(labels) / 2:
        return None
    numbers = compared.numpy()
    return [numbers[labels == label].tolist() for label in np.unique(labels[is_chosen])]


def _whiten(samples: Tensor) -> Tensor:
    """Samples (N, d, p), whitened at each of p positions, as unit vectors (N, p k) float32."""
    # a row of positions at a time, as float64 takes twice the memory
    rows = samples.permute(2, 0, 1).split(POSITIONS)
    whitened = torch.cat([_whiten_positions(embeddings) for embeddings in rows])
    return torch.nn.functional.normalize(whitened.transpose(0, 1).flatten(1))


def _whiten_positions(embeddings: Tensor) -> Tensor:
    """Embeddings (p, N, d) in their main directions (p, N, k), each of variance 1 or less.

    The covariance of few or equal images is singular. In float32 MKL finds no eigenvectors of some
    such matrices, so they are sought in float64, and by NumPy, whose LAPACK is not MKL.
    """
    centred = embeddings.double() - embeddings.double().mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / (centred.shape[1] - 1)
    variances, axes = map(torch.from_numpy, np.linalg.eigh(covariance.numpy(force=True)))
    variances, axes = variances[:, -DIRECTIONS:].clamp(min=0), axes[..., -DIRECTIONS:]
    scale = (variances + NOISE * variances.mean(dim=1, keepdim=True) + TINY).sqrt()
    return (centred @ (axes / scale[:, None]).to(centred.device)).float()
