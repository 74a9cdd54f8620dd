"""One Gaussian per patch position, and the Mahalanobis distance to it, in two exact forms.

With X the centred (N, d) training embeddings of a patch and z a centred test embedding, both are
for the covariance XᵀX / (N - 1) + eps I:

- primal, for N > d: covariance = LLᵀ, distance = ‖L⁻¹z‖. Only sums over the images are kept.
- dual, for N <= d: XXᵀ + eps (N - 1) I = LLᵀ is N x N, and by the Woodbury identity
  distance² = (‖z‖² - ‖L⁻¹Xz‖²) / eps. Inner products of embeddings are sums over the layers, so
  each layer is kept, and multiplied, at its own resolution and only the products are repeated.

Cholesky factors are inverted once, so that a distance is one product of matrices; no covariance
ever is.

Reference: Defard et al., arXiv 2011.08785, sections III-B (eq. 1) and III-C (eq. 2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from utils.patches import Patches, Pyramid, cells_of, cells_on, parents_on

COVARIANCE_EPS = 0.01  # paper, section III-B; upstream
SUBSTITUTED = 32  # rows of a factor that is inverted by substitution, not by halves; speed only
PATCH_BLOCK = 112  # two rows of a 56-wide grid: they share one row of layer2


@dataclass(frozen=True)
class PrimalGaussians:
    """Mean and covariance of the embeddings of every patch.

    Attributes:
        pyramid: of the P patches.
        mean: (P, d).
        whitening: (P, d, d), L⁻¹ of the covariance, lower triangular.
    """

    pyramid: Pyramid
    mean: Tensor
    whitening: Tensor

    def distances(self, patches: Patches, block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            patches: of B images, at the P patches.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32; h and w are the pyramid's shape.
        """
        squared = self.mean.new_empty(len(self.mean), patches.layers[0].shape[1])
        for rows in _blocks(len(squared), block):
            centred = _embeddings(patches, rows) - self.mean[rows, None]
            squared[rows] = _whitened_norm(self.whitening[rows], centred.mT)
        return _to_grid(squared.sqrt(), self.pyramid)

    def leave_one_out(self, patches: Patches, n_train: int) -> Tensor:
        """Distances of training images to the Gaussians of the other n_train - 1.

        No second fit is needed: mean and scatter without an image are rank-one updates of those
        with it, and by the Sherman-Morrison formula so is the distance. Equal to a fit without
        the image, with eps larger by (N - 1) / (N - 2).

        Args:
            patches: of training images, as in distances.
            n_train: N, at least 3.

        Returns:
            (B, h, w) float32.
        """
        # zᵀ (S + eps (N - 1) I)⁻¹ z, with S the scatter, is below (N - 1) / N
        share = self.distances(patches).square() / (n_train - 1)
        left = 1 - n_train / (n_train - 1) * share
        return _without(left.clamp_(min=torch.finfo(left.dtype).eps), n_train)

    def map_tensors(self, function: Callable[[Tensor, slice], Tensor]) -> "PrimalGaussians":
        """The Gaussians of all rows from those of bands.

        Args:
            function: takes a tensor of this band and the part of it that no earlier band has, and
                gives these parts of all bands, joined along the first axis.
        """
        whole = slice(None)
        return PrimalGaussians(
            Pyramid.whole(self.pyramid.grids),
            function(self.mean, whole),
            function(self.whitening, whole),
        )


