"""One Gaussian per patch position, and the Mahalanobis distance to it, in two exact forms.

With X the centred (N, d) training embeddings of a patch and z a centred test embedding, both are
for the covariance XᵀX / (N - 1) + eps I:

- primal, for N > d: covariance = LLᵀ, distance = ‖L⁻¹z‖. Only sums over the images are kept.
- dual, for N <= d: XXᵀ + eps (N - 1) I = LLᵀ is N x N, and by the Woodbury identity
  distance² = (‖z‖² - ‖L⁻¹Xz‖²) / eps. Inner products of embeddings are sums over the layers, so
  each layer is kept, and multiplied, at its own resolution and only the products are repeated.

Cholesky factors are inverted once, by substitution, so that a distance is one product of matrices;
no covariance ever is.

Reference: Defard et al., arXiv 2011.08785, sections III-B (eq. 1) and III-C (eq. 2).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

COVARIANCE_EPS = 0.01  # paper, section III-B; upstream
PATCH_BLOCK = 112  # two rows of a 56-wide grid: they share one row of layer2


@dataclass(frozen=True)
class PrimalGaussians:
    """Mean and covariance of the embeddings of every patch.

    Attributes:
        grid: h and w of the finest layer; P = h * w patches in row-major order.
        mean: (P, d).
        whitening: (P, d, d), L⁻¹ of the covariance, lower triangular.
    """

    grid: tuple[int, int]
    mean: Tensor
    whitening: Tensor

    def distances(self, layers: Sequence[Tensor], block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            layers: as in fit_gaussians, of B images.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32.
        """
        patches, parents = _arrange(layers)
        squared = self.mean.new_empty(len(self.mean), len(layers[0]))
        for rows in _blocks(len(squared), block):
            centred = _embeddings(patches, parents, rows) - self.mean[rows, None]
            squared[rows] = _whitened_norm(self.whitening[rows], centred.mT)
        return _to_grid(squared.sqrt(), self.grid)

    def leave_one_out(self, layers: Sequence[Tensor], n_train: int) -> Tensor:
        """Distances of training images to the Gaussians of the other n_train - 1.

        No second fit is needed: mean and scatter without an image are rank-one updates of those
        with it, and by the Sherman-Morrison formula so is the distance. Equal to a fit without
        the image, with eps larger by (N - 1) / (N - 2).

        Args:
            layers: of training images, as in distances.
            n_train: N, at least 3.

        Returns:
            (B, h, w) float32.
        """
        # zᵀ (S + eps (N - 1) I)⁻¹ z, with S the scatter, is below (N - 1) / N
        share = self.distances(layers).square() / (n_train - 1)
        left = 1 - n_train / (n_train - 1) * share
        return _without(left.clamp_(min=torch.finfo(left.dtype).eps), n_train)


