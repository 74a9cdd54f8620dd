"""One Gaussian per patch position, and the Mahalanobis distance to it, factored by the chain rule.

A patch of the finest layer shares those of the coarser layers with its neighbours, in a cell. With
z = (z_1, z_c), the finest layer and the coarser ones, and w the whitened z_c,

    distance² = distance²(z_c) + ‖T (z_1 - Bᵀw)‖²,

the second term the distance of z_1 from its Gaussian given z_c. Large matrices are there once in a
cell, small ones in a patch; nothing is approximated. With X the centred training embeddings, all is
for the covariance XᵀX / (N - 1) + eps I, in one of two exact forms:

- primal, for N above the channels of the coarser layers: covariance_c = LLᵀ, w = L⁻¹z_c and
  distance²(z_c) = ‖w‖². Only sums over the images are kept.
- dual, for fewer images: X_c X_cᵀ + eps (N - 1) I = LLᵀ is N x N, w = L⁻¹X_c z_c, and by the
  Woodbury identity distance²(z_c) = (‖z_c‖² - ‖w‖²) / eps. Inner products of embeddings are sums
  over the layers, so each coarser layer is kept, and multiplied, at its own resolution.

Cholesky factors are inverted once, so that a distance is a few products of matrices; no covariance
ever is.

Reference: Defard et al., arXiv 2011.08785, sections III-B (eq. 1) and III-C (eq. 2); the factors of
a Gaussian: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, appendix A.2.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.patches import (
    Block,
    Patches,
    Pyramid,
    blocks_of,
    cells_of,
    cells_on,
    new_cells_of,
)

COVARIANCE_EPS = 0.01  # paper, section III-B; upstream
SUBSTITUTED = 32  # rows of a factor that is inverted by substitution, not by halves; speed only
PATCH_BLOCK = 224  # four rows of a 56-wide grid: they share a row of layer3


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of all patches, by the chain rule.

    A single layer counts as coarser, and the finest then has d_1 = 0 channels.

    Attributes:
        pyramid: of the P patches in C cells, and of the P_l of each layer's own grid.
        means: per layer (P_l, 1, d_l).
        samples: per coarser layer (P_l, N, d_l), centred, in the dual form; none in the primal.
        whitening: (C, k, k), L⁻¹ of the coarser layers' covariance (k their channels) or, in the
            dual form, of their regularised inner products (k = N); lower triangular.
        loadings: (P, k, d_1), B: what the whitened coarser layers w (k,) tell of the finest.
        residual_whitening: (P, d_1, d_1), T: L⁻¹ of the covariance of what they do not tell.
        eps: as in fit_gaussians.
    """

    pyramid: Pyramid
    means: list[Tensor]
    samples: list[Tensor]
    whitening: Tensor
    loadings: Tensor
    residual_whitening: Tensor
    eps: float

    @property
    def is_primal(self) -> bool:
        """Whether sums over the training images were kept, not their embeddings."""
        return not self.samples

    def distances(self, patches: Patches, block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            patches: of B images, at the P patches.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32; h and w are the pyramid's shape. A square that rounding made
            negative counts as 0.
        """
        finest, coarser = _split(patches.layers)
        mean, _ = _split(self.means)
        of_patches = cells_on(self.pyramid, finest.device).of_patches
        squared = finest.new_empty(finest.shape[:2])
        for cells, rows in blocks_of(self.pyramid, block):
            whitened, coarser_squared = self._whiten_coarser(coarser, cells)
            own = of_patches[rows] - cells.start
            told = whitened.index_select(0, own) @ self.loadings[rows]
            residual = (
                _centre(finest[rows], mean[rows]).sub_(told) @ self.residual_whitening[rows].mT
            )
            squared[rows] = coarser_squared.index_select(0, own) + _square_lengths(residual)
        return squared.sqrt_().mT.reshape(squared.shape[1], *self.pyramid.shape)

    def _whiten_coarser(self, layers: list[Tensor], cells: slice) -> tuple[Tensor, Tensor]:
        """Coarser layers (P_l, B, d_l) at the cells: w (C, B, k), distance² (C, B)."""
        _, means = _split(self.means)
        if self.is_primal:
            coarser = torch.cat(_at_cells(self.pyramid, cells, _centre, layers, means), dim=2)
            whitened = _apply(self.whitening[cells], coarser)
            return whitened, _square_lengths(whitened)

        def multiply(z: Tensor, mean: Tensor, samples: Tensor) -> Tensor:
            return _centre(z, mean) @ samples.mT

        def measure(z: Tensor, mean: Tensor) -> Tensor:
            return _square_lengths(_centre(z, mean))

        products = _sum(_at_cells(self.pyramid, cells, multiply, layers, means, self.samples))
        whitened = _apply(self.whitening[cells], products)
        lengths = _sum(_at_cells(self.pyramid, cells, measure, layers, means))
        squared = (lengths - _square_lengths(whitened)).div_(self.eps).clamp_(min=0)
        return whitened, squared

    def leave_one_out(self, held_out: Patches | Sequence[int], n_train: int) -> Tensor:
        """Distances of training images to the Gaussians of the other n_train - 1.

        No second fit is needed: mean and scatter without an image are rank-one updates of those
        with it, and by the Sherman-Morrison formula so is the distance. Equal to a fit without
        the image, with eps larger by (N - 1) / (N - 2).

        Args:
            held_out: the images' patches, as in distances, or in the dual form their numbers.
            n_train: N, at least 3.

        Returns:
            (B, h, w) float32.
        """
        n = n_train
        if self.is_primal:
            # zᵀ (S + eps (N - 1) I)⁻¹ z, with S the scatter, is below (N - 1) / N
            left = 1 - n / (n - 1) ** 2 * self.distances(held_out).square()
        else:
            left = n * self.eps * self._inverse_diagonal(held_out)
            left = left.mT.reshape(len(held_out), *self.pyramid.shape)
        left = left.clamp_(torch.finfo(left.dtype).eps, 1)
        return ((n - 2) * n / (n - 1) * (1 - left) / left).sqrt()

    def _inverse_diagonal(self, images: Sequence[int]) -> Tensor:
        """Of the inverse of all regularised inner products the entries of images: (P, B).

        With G = M + X_1 X_1ᵀ the products of all layers, M = LLᵀ those of the coarser ones, 1 minus
        zᵀ (S + eps (N - 1) I)⁻¹ z is eps (N - 1) times an entry of the diagonal of
        G⁻¹ = L⁻ᵀ (I - eps BTᵀTBᵀ) L⁻¹.
        """
        n = self.whitening.shape[1]
        ridge = self.eps * (n - 1)
        members = cells_on(self.pyramid, self.whitening.device).members
        diagonal = self.loadings.new_empty(len(self.loadings), len(images))
        for cells, _ in blocks_of(self.pyramid, PATCH_BLOCK):
            columns = self.whitening[cells].mT[:, images]
            # less what the raised constant vector adds
            level = _constant(self.samples, self.pyramid, cells)
            coarser = _square_lengths(columns) - 1 / (n * (ridge + n * level[:, None]))
            for own in members[cells].unbind(1):
                told = columns @ self.loadings[own] @ self.residual_whitening[own].mT
                diagonal[own] = coarser - self.eps * _square_lengths(told)
        return diagonal

    def map_tensors(self, function: Callable[[Tensor, slice], Tensor]) -> "Gaussians":
        """The Gaussians of all rows from those of bands.

        Args:
            function: takes a tensor of this band and the part of it that no earlier band has, and
                gives these parts of all bands, joined along the first axis.
        """
        own = [self.pyramid.new_patches_of(number) for number in range(len(self.means))]
        coarser = own[1:] or own
        return Gaussians(
            Pyramid.whole(self.pyramid.grids),
            [function(mean, part) for mean, part in zip(self.means, own, strict=True)],
            [function(kept, part) for kept, part in zip(self.samples, coarser, strict=False)],
            function(self.whitening, new_cells_of(self.pyramid)),
            function(self.loadings, slice(None)),
            function(self.residual_whitening, slice(None)),
            self.eps,
        )


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
        The Gaussians of the pyramid's patches, float32 on the batches' device, in the form whose
        large matrices are smaller. Covariance divides by N - 1.

    Raises:
        ValueError: if n_train < 2, or an embedding is not finite or too large for eps to count.
    """
    if n_train < 2:
        raise ValueError(f"a covariance needs at least 2 training images; got {n_train}")
    batches = iter(batches)
    first = next(batches)
    primal = is_primal(n_train, [layer.shape[2] for layer in first.layers])
    fit = _fit_primal if primal else _fit_dual
    return fit(chain([first], batches), n_train, eps, block)


def is_primal(n_train: int, layer_features: Sequence[int]) -> bool:
    """Whether the matrices of the coarser layers are smaller in the primal form.

    Args:
        n_train: N.
        layer_features: d_l of each layer, finest first.
    """
    return n_train > sum(layer_features[1:] or layer_features)


def count_numbers(pyramid: Pyramid, layer_features: Sequence[int], n_train: int) -> int:
    """How many numbers the Gaussians of a pyramid's patches hold.

    Args:
        pyramid: of the patches.
        layer_features: d_l of each of its layers.
        n_train: N.
    """
    of_patches, parents, _ = cells_of(pyramid)
    finest = layer_features[0] if len(layer_features) > 1 else 0
    size = min(n_train, sum(layer_features) - finest)
    own = [pyramid.patches_of(number) for number in range(len(layer_features))]
    means = [
        (patches.stop - patches.start) * d_l
        for patches, d_l in zip(own, layer_features, strict=True)
    ]
    samples = 0 if is_primal(n_train, layer_features) else n_train * sum(means[1:] or means)
    return (
        sum(means)
        + samples
        + parents.shape[1] * size**2
        + len(of_patches) * finest * (size + finest)
    )


def _fit_primal(batches: Iterable[Patches], n_train: int, eps: float, block: int) -> Gaussians:
    shifts, seen = [], 0
    for patches in batches:
        seen += patches.layers[0].shape[1]
        if not shifts:
            # sums of differences from a typical embedding lose no digits to a large mean
            shifts = [layer.mean(dim=1, keepdim=True) for layer in patches.layers]
            totals = [torch.zeros_like(shift) for shift in shifts]
            pyramid = patches.pyramid
            scatter = _new_scatter(shifts, pyramid)
        shifted = [layer - shift for layer, shift in zip(patches.layers, shifts, strict=True)]
        for total, layer in zip(totals, shifted, strict=True):
            total += layer.sum(dim=1, keepdim=True)
        _add_products(scatter, shifted, pyramid, block)
        del patches, shifted  # while the next batch is made, nothing holds this one
    assert seen == n_train
    means = [shift + total / n_train for shift, total in zip(shifts, totals, strict=True)]
    for mean in means:
        _check_finite(mean)
    _add_products(scatter, totals, pyramid, block, -1 / n_train)
    for products in scatter:
        products.div_(n_train - 1)
    coarser, cross, finest = scatter
    for covariance in (coarser, finest):
        covariance.diagonal(dim1=1, dim2=2).add_(eps)
    for part in blocks_of(pyramid, block):
        _whiten(coarser[part.cells], coarser[part.cells])
        _condition(coarser, cross, finest, pyramid, part, alpha=-1)
    return Gaussians(pyramid, means, [], coarser, cross, finest, eps)


class _Scatter(NamedTuple):
    """Sums of products: of coarser layers (C, d_c, d_c), with the finest (P, d_c, d_1), of that."""

    coarser: Tensor
    cross: Tensor
    finest: Tensor


def _new_scatter(means: list[Tensor], pyramid: Pyramid) -> _Scatter:
    finest, coarser = _split(means)
    n_patches, d, d_c = len(finest), finest.shape[2], sum(z.shape[2] for z in coarser)
    n_cells = len(cells_of(pyramid).members)
    shapes = (n_cells, d_c, d_c), (n_patches, d_c, d), (n_patches, d, d)
    return _Scatter(*(finest.new_zeros(shape) for shape in shapes))


def _add_products(
    scatter: _Scatter, layers: list[Tensor], pyramid: Pyramid, block: int, alpha: float = 1
) -> None:
    """Add alpha times the products of layers (P_l, B, d_l), summed over B."""
    finest, coarser = _split(layers)
    of_patches = cells_on(pyramid, finest.device).of_patches
    for cells, rows in blocks_of(pyramid, block):
        joined = _join(coarser, pyramid, cells)
        scatter.coarser[cells].baddbmm_(joined.mT, joined, alpha=alpha)
        joined = joined.index_select(0, of_patches[rows] - cells.start)
        scatter.cross[rows].baddbmm_(joined.mT, finest[rows], alpha=alpha)
        scatter.finest[rows].baddbmm_(finest[rows].mT, finest[rows], alpha=alpha)


def _fit_dual(batches: Iterable[Patches], n_train: int, eps: float, block: int) -> Gaussians:
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
    finest, coarser = _split(samples)
    whitening = finest.new_empty(len(cells_of(pyramid).members), n_train, n_train)
    noise = eps * torch.eye(finest.shape[2], device=finest.device)
    covariance = finest.new_empty(len(finest), *noise.shape)
    for part in blocks_of(pyramid, block):
        products = _sum(_at_cells(pyramid, part.cells, lambda x: x @ x.mT, coarser))
        products += _constant(coarser, pyramid, part.cells)[:, None, None]
        products.diagonal(dim1=1, dim2=2).add_(eps * (n_train - 1))
        _whiten(products, whitening[part.cells])
        covariance[part.patches] = noise
        _condition(whitening, finest, covariance, pyramid, part, alpha=eps)
    return Gaussians(pyramid, means, coarser, whitening, finest, covariance, eps)


def _at_cells(
    pyramid: Pyramid, cells: slice, function: Callable[..., Tensor], *layers: list[Tensor]
) -> list[Tensor]:
    """What a function gives of each coarser layer, at the cells.

    Args:
        pyramid: of all cells.
        cells: some of them.
        function: takes some of the layer's patches of each of the lists (n, ...) and gives
            (n, ...), once where it is the same; that is repeated.
        layers: lists of a tensor (P_l, ...) for each coarser layer.
    """
    found = []
    wanted = cells_of(pyramid).parents[:, cells]
    index = cells_on(pyramid, layers[0][0].device).parents[:, cells]
    for number, values in enumerate(zip(*layers, strict=True)):
        first, behind = int(wanted[number].min()), int(wanted[number].max()) + 1
        result = function(*(value[first:behind] for value in values))
        if not np.array_equal(wanted[number], range(first, behind)):
            result = result.index_select(0, index[number] - first)
        found.append(result)
    return found


def _join(layers: list[Tensor], pyramid: Pyramid, cells: slice) -> Tensor:
    """Coarser layers (P_l, B, d_l) side by side at the cells: (C, B, d)."""
    return torch.cat(_at_cells(pyramid, cells, lambda z: z, layers), dim=2)


def _sum(tensors: list[Tensor]) -> Tensor:
    """Their sum, in the first one's memory."""
    return reduce(Tensor.add_, tensors)


def _square_lengths(embeddings: Tensor) -> Tensor:
    """Of all (P, B, d): (P, B)."""
    return torch.linalg.vector_norm(embeddings, dim=2).square_()


def _condition(
    whitening: Tensor,
    cross: Tensor,
    covariance: Tensor,
    pyramid: Pyramid,
    block: Block,
    alpha: float,
) -> None:
    """Condition the finest layer on the coarser ones, in a block, in place.

    Args:
        whitening: (C, k, k), of the coarser layers.
        cross: (P, k, d), products with the finest layer; becomes the loadings B.
        covariance: (P, d, d) of the finest layer, to which alpha BᵀB is added; becomes T.
        pyramid: of all cells and patches.
        block: some of them.
        alpha: as said.
    """
    # one patch of each cell at a time, as they share its whitening; a patch that is there twice is
    # taken twice before it is replaced
    members = cells_on(pyramid, cross.device).members[block.cells].unbind(1)
    columns = [cross[own] for own in members]
    for own, taken in zip(members, columns, strict=True):
        cross[own] = whitening[block.cells] @ taken
    loadings, residual = cross[block.patches], covariance[block.patches]
    residual.baddbmm_(loadings.mT, loadings, alpha=alpha)
    _whiten(residual, residual)


def _constant(samples: list[Tensor], pyramid: Pyramid, cells: slice) -> Tensor:
    """What is added to all inner products of a cell: the samples' mean square length, (C,).

    Samples are centred, so the constant vector is no part of any product Xz and no distance
    changes. Left at eps, its eigenvalue would swamp the diagonal that leave_one_out reads.
    """
    return _sum(_at_cells(pyramid, cells, lambda x: _square_lengths(x).mean(dim=1), samples))


def _apply(whitening: Tensor, rows: Tensor) -> Tensor:
    """L⁻¹ times every row of a matrix: (C, k, k) and (C, B, k) to (C, B, k)."""
    # the upper right quarter holds zeros
    half = whitening.shape[1] // 2
    upper = rows[..., :half] @ whitening[:, :half, :half].mT
    return torch.cat([upper, rows @ whitening[:, half:].mT], dim=2)


def _centre(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Less their mean, all (P, B, d) in one piece, where products of matrices are fastest."""
    return torch.sub(embeddings, mean, out=embeddings.new_empty(embeddings.shape))


def _split(layers: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The finest layer and the coarser ones; a single layer is coarser, the finest is empty."""
    first, *others = layers
    return (first, others) if others else (first[..., :0], layers)


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


def _check_finite(mean: Tensor) -> None:
    """Refuse embeddings of which one is not finite, and so neither is their mean."""
    if not mean.isfinite().all():
        raise ValueError("an embedding is not finite; the weights or the images are damaged")