@dataclass(frozen=True)
class DualGaussians:
    """Training embeddings of every patch and the factor of their regularised inner products.

    Attributes:
        pyramid: of the P patches, and of the P_l of each layer's own grid.
        means: per layer (P_l, 1, d_l).
        samples: per layer (P_l, N, d_l), centred.
        whitening: (P, N, N), L⁻¹ of the inner products, lower triangular.
        eps: as in fit_gaussians.
    """

    pyramid: Pyramid
    means: list[Tensor]
    samples: list[Tensor]
    whitening: Tensor
    eps: float

    def distances(self, patches: Patches, block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            patches: of B images, at the P patches.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32; h and w are the pyramid's shape. A square that rounding made
            negative counts as 0.
        """
        centred = [
            torch.sub(z, mean, out=z.new_empty(z.shape)).mT
            for z, mean in zip(patches.layers, self.means, strict=True)
        ]
        lengths = [torch.linalg.vector_norm(z, dim=1).square() for z in centred]
        squared = _sum_layers(lengths, self.pyramid)
        for rows in _blocks(len(squared), block):
            products = _inner_products(self.samples, centred, self.pyramid, rows)
            squared[rows] -= _whitened_norm(self.whitening[rows], products)
        return _to_grid((squared / self.eps).clamp_(min=0).sqrt(), self.pyramid)

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
        inverse = self.whitening.new_empty(len(self.whitening), len(images))
        for rows in _blocks(len(inverse), PATCH_BLOCK):
            inverse[rows] = self.whitening[rows].square().sum(dim=1)[:, images]
        # less what the raised constant vector adds
        level = _raise_constant(self.samples, self.pyramid)
        inverse -= 1 / (n * (ridge + n * level[:, None]))
        left = (n * ridge / (n - 1) * inverse).clamp_(torch.finfo(inverse.dtype).eps, 1)
        return _to_grid(_without(left, n), self.pyramid)

    def map_tensors(self, function: Callable[[Tensor, slice], Tensor]) -> "DualGaussians":
        """The Gaussians of all rows from those of bands, as in the primal form."""
        own = [self.pyramid.new_patches_of(number) for number in range(len(self.means))]
        return DualGaussians(
            Pyramid.whole(self.pyramid.grids),
            [function(mean, part) for mean, part in zip(self.means, own, strict=True)],
            [function(kept, part) for kept, part in zip(self.samples, own, strict=True)],
            function(self.whitening, slice(None)),
            self.eps,
        )


Gaussians = PrimalGaussians | DualGaussians


def fit_gaussians(
    batches: Iterable[Patches],
    n_train: int,
    eps: float = COVARIANCE_EPS,
    block: int = PATCH_BLOCK,
) -> Gaussians:
    """Fit one Gaussian to each patch position (PaDiM, section III-B, eq. 1).

    Args:
        batches: yields some images at a time, float32, all on the same pyramid; embeddings in
            one piece are a single layer.
        n_train: N, the images of all batches together.
        eps: added to the diagonal; makes the covariance invertible when N <= d.
        block: patches worked on at once. Memory only; the result does not depend on it.

    Returns:
        The Gaussians of the pyramid's patches, float32 on the batches' device, in the form that
        is smaller for N and d. Covariance divides by N - 1.

    Raises:
        ValueError: if n_train < 2, or an embedding is not finite or too large for eps to count.
    """
    if n_train < 2:
        raise ValueError(f"a covariance needs at least 2 training images; got {n_train}")
    batches = iter(batches)
    first = next(batches)
    primal = is_primal(n_train, sum(layer.shape[2] for layer in first.layers))
    fit = _fit_primal if primal else _fit_dual
    return fit(chain([first], batches), n_train, eps, block)


def is_primal(n_train: int, n_features: int) -> bool:
    """Whether the primal form is the smaller one."""
    return n_train > n_features


def count_numbers(pyramid: Pyramid, layer_features: Sequence[int], n_train: int) -> int:
    """How many numbers the Gaussians of a pyramid's patches hold.

    Args:
        pyramid: of the patches.
        layer_features: d_l of each of its layers.
        n_train: N.
    """
    height, width = pyramid.shape
    d = sum(layer_features)
    if is_primal(n_train, d):
        return height * width * (d + d**2)
    sizes = [pyramid.patches_of(number) for number in range(len(layer_features))]
    kept = sum((n.stop - n.start) * d_l for n, d_l in zip(sizes, layer_features, strict=True))
    return height * width * n_train**2 + (n_train + 1) * kept


def _fit_primal(
    batches: Iterable[Patches], n_train: int, eps: float, block: int
) -> PrimalGaussians:
    shift, seen = None, 0
    for patches in batches:
        seen += patches.layers[0].shape[1]
        if shift is None:
            # sums of differences from a typical embedding lose no digits to a large mean
            means = [layer.mean(dim=1, keepdim=True) for layer in patches.layers]
            shift = _embeddings(patches._replace(layers=means), slice(None))[:, 0]
            total = torch.zeros_like(shift)
            scatter = shift.new_zeros(*shift.shape, shift.shape[1])
        for rows in _blocks(len(shift), block):
            shifted = _embeddings(patches, rows).sub_(shift[rows, None])
            total[rows] += shifted.sum(dim=1)
            scatter[rows].baddbmm_(shifted.mT, shifted)
        pyramid = patches.pyramid
        del patches  # while the next batch is made, nothing holds this one
    assert seen == n_train
    mean = shift + total / n_train
    _check_finite(mean)
    for rows in _blocks(len(shift), block):
        covariance = scatter[rows]
        covariance.baddbmm_(total[rows, :, None], total[rows, None], alpha=-1 / n_train)
        covariance.div_(n_train - 1).diagonal(dim1=1, dim2=2).add_(eps)
        _whiten(covariance, covariance)
    return PrimalGaussians(pyramid, mean, scatter)


def _fit_dual(batches: Iterable[Patches], n_train: int, eps: float, block: int) -> DualGaussians:
    samples, seen = [], 0
    for patches in batches:
        if not samples:
            samples = [z.new_empty(len(z), n_train, z.shape[2]) for z in patches.layers]
        for kept, piece in zip(samples, patches.layers, strict=True):
            kept[:, seen : seen + piece.shape[1]] = piece
        seen += patches.layers[0].shape[1]
        pyramid = patches.pyramid
        del patches, piece  # while the next batch is made, nothing holds this one
    assert seen == n_train
    means = [kept.mean(dim=1, keepdim=True) for kept in samples]
    for kept, mean in zip(samples, means, strict=True):
        _check_finite(mean)
        kept -= mean
    level = _raise_constant(samples, pyramid)
    whitening = level.new_empty(len(level), n_train, n_train)
    for rows in _blocks(len(whitening), block):
        # where they stay, as memory that is new to a process takes as long as the products
        products = whitening[rows]
        _inner_products(samples, [kept.mT for kept in samples], pyramid, rows, out=products)
        products.add_(level[rows, None, None]).diagonal(dim1=1, dim2=2).add_(eps * (n_train - 1))
        _whiten(products, products)
    return DualGaussians(pyramid, means, samples, whitening, eps)


def _raise_constant(samples: list[Tensor], pyramid: Pyramid) -> Tensor:
    """What is added to all inner products of a patch: the mean square length, (P,).

    Samples are centred, so the constant vector is no part of any product Xz and no distance
    changes. Left at eps, its eigenvalue would swamp the diagonal that leave_one_out reads.
    """
    lengths = [torch.linalg.vector_norm(kept, dim=2).square().mean(dim=1) for kept in samples]
    return _sum_layers(lengths, pyramid)


def _without(left: Tensor, n_train: int) -> Tensor:
    """Distances without an image from 1 - N / (N - 1) zᵀ (S + eps (N - 1) I)⁻¹ z with it."""
    n = n_train
    return ((n - 2) * n / (n - 1) * (1 - left) / left).clamp_(min=0).sqrt()


def _sum_layers(values: list[Tensor], pyramid: Pyramid) -> Tensor:
    """The sum over the layers at each patch: (P_l, ...) per layer to (P, ...)."""
    return sum(_repeat(value, pyramid, number, slice(None)) for number, value in enumerate(values))


def _repeat(values: Tensor, pyramid: Pyramid, number: int, rows: slice) -> Tensor:
    """The values (P_l, ...) of a layer at the patches in rows."""
    if number == 0:
        return values[rows]
    return values.index_select(0, parents_on(pyramid, number, values.device)[rows])


def _inner_products(
    samples: list[Tensor],
    others: list[Tensor],
    pyramid: Pyramid,
    rows: slice,
    out: Tensor | None = None,
) -> Tensor:
    """Xz at the patches in rows: (rows, N, B), from (P_l, N, d_l) and (P_l, d_l, B) per layer."""
    if len(samples) == 1:
        return torch.bmm(samples[0][rows], others[0][rows], out=out)
    # of the coarser layers once where they are the same, then repeated
    cells, parents = cells_of(pyramid)
    own_cells = _range(cells[rows])
    cells_there, parents_there = cells_on(pyramid, samples[0].device)
    shared = None
    for number in range(1, len(samples)):
        own = _range(parents[number - 1, own_cells])
        index = parents_there[number - 1, own_cells] - own.start
        product = (samples[number][own] @ others[number][own]).index_select(0, index)
        shared = product if shared is None else shared.add_(product)
    product = torch.index_select(shared, 0, cells_there[rows] - own_cells.start, out=out)
    return product.baddbmm_(samples[0][rows], others[0][rows])


def _range(index: np.ndarray) -> slice:
    """What an index lies in."""
    return slice(int(index.min()), int(index.max()) + 1)


def _whiten(matrices: Tensor, inverse: Tensor) -> None:
    """Write L⁻¹ of every matrix LLᵀ into inverse, which may be matrices itself.

    By halves, so that almost all of it is products of matrices, which are faster in a batch than
    factors and substitutions: with L = [[A, 0], [B, C]], L⁻¹ = [[A⁻¹, 0], [-C⁻¹BA⁻¹, C⁻¹]].
    """
    size = matrices.shape[1]
    if size <= SUBSTITUTED:
        inverse.copy_(_whiten_small(matrices))
        return
    head, tail = slice(0, size // 2), slice(size // 2, size)
    first, second = inverse[:, head, head], inverse[:, tail, tail]
    _whiten(matrices[:, head, head], first)
    below = matrices[:, tail, head] @ first.mT
    _whiten(torch.baddbmm(matrices[:, tail, tail], below, below.mT, alpha=-1), second)
    torch.neg(second @ (below @ first), out=inverse[:, tail, head])
    inverse[:, head, tail] = 0


def _whiten_small(matrices: Tensor) -> Tensor:
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
    # the upper right quarter holds zeros
    half = whitening.shape[1] // 2
    upper = whitening[:, :half, :half] @ columns[:, :half]
    lower = whitening[:, half:] @ columns
    return upper.square_().sum(dim=1) + lower.square_().sum(dim=1)


def _embeddings(patches: Patches, rows: slice) -> Tensor:
    """The layers side by side at the patches in rows of the finest grid: (rows, B, d)."""
    pyramid, layers = patches
    return torch.cat([_repeat(z, pyramid, n, rows) for n, z in enumerate(layers)], dim=2)


def _to_grid(values: Tensor, pyramid: Pyramid) -> Tensor:
    """(P, B) as (B, h, w)."""
    return values.mT.reshape(values.shape[1], *pyramid.shape)


def _blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most size that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _check_finite(mean: Tensor) -> None:
    """Refuse embeddings of which one is not finite, and so neither is their mean."""
    if not mean.isfinite().all():
        raise ValueError("an embedding is not finite; the weights or the images are damaged")