@dataclass(frozen=True)
class DualGaussians:
    """Training embeddings of every patch and the factor of their regularised inner products.

    Attributes:
        grids: h and w of each layer, finest first; P = h * w of the finest, in row-major order.
        means: per layer (P_l, 1, d_l), for the patches of its own grid.
        samples: per layer (P_l, N, d_l), centred.
        parents: per layer (P,), the patch of its own grid that is repeated at each patch.
        whitening: (P, N, N), L⁻¹ of the inner products, lower triangular.
        eps: as in fit_gaussians.
    """

    grids: list[tuple[int, int]]
    means: list[Tensor]
    samples: list[Tensor]
    parents: list[Tensor]
    whitening: Tensor
    eps: float

    def distances(self, layers: Sequence[Tensor], block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            layers: as in fit_gaussians, of B images.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32. A square that rounding made negative counts as 0.
        """
        patches, _ = _arrange(layers)
        centred = [(z - mean).mT for z, mean in zip(patches, self.means, strict=True)]
        lengths = [z.square().sum(dim=1) for z in centred]
        squared = lengths[0].new_empty(len(self.parents[0]), len(layers[0]))
        for rows in _blocks(len(squared), block):
            products = _inner_products(self.samples, centred, self.parents, rows)
            length = sum(n[p[rows]] for n, p in zip(lengths, self.parents, strict=True))
            squared[rows] = length - _whitened_norm(self.whitening[rows], products)
        return _to_grid((squared / self.eps).clamp_(min=0).sqrt(), self.grids[0])

    def leave_one_out(self, images: Sequence[int]) -> Tensor:
        """Distances of training images to the Gaussians of all others, as in the primal form.

        With G the inverse of the regularised inner products, 1 - zᵀ (S + eps (N - 1) I)⁻¹ z is
        eps (N - 1) times an entry of G's diagonal.

        Args:
            images: numbers of training images, N >= 3 of them in all.

        Returns:
            (B, h, w) float32.
        """
        n = self.whitening.shape[1]
        ridge = self.eps * (n - 1)
        inverse = torch.stack([w.square().sum(dim=0)[images] for w in self.whitening])
        # less what the raised constant vector adds
        level = _raise_constant(self.samples, self.parents)
        inverse -= 1 / (n * (ridge + n * level[:, None]))
        left = (n * ridge / (n - 1) * inverse).clamp_(torch.finfo(inverse.dtype).eps, 1)
        return _to_grid(_without(left, n), self.grids[0])


Gaussians = PrimalGaussians | DualGaussians


def fit_gaussians(
    batches: Iterable[Sequence[Tensor]],
    n_train: int,
    eps: float = COVARIANCE_EPS,
    block: int = PATCH_BLOCK,
) -> Gaussians:
    """Fit one Gaussian to each patch position (PaDiM, section III-B, eq. 1).

    Args:
        batches: yields some images at a time as their layers, each (B, d_l, h_l, w_l) float32,
            finest first; embeddings (B, d, h, w) in one piece are a single layer.
        n_train: N, the images of all batches together.
        eps: added to the diagonal; makes the covariance invertible when N <= d.
        block: patches worked on at once. Memory only; the result does not depend on it.

    Returns:
        The Gaussians of the patches of the finest layer, float32 on the batches' device, in the
        form that is smaller for N and d. Covariance divides by N - 1.

    Raises:
        ValueError: if n_train < 2, or an embedding is not finite or too large for eps to count.
    """
    if n_train < 2:
        raise ValueError(f"a covariance needs at least 2 training images; got {n_train}")
    batches = (_check_finite(layers) for layers in batches)
    first = next(batches)
    primal = is_primal(n_train, sum(layer.shape[1] for layer in first))
    fit = _fit_primal if primal else _fit_dual
    return fit(chain([first], batches), n_train, eps, block)


def is_primal(n_train: int, n_features: int) -> bool:
    """Whether the primal form is the smaller one."""
    return n_train > n_features


def _fit_primal(
    batches: Iterable[Sequence[Tensor]], n_train: int, eps: float, block: int
) -> PrimalGaussians:
    shift, seen = None, 0
    for layers in batches:
        patches, parents = _arrange(layers)
        seen += len(layers[0])
        if shift is None:
            # sums of differences from a typical embedding lose no digits to a large mean
            means = [layer.mean(dim=1, keepdim=True) for layer in patches]
            shift = _embeddings(means, parents, slice(None))[:, 0]
            total = torch.zeros_like(shift)
            scatter = shift.new_zeros(*shift.shape, shift.shape[1])
        for rows in _blocks(len(shift), block):
            shifted = _embeddings(patches, parents, rows).sub_(shift[rows, None])
            total[rows] += shifted.sum(dim=1)
            scatter[rows].baddbmm_(shifted.mT, shifted)
    assert seen == n_train
    for rows in _blocks(len(shift), block):
        covariance = scatter[rows]
        covariance.baddbmm_(total[rows, :, None], total[rows, None], alpha=-1 / n_train)
        covariance.div_(n_train - 1).diagonal(dim1=1, dim2=2).add_(eps)
        scatter[rows] = _whiten(covariance)
    return PrimalGaussians(tuple(layers[0].shape[2:]), shift + total / n_train, scatter)


def _fit_dual(
    batches: Iterable[Sequence[Tensor]], n_train: int, eps: float, block: int
) -> DualGaussians:
    samples, seen = [], 0
    for layers in batches:
        patches, parents = _arrange(layers)
        if not samples:
            samples = [p.new_empty(p.shape[0], n_train, p.shape[2]) for p in patches]
        for kept, piece in zip(samples, patches, strict=True):
            kept[:, seen : seen + piece.shape[1]] = piece
        seen += len(layers[0])
    assert seen == n_train
    means = [kept.mean(dim=1, keepdim=True) for kept in samples]
    for kept, mean in zip(samples, means, strict=True):
        kept -= mean
    level = _raise_constant(samples, parents)
    whitening = samples[0].new_empty(len(parents[0]), n_train, n_train)
    for rows in _blocks(len(whitening), block):
        products = _inner_products(samples, [kept.mT for kept in samples], parents, rows)
        products.add_(level[rows, None, None]).diagonal(dim1=1, dim2=2).add_(eps * (n_train - 1))
        whitening[rows] = _whiten(products)
    grids = [tuple(layer.shape[2:]) for layer in layers]
    return DualGaussians(grids, means, samples, parents, whitening, eps)


def _raise_constant(samples: list[Tensor], parents: list[Tensor]) -> Tensor:
    """What is added to all inner products of a patch: the mean square length, (P,).

    Samples are centred, so the constant vector is no part of any product Xz and no distance
    changes. Left at eps, its eigenvalue would swamp the diagonal that leave_one_out reads.
    """
    lengths = [kept.square().sum(dim=2).mean(dim=1) for kept in samples]
    return sum(length[parent] for length, parent in zip(lengths, parents, strict=True))


def _without(left: Tensor, n_train: int) -> Tensor:
    """Distances without an image from 1 - N / (N - 1) zᵀ (S + eps (N - 1) I)⁻¹ z with it."""
    n = n_train
    return ((n - 2) * n / (n - 1) * (1 - left) / left).clamp_(min=0).sqrt()


def _inner_products(
    samples: list[Tensor], others: list[Tensor], parents: list[Tensor], rows: slice
) -> Tensor:
    """Xz at the patches in rows: (rows, N, B), from (P_l, N, d_l) and (P_l, d_l, B) per layer."""
    products = samples[0][rows] @ others[0][rows]
    for kept, other, parent in zip(samples[1:], others[1:], parents[1:], strict=True):
        first, last = parent[rows].aminmax()
        own = slice(first, last + 1)
        products += (kept[own] @ other[own]).index_select(0, parent[rows] - first)
    return products


def _whiten(matrices: Tensor) -> Tensor:
    """L⁻¹ of every matrix LLᵀ."""
    try:
        cholesky = torch.linalg.cholesky(matrices)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "the features are so large that float32 loses eps beside their covariance; "
            "the weights are not those of a trained network"
        ) from error
    identity = torch.eye(cholesky.shape[1], device=cholesky.device)
    return torch.linalg.solve_triangular(cholesky, identity, upper=False)


def _whitened_norm(whitening: Tensor, columns: Tensor) -> Tensor:
    """‖L⁻¹c‖² of every column c: (P, k, k) and (P, k, B) to (P, B)."""
    return (whitening @ columns).square().sum(dim=1)


def _arrange(layers: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Layers (B, d_l, h_l, w_l) as patches (h_l * w_l, B, d_l), and the parents of the finest."""
    grid = layers[0].shape[2:]
    patches = [layer.permute(2, 3, 0, 1).flatten(0, 1).contiguous() for layer in layers]
    parents = [find_parents(layer.shape[2:], grid, layer.device) for layer in layers]
    return patches, parents


def _embeddings(patches: list[Tensor], parents: list[Tensor], rows: slice) -> Tensor:
    """The layers side by side at the patches in rows of the finest grid: (rows, B, d)."""
    return torch.cat([p[own[rows]] for p, own in zip(patches, parents, strict=True)], dim=2)


def _to_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h * w, B) as (B, h, w)."""
    return values.mT.reshape(-1, *grid)


def find_parents(grid: Sequence[int], finest: Sequence[int], device: torch.device) -> Tensor:
    """For every patch of the finest grid the one of grid that concatenate repeats there."""
    height, width = grid
    index = torch.arange(height * width, device=device, dtype=torch.float32)
    repeated = F.interpolate(index.view(1, 1, height, width), size=tuple(finest), mode="nearest")
    return repeated.flatten().long()


def _blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most size that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _check_finite(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    if not all(layer.isfinite().all() for layer in layers):
        raise ValueError("an embedding is not finite; the weights or the images are damaged")
    return layers
