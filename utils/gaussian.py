"""One Gaussian per patch position, and the Mahalanobis distance to it, factored by the chain rule.

A patch of the finest layer shares the patches of the coarser layers with its neighbours; together
they are a cell. With z = (z_1, z_c), z_1 of the finest layer and z_c of the coarser ones, and w the
whitened z_c,

    distance² = distance²(z_c) + ‖T (z_1 - Bᵀw)‖².

The second term is the distance of z_1 from its Gaussian given z_c. So large matrices are needed
once in a cell, and only small ones in each patch. Nothing is approximated. With X the centred
training embeddings, the covariance is XᵀX / (N - 1) + eps I, in one of two exact forms:

- primal, if N exceeds the channels of the coarser layers: covariance_c = LLᵀ, w = L⁻¹z_c and
  distance²(z_c) = ‖w‖². Only sums over the images are kept.
- dual, for fewer images: X_c X_cᵀ + eps (N - 1) I = LLᵀ is N x N, w = L⁻¹X_c z_c, and by the
  Woodbury identity distance²(z_c) = (‖z_c‖² - ‖w‖²) / eps. Inner products of embeddings are sums
  over the layers, so each coarser layer is kept, and multiplied, at its own resolution.

Cholesky factors are inverted once, so that a distance is a few matrix products; no covariance is
ever inverted.

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

from utils.patches import Block, Grids, blocks_of, cells_of, cells_on, grids_of, to_patches

COVARIANCE_EPS = 0.01  # paper, section III-B; upstream
SUBSTITUTED = 32  # factors of at most so many rows are inverted by substitution. Speed only
PATCH_BLOCK = 224  # four rows of a 56-wide grid: they share a row of layer3


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of all patches, factored by the chain rule.

    A single layer counts as coarser; the finest layer then has d_1 = 0 channels.

    Attributes:
        grids: h and w of each layer, finest first; P patches in C cells, P_l patches of layer l.
        means: per layer (P_l, 1, d_l).
        samples: dual form: per coarser layer (P_l, N, d_l), centred. Primal form: empty.
        whitening: (C, k, k), L⁻¹ of the coarser layers' covariance (primal, k their channels) or
            of their regularised inner products (dual, k = N); lower triangular.
        loadings: (P, k, d_1), B: the regression of the finest layer on the whitened coarser ones.
        residual_whitening: (P, d_1, d_1), T: L⁻¹ of the covariance of what that leaves.
        eps: as in fit_gaussians.
    """

    grids: Grids
    means: list[Tensor]
    samples: list[Tensor]
    whitening: Tensor
    loadings: Tensor
    residual_whitening: Tensor
    eps: float

    @property
    def is_primal(self) -> bool:
        """Whether sums over the training images were kept instead of their embeddings."""
        return not self.samples

    def distances(self, layers: Sequence[Tensor], block: int = PATCH_BLOCK) -> Tensor:
        """Mahalanobis distance of each patch (PaDiM, section III-C, eq. 2), not squared.

        Args:
            layers: (B, d_l, h_l, w_l) of each layer, finest first.
            block: as in fit_gaussians.

        Returns:
            (B, h, w) float32 on the finest grid. A square that rounding made negative counts as 0.
        """
        finest, coarser = _split(to_patches(layers))
        mean, _ = _split(self.means)
        of_patches = cells_on(self.grids, finest.device).of_patches
        squared = finest.new_empty(finest.shape[:2])
        for cells, patches in blocks_of(self.grids, block):
            whitened, coarser_squared = self._whiten_coarser(coarser, cells)
            cell = of_patches[patches] - cells.start
            expected = whitened.index_select(0, cell) @ self.loadings[patches]
            residual = _centre(finest[patches], mean[patches]).sub_(expected)
            residual = residual @ self.residual_whitening[patches].mT
            squared[patches] = coarser_squared.index_select(0, cell) + _square_lengths(residual)
        return self._on_grid(squared.sqrt_())

    def _on_grid(self, values: Tensor) -> Tensor:
        """Values (P, B) of the patches as (B, h, w)."""
        return values.mT.reshape(values.shape[1], *self.grids[0])

    def _whiten_coarser(self, layers: list[Tensor], cells: slice) -> tuple[Tensor, Tensor]:
        """Coarser layers (P_l, B, d_l) at the cells: w (C, B, k) and distance² (C, B)."""
        _, means = _split(self.means)
        if self.is_primal:
            coarser = torch.cat(_at_cells(self.grids, cells, _centre, layers, means), dim=2)
            whitened = _whiten_rows(self.whitening[cells], coarser)
            return whitened, _square_lengths(whitened)

        def multiply(z: Tensor, mean: Tensor, samples: Tensor) -> Tensor:
            return _centre(z, mean) @ samples.mT

        def measure(z: Tensor, mean: Tensor) -> Tensor:
            return _square_lengths(_centre(z, mean))

        products = _sum(_at_cells(self.grids, cells, multiply, layers, means, self.samples))
        whitened = _whiten_rows(self.whitening[cells], products)
        lengths = _sum(_at_cells(self.grids, cells, measure, layers, means))
        squared = (lengths - _square_lengths(whitened)).div_(self.eps).clamp_(min=0)
        return whitened, squared

    def leave_one_out(
        self,
        images: Sequence[Sequence[int]],
        layers: Sequence[Tensor] | None,
        n_train: int,
    ) -> Tensor:
        """Distances of training images to the Gaussians of the other training images.

        No second fit is needed: mean and scatter without an image are rank-one updates of those
        with it, and so is the distance by the Sherman-Morrison formula; m copies of an image count
        m times in it. Equal to a fit without the image and its copies, with eps larger by
        (N - 1) / (N - m - 1).

        Args:
            images: for B training images the numbers, in the order of the fit, of the image and
                of all its copies; at most N - 2.
            layers: embeddings of the B images, as in distances; the dual form needs none.
            n_train: N, at least 3.

        Returns:
            (B, h, w) float32.
        """
        n, m = n_train, np.array([len(copies) for copies in images])
        part = (n - 1) / (m * (n - m))  # 1 for an image without a copy

        def scale(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(self.whitening)[:, None, None]

        if self.is_primal:
            # m zᵀ (S + eps (N - 1) I)⁻¹ z, with S the scatter, is below (N - m) / N
            taken = n / (n - 1) ** 2 * self.distances(layers).square()
            left = 1 - scale(m**2 * part) * taken
        else:
            left = scale(n * self.eps * part) * self._on_grid(self._inverse_sums(images))
        left = left.clamp_(torch.finfo(left.dtype).eps, 1)
        return (scale((n - m - 1) * n / (m * (n - m))) * (1 - left) / left).sqrt()

    def _inverse_sums(self, images: Sequence[Sequence[int]]) -> Tensor:
        """Sums over entries of the inverse of all regularised inner products: (P, B).

        With G = M + X_1 X_1ᵀ the products of all layers, M = LLᵀ those of the coarser ones, 1 minus
        zᵀ (S + eps (N - 1) I)⁻¹ z is eps (N - 1) times an entry of the diagonal of
        G⁻¹ = L⁻ᵀ (I - eps BTᵀTBᵀ) L⁻¹. For m copies it is the sum over their m x m entries.
        """
        n = self.whitening.shape[1]
        ridge = self.eps * (n - 1)
        members = cells_on(self.grids, self.whitening.device).members
        m = torch.tensor([len(copies) for copies in images], device=self.whitening.device)
        flat = torch.tensor(list(chain(*images)), device=m.device)
        owners = [row for row, copies in enumerate(images) for _ in copies]
        owner = torch.tensor(owners, device=m.device)
        sums = self.loadings.new_empty(len(self.loadings), len(images))
        for cells, _ in blocks_of(self.grids, PATCH_BLOCK):
            # the columns of the copies are added before they are squared: they almost cancel
            columns = self.whitening[cells].mT[:, flat]
            columns = columns.new_zeros(len(columns), len(m), n).index_add_(1, owner, columns)
            # without what _mean_square_length has added for the constant vector
            level = _mean_square_length(self.samples, self.grids, cells)
            coarser = _square_lengths(columns) - m**2 / (n * (ridge + n * level[:, None]))
            for patches in members[cells].unbind(1):
                explained = columns @ self.loadings[patches] @ self.residual_whitening[patches].mT
                sums[patches] = coarser - self.eps * _square_lengths(explained)
        return sums


def fit_gaussians(
    batches: Iterable[Sequence[Tensor]],
    n_train: int,
    eps: float = COVARIANCE_EPS,
    block: int = PATCH_BLOCK,
) -> Gaussians:
    """Fit one Gaussian to each patch position (PaDiM, section III-B, eq. 1).

    Args:
        batches: yields layers (B, d_l, h_l, w_l) float32 of some images at a time, finest first,
            all on the same grids; embeddings in one piece are a single layer.
        n_train: N, the images of all batches together.
        eps: added to the diagonal; makes the covariance invertible when N <= d.
        block: patches worked on at once. Memory only; the result does not depend on it.

    Returns:
        The Gaussians of all patches, float32 on the batches' device, in the form whose large
        matrices are smaller. Covariance divides by N - 1.

    Raises:
        ValueError: if n_train < 2, or an embedding is not finite or too large for eps to count.
    """
    if n_train < 2:
        raise ValueError(f"a covariance needs at least 2 training images; got {n_train}")
    batches = iter(batches)
    first = next(batches)
    primal = is_primal(n_train, [layer.shape[1] for layer in first])
    fit = _fit_primal if primal else _fit_dual
    return fit(chain([first], batches), n_train, eps, block)


def is_primal(n_train: int, layer_features: Sequence[int]) -> bool:
    """Whether the matrices of the coarser layers are smaller in the primal form.

    Args:
        n_train: N.
        layer_features: d_l of each layer, finest first.
    """
    return n_train > sum(layer_features[1:] or layer_features)


def count_numbers(grids: Grids, layer_features: Sequence[int], n_train: int) -> int:
    """How many numbers the Gaussians on these grids hold.

    Args:
        grids: h and w of each layer, finest first.
        layer_features: d_l of each layer.
        n_train: N.
    """
    of_patches, parents, _ = cells_of(grids)
    finest = layer_features[0] if len(layer_features) > 1 else 0
    size = min(n_train, sum(layer_features) - finest)
    means = [h * w * d_l for (h, w), d_l in zip(grids, layer_features, strict=True)]
    samples = 0 if is_primal(n_train, layer_features) else n_train * sum(means[1:] or means)
    matrices = parents.shape[1] * size**2 + len(of_patches) * finest * (size + finest)
    return sum(means) + samples + matrices


def _fit_primal(
    batches: Iterable[Sequence[Tensor]], n_train: int, eps: float, block: int
) -> Gaussians:
    shifts, seen = [], 0
    for layers in batches:
        patches = to_patches(layers)
        seen += len(layers[0])
        if not shifts:
            # sums of differences from a typical embedding lose no digits to a large mean
            shifts = [layer.mean(dim=1, keepdim=True) for layer in patches]
            totals = [torch.zeros_like(shift) for shift in shifts]
            grids = grids_of(layers)
            scatter = _new_scatter(shifts, grids)
        shifted = [layer - shift for layer, shift in zip(patches, shifts, strict=True)]
        for total, layer in zip(totals, shifted, strict=True):
            total += layer.sum(dim=1, keepdim=True)
        _add_products(scatter, shifted, grids, block)
        del layers, patches, shifted, layer  # free this batch before the next one is made
    assert seen == n_train
    means = [shift + total / n_train for shift, total in zip(shifts, totals, strict=True)]
    for mean in means:
        _check_finite(mean)
    _add_products(scatter, totals, grids, block, -1 / n_train)
    for products in scatter:
        products.div_(n_train - 1)
    coarser, cross, finest = scatter
    for covariance in (coarser, finest):
        covariance.diagonal(dim1=1, dim2=2).add_(eps)
    for part in blocks_of(grids, block):
        _invert_factors(coarser[part.cells], coarser[part.cells])
        _condition(coarser, cross, finest, grids, part, alpha=-1)
    return Gaussians(grids, means, [], coarser, cross, finest, eps)


class _Scatter(NamedTuple):
    """Sums of products: of coarser layers (C, d_c, d_c), with the finest (P, d_c, d_1), of that."""

    coarser: Tensor
    cross: Tensor
    finest: Tensor


def _new_scatter(means: list[Tensor], grids: Grids) -> _Scatter:
    finest, coarser = _split(means)
    n_patches, d, d_c = len(finest), finest.shape[2], sum(z.shape[2] for z in coarser)
    n_cells = len(cells_of(grids).members)
    shapes = (n_cells, d_c, d_c), (n_patches, d_c, d), (n_patches, d, d)
    return _Scatter(*(finest.new_zeros(shape) for shape in shapes))


def _add_products(
    scatter: _Scatter, layers: list[Tensor], grids: Grids, block: int, alpha: float = 1
) -> None:
    """Add alpha times the products of layers (P_l, B, d_l), summed over B."""
    finest, coarser = _split(layers)
    of_patches = cells_on(grids, finest.device).of_patches
    for cells, patches in blocks_of(grids, block):
        joined = torch.cat(_at_cells(grids, cells, lambda z: z, coarser), dim=2)
        scatter.coarser[cells].baddbmm_(joined.mT, joined, alpha=alpha)
        joined = joined.index_select(0, of_patches[patches] - cells.start)
        scatter.cross[patches].baddbmm_(joined.mT, finest[patches], alpha=alpha)
        scatter.finest[patches].baddbmm_(finest[patches].mT, finest[patches], alpha=alpha)


def _fit_dual(
    batches: Iterable[Sequence[Tensor]], n_train: int, eps: float, block: int
) -> Gaussians:
    samples, grids = _collect(batches, n_train)
    means = [kept.mean(dim=1, keepdim=True) for kept in samples]
    for kept, mean in zip(samples, means, strict=True):
        _check_finite(mean)
        kept -= mean
    finest, coarser = _split(samples)
    whitening = finest.new_empty(len(cells_of(grids).members), n_train, n_train)
    noise = eps * torch.eye(finest.shape[2], device=finest.device)
    covariance = finest.new_empty(len(finest), *noise.shape)
    for part in blocks_of(grids, block):
        products = _sum(_at_cells(grids, part.cells, lambda x: x @ x.mT, coarser))
        products += _mean_square_length(coarser, grids, part.cells)[:, None, None]
        products.diagonal(dim1=1, dim2=2).add_(eps * (n_train - 1))
        _invert_factors(products, whitening[part.cells])
        covariance[part.patches] = noise
        _condition(whitening, finest, covariance, grids, part, alpha=eps)
    return Gaussians(grids, means, coarser, whitening, finest, covariance, eps)


def _collect(batches: Iterable[Sequence[Tensor]], n_train: int) -> tuple[list[Tensor], Grids]:
    """The patches of all images, per layer (P_l, N, d_l), and the layers' grids."""
    samples, seen = [], 0
    for layers in batches:
        patches = to_patches(layers)
        if not samples:
            samples = [z.new_empty(len(z), n_train, z.shape[2]) for z in patches]
        for kept, piece in zip(samples, patches, strict=True):
            kept[:, seen : seen + piece.shape[1]] = piece
        seen += len(layers[0])
        grids = grids_of(layers)
        del layers, patches, piece  # free this batch before the next one is made
    assert seen == n_train
    return samples, grids


def _at_cells(
    grids: Grids, cells: slice, function: Callable[..., Tensor], *layers: list[Tensor]
) -> list[Tensor]:
    """What a function returns for each coarser layer, at the cells.

    Args:
        grids: of all layers.
        cells: some of the cells.
        function: takes some of a layer's patches (n, ...) from each of the lists and returns
            (n, ...). It is called once for each patch of the layer, then the result is repeated.
        layers: lists of a tensor (P_l, ...) for each coarser layer.
    """
    found = []
    wanted = cells_of(grids).parents[:, cells]
    index = cells_on(grids, layers[0][0].device).parents[:, cells]
    for number, values in enumerate(zip(*layers, strict=True)):
        first, end = int(wanted[number].min()), int(wanted[number].max()) + 1
        result = function(*(value[first:end] for value in values))
        if not np.array_equal(wanted[number], range(first, end)):
            result = result.index_select(0, index[number] - first)
        found.append(result)
    return found


def _sum(tensors: list[Tensor]) -> Tensor:
    """The sum of tensors, written into the first of them."""
    return reduce(Tensor.add_, tensors)


def _square_lengths(embeddings: Tensor) -> Tensor:
    """Squared lengths of (P, B, d): (P, B)."""
    return torch.linalg.vector_norm(embeddings, dim=2).square_()


def _condition(
    whitening: Tensor,
    cross: Tensor,
    covariance: Tensor,
    grids: Grids,
    block: Block,
    alpha: float,
) -> None:
    """Condition the finest layer on the coarser ones, in a block, in place.

    Args:
        whitening: (C, k, k), of the coarser layers.
        cross: (P, k, d), products with the finest layer; becomes the loadings B.
        covariance: (P, d, d) of the finest layer; becomes T after alpha BᵀB is added.
        grids: of all layers.
        block: some of the cells and their patches.
        alpha: the factor of BᵀB.
    """
    # One patch of each cell at a time, as the patches of a cell share its whitening. The index
    # repeats the last patch of a short cell, so all columns are read before any is overwritten.
    members = cells_on(grids, cross.device).members[block.cells].unbind(1)
    columns = [cross[patches] for patches in members]
    for patches, column in zip(members, columns, strict=True):
        cross[patches] = whitening[block.cells] @ column
    loadings, residual = cross[block.patches], covariance[block.patches]
    residual.baddbmm_(loadings.mT, loadings, alpha=alpha)
    _invert_factors(residual, residual)


def _mean_square_length(samples: list[Tensor], grids: Grids, cells: slice) -> Tensor:
    """The samples' mean squared length in each cell (C,), which is added to all inner products.

    Samples are centred, so the constant vector is no part of any product Xz and no distance
    changes. Left at eps, its eigenvalue would swamp the diagonal that leave_one_out reads.
    """
    return _sum(_at_cells(grids, cells, lambda x: _square_lengths(x).mean(dim=1), samples))


def _whiten_rows(whitening: Tensor, rows: Tensor) -> Tensor:
    """L⁻¹ times every row of a matrix: (C, k, k) and (C, B, k) to (C, B, k)."""
    # the upper right quarter of L⁻¹ holds zeros
    half = whitening.shape[1] // 2
    upper = rows[..., :half] @ whitening[:, :half, :half].mT
    return torch.cat([upper, rows @ whitening[:, half:].mT], dim=2)


def _centre(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Embeddings (P, B, d) minus their mean, contiguous: matrix products are fastest on that."""
    return torch.sub(embeddings, mean, out=embeddings.new_empty(embeddings.shape))


def _split(layers: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The finest layer and the coarser ones; a single layer is coarser, the finest is empty."""
    first, *others = layers
    return (first, others) if others else (first[..., :0], layers)


def _invert_factors(matrices: Tensor, inverse: Tensor) -> None:
    """Write L⁻¹ of every matrix LLᵀ into inverse, which may be matrices itself.

    By halves, so that almost all of it is matrix products, which are faster in a batch than
    factors and substitutions: with L = [[A, 0], [B, C]], L⁻¹ = [[A⁻¹, 0], [-C⁻¹BA⁻¹, C⁻¹]].
    """
    size = matrices.shape[1]
    if size <= SUBSTITUTED:
        inverse.copy_(_invert_small_factors(matrices))
        return
    head, tail = slice(0, size // 2), slice(size // 2, size)
    first, second = inverse[:, head, head], inverse[:, tail, tail]
    _invert_factors(matrices[:, head, head], first)
    below = matrices[:, tail, head] @ first.mT
    _invert_factors(torch.baddbmm(matrices[:, tail, tail], below, below.mT, alpha=-1), second)
    torch.neg(second @ (below @ first), out=inverse[:, tail, head])
    inverse[:, head, tail] = 0


def _invert_small_factors(matrices: Tensor) -> Tensor:
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
    """Refuse embeddings that are not all finite: then their mean is not finite either."""
    if not mean.isfinite().all():
        raise ValueError("an embedding is not finite; the weights or the images are damaged")
