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

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from utils.patches import (
    Block,
    Grids,
    Layout,
    blocks_of,
    cells_of,
    cells_on,
    grids_of,
    make_layout,
    to_patches,
)
from utils.shrinkage import Ridge, check_shrinkage
from utils.system.errors import UserError

COVARIANCE_EPS = 0.01  # paper, section III-B; upstream
SUBSTITUTED = 32  # factors of at most so many rows are inverted by substitution. Speed only
PATCH_BLOCK = 224  # four rows of a 56-wide grid: they share a row of layer3


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of all patches, factored by the chain rule.

    A single layer counts as coarser; the finest layer then has d_1 = 0 channels.

    Attributes:
        layout: of the layers; it keeps P patches in C cells, P_l patches of layer l.
        means: per layer (P_l, 1, d_l).
        samples: dual form: per coarser layer (P_l, N, d_l), centred. Primal form: empty.
        whitening: (C, k, k), L⁻¹ of the coarser layers' covariance (primal, k their channels) or
            of their regularised inner products (dual, k = N); lower triangular.
        loadings: (P, k, d_1), B: the regression of the finest layer on the whitened coarser ones.
        residual_whitening: (P, d_1, d_1), T: L⁻¹ of the covariance of what that leaves.
        eps: that was added to the diagonal.
        shrinkage: its ratio to the mean variance of all features at all patches, if it was chosen
            by that.
    """

    layout: Layout
    means: list[Tensor]
    samples: list[Tensor]
    whitening: Tensor
    loadings: Tensor
    residual_whitening: Tensor
    eps: float
    shrinkage: float | None = None

    @property
    def grids(self) -> Grids:
        """Height and width of each layer, finest first."""
        return self.layout.grids

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
            (B, h, w) float32 on the finest grid, 0 at patches that are not kept. A square that
            rounding made negative counts as 0.
        """
        finest, coarser = _split(to_patches(layers, self.layout))
        mean, _ = _split(self.means)
        of_patches = cells_on(self.layout, finest.device).of_patches
        squared = finest.new_empty(finest.shape[:2])
        for cells, patches in blocks_of(self.layout, block):
            whitened, coarser_squared = self._whiten_coarser(coarser, cells)
            cell = of_patches[patches] - cells.start
            expected = whitened.index_select(0, cell) @ self.loadings[patches]
            residual = _centre(finest[patches], mean[patches]).sub_(expected)
            residual = residual @ self.residual_whitening[patches].mT
            squared[patches] = coarser_squared.index_select(0, cell) + _square_lengths(residual)
        return self._on_grid(squared.sqrt_())

    def _on_grid(self, values: Tensor) -> Tensor:
        """Values (P, B) of the patches as (B, h, w)."""
        height, width = self.grids[0]
        if self.layout.inside is not None:
            places = cells_on(self.layout, values.device).kept[0]
            whole = values.new_zeros(height * width, values.shape[1])
            values = whole.index_copy_(0, places, values)
        return values.mT.reshape(-1, height, width)

    def _whiten_coarser(self, layers: list[Tensor], cells: slice) -> tuple[Tensor, Tensor]:
        """Coarser layers (P_l, B, d_l) at the cells: w (C, B, k) and distance² (C, B)."""
        _, means = _split(self.means)
        if self.is_primal:
            coarser = torch.cat(_at_cells(self.layout, cells, _centre, layers, means), dim=2)
            whitened = _whiten_rows(self.whitening[cells], coarser)
            return whitened, _square_lengths(whitened)

        def multiply(z: Tensor, mean: Tensor, samples: Tensor) -> Tensor:
            return _centre(z, mean) @ samples.mT

        def measure(z: Tensor, mean: Tensor) -> Tensor:
            return _square_lengths(_centre(z, mean))

        products = _sum(_at_cells(self.layout, cells, multiply, layers, means, self.samples))
        whitened = _whiten_rows(self.whitening[cells], products)
        lengths = _sum(_at_cells(self.layout, cells, measure, layers, means))
        squared = (lengths - _square_lengths(whitened)).div_(self.eps).clamp_(min=0)
        return whitened, squared

    def leave_out(
        self, groups: Sequence[Sequence[int]], layers: Sequence[Tensor] | None, n_train: int
    ) -> Tensor:
        """Distances of training images to the Gaussians without them and the rest of their group.

        No second fit is needed. Let Z (m x d) be the centred embeddings of a group of m images, A
        the scatter of all N plus eps (N - 1) I, and R = I - 1/N - Z A⁻¹ Zᵀ (m x m). By the Woodbury
        identity the squared distances are (N - m - 1) (r - 1 - 1 / (N - m)), with r the diagonal
        of R⁻¹. They are those of a fit without the group, with eps larger by (N - 1) / (N - m - 1).

        Args:
            groups: of at most N - 2 images each. The dual form takes their numbers in the order of
                the fit, the primal form their numbers in layers, where a copy may have the number
                of the image that it is a copy of.
            layers: embeddings of training images, as in distances; the dual form needs none.
            n_train: N, at least 3.

        Returns:
            (sum of all m, h, w) float32, one group after the other.
        """
        image = torch.tensor([*chain(*groups)], device=self.whitening.device)
        places = _places_by_size(groups, image.device)
        squared = self.loadings.new_empty(len(self.loadings), len(image))
        finest, coarser = None, []
        if self.is_primal:
            finest, coarser = _split(to_patches(layers, self.layout))
        members = cells_on(self.layout, image.device).members
        for cells, _ in blocks_of(self.layout, PATCH_BLOCK):
            if self.is_primal:
                rows = self._whiten_coarser(coarser, cells)[0][:, image]
            else:
                rows = self.whitening[cells].mT[:, image]
            add_coarser = self._residual_of_coarser(rows, cells, n_train)
            for patches in members[cells].unbind(1):
                fine_rows = rows @ self.loadings[patches]
                if self.is_primal:
                    mean = _split(self.means)[0][patches]
                    fine_rows = _centre(finest[patches][:, image], mean).sub_(fine_rows)
                fine_rows = fine_rows @ self.residual_whitening[patches].mT
                scale = -1 / (n_train - 1) if self.is_primal else -(self.eps**2) * (n_train - 1)
                found = squared.new_empty(fine_rows.shape[:2])
                for of_size in places:
                    residual = add_coarser(of_size) + scale * _inner_products(fine_rows, of_size)
                    found[:, of_size] = _left_out_squares(residual, n_train)
                squared[patches] = found
        return self._on_grid(squared.sqrt_())

    def _residual_of_coarser(
        self, rows: Tensor, cells: slice, n_train: int
    ) -> Callable[[Tensor], Tensor]:
        """What the coarser layers and the mean contribute to R of leave_out, for groups of a size.

        In the primal form rows are the whitened images w, with Z A⁻¹ Zᵀ = wwᵀ / (N - 1) and more
        from the finest layer. In the dual form they are the columns of L⁻¹. With G = M + X_1 X_1ᵀ
        the inner products of all layers and M = LLᵀ those of the coarser ones, R is
        eps (N - 1) G⁻¹ without its part along the constant vector, and
        G⁻¹ = L⁻ᵀ (I - eps BTᵀTBᵀ) L⁻¹.
        """
        ridge = self.eps * (n_train - 1)
        if self.is_primal:
            return lambda of_size: (
                torch.eye(of_size.shape[1], device=rows.device)
                - 1 / n_train
                - _inner_products(rows, of_size) / (n_train - 1)
            )
        # the eigenvalue that the fit gave the constant vector
        level = ridge + n_train * _mean_square_length(self.samples, self.layout, cells)
        constant = 1 / (n_train * level[:, None, None, None])
        return lambda of_size: ridge * (_inner_products(rows, of_size) - constant)


def _places_by_size(groups: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """For each size m of the groups, the places (g, m) of their images in all groups joined."""
    by_size = defaultdict(list)
    first = 0
    for group in groups:
        by_size[len(group)].append(range(first, first + len(group)))
        first += len(group)
    return [torch.tensor([*map(list, places)], device=device) for places in by_size.values()]


def _inner_products(rows: Tensor, places: Tensor) -> Tensor:
    """Rows (P, B, k) and places (g, m) among B: the inner products in each group (P, g, m, m)."""
    if places.shape[1] == 1:
        return _square_lengths(rows[:, places[:, 0]])[..., None, None]
    of_groups = rows[:, places]
    return of_groups @ of_groups.mT


def _left_out_squares(residual: Tensor, n_train: int) -> Tensor:
    """Squared distances (P, g, m) from R (P, g, m, m), as in leave_out."""
    m, least = residual.shape[-1], torch.finfo(residual.dtype).eps
    inverse = residual.reciprocal() if m == 1 else torch.linalg.inv_ex(residual).inverse
    r = inverse.diagonal(dim1=2, dim2=3)
    # rounding may leave nothing, or less, of an image that is far from all others
    r = r.where(r > 0, 1 / least).clamp(1 + 1 / (n_train - m), 1 / least)
    return (n_train - m - 1) * (r - 1 - 1 / (n_train - m))


def fit_gaussians(
    batches: Iterable[Sequence[Tensor]],
    n_train: int,
    eps: float = COVARIANCE_EPS,
    block: int = PATCH_BLOCK,
    shrinkage: float | str | None = None,
    region: np.ndarray | Layout | None = None,
) -> Gaussians:
    """Fit one Gaussian to each patch position (PaDiM, section III-B, eq. 1).

    Args:
        batches: yields layers (B, d_l, h_l, w_l) float32 of some images at a time, finest first,
            all on the same grids; embeddings in one piece are a single layer.
        n_train: N, the images of all batches together.
        eps: added to the diagonal; makes the covariance invertible when N <= d.
        block: patches worked on at once. Memory only; the result does not depend on it.
        shrinkage: in (0, 1]; instead of eps, so many times the mean variance of all features at
            all patches is added. "auto" takes Ledoit and Wolf's, averaged over some patches.
        region: (H, W) bool of the images; patches without a pixel inside are not fitted. None fits
            all. A layout, if the batches hold what keep_inside leaves.

    Returns:
        The Gaussians of all patches, float32 on the batches' device, in the form whose large
        matrices are smaller. Covariance divides by N - 1.
    """
    check_shrinkage(shrinkage)
    if n_train < 2:
        raise UserError(f"a covariance needs at least 2 training images; got {n_train}")
    batches = iter(batches)
    first = next(batches)
    layout = region if isinstance(region, Layout) else make_layout(grids_of(first), region)
    ridge = Ridge(eps, shrinkage, layout)
    primal = is_primal(n_train, [layer.shape[1] for layer in first])
    fit = _fit_primal if primal else _fit_dual
    return fit(ridge.watch(chain([first], batches)), n_train, ridge, layout, block)


def is_primal(n_train: int, layer_features: Sequence[int]) -> bool:
    """Whether the primal form has the smaller matrices, for d_l features of each layer."""
    return n_train > sum(layer_features[1:] or layer_features)


def count_numbers(layout: Layout, layer_features: Sequence[int], n_train: int) -> int:
    """How many numbers the Gaussians of these patches hold, for d_l features of each layer."""
    of_patches, parents, _, kept = cells_of(layout)
    finest = layer_features[0] if len(layer_features) > 1 else 0
    size = min(n_train, sum(layer_features) - finest)
    means = [len(places) * d_l for places, d_l in zip(kept, layer_features, strict=True)]
    samples = 0 if is_primal(n_train, layer_features) else n_train * sum(means[1:] or means)
    matrices = parents.shape[1] * size**2 + len(of_patches) * finest * (size + finest)
    return sum(means) + samples + matrices


def _fit_primal(
    batches: Iterable[Sequence[Tensor]], n_train: int, ridge: Ridge, layout: Layout, block: int
) -> Gaussians:
    shifts, seen = [], 0
    for layers in batches:
        patches = to_patches(layers, layout)
        seen += len(layers[0])
        if not shifts:
            # sums of differences from a typical embedding lose no digits to a large mean
            shifts = [layer.mean(dim=1, keepdim=True) for layer in patches]
            totals = [torch.zeros_like(shift) for shift in shifts]
            scatter = _new_scatter(shifts, layout)
        shifted = [layer - shift for layer, shift in zip(patches, shifts, strict=True)]
        for total, layer in zip(totals, shifted, strict=True):
            total += layer.sum(dim=1, keepdim=True)
        _add_products(scatter, shifted, layout, block)
        del layers, patches, shifted, layer  # free this batch before the next one is made
    assert seen == n_train
    means = [shift + total / n_train for shift, total in zip(shifts, totals, strict=True)]
    for mean in means:
        _check_finite(mean)
    _add_products(scatter, totals, layout, block, -1 / n_train)
    for products in scatter:
        products.div_(n_train - 1)
    coarser, cross, finest = scatter
    traces = (part.diagonal(dim1=1, dim2=2).sum(dim=1) for part in (coarser, finest))
    n_features = coarser.shape[1] + finest.shape[1]
    eps, shrinkage = ridge.choose(lambda: _mean_variance(*traces, layout) / n_features)
    for covariance in (coarser, finest):
        covariance.diagonal(dim1=1, dim2=2).add_(eps)
    for part in blocks_of(layout, block):
        _invert_factors(coarser[part.cells], coarser[part.cells])
        _condition(coarser, cross, finest, layout, part, alpha=-1)
    return Gaussians(layout, means, [], coarser, cross, finest, eps, shrinkage)


def _mean_variance(coarser: Tensor, finest: Tensor, layout: Layout) -> float:
    """The mean total variance of a patch: of the coarser layers (C,) and of the finest (P,)."""
    of_patches = cells_on(layout, coarser.device).of_patches
    return float((coarser.double()[of_patches] + finest).mean())


Scatter = tuple[Tensor, Tensor, Tensor]


def _new_scatter(means: list[Tensor], layout: Layout) -> Scatter:
    """Sums of products: of coarser layers (C, d_c, d_c), with the finest (P, d_c, d_1), of that."""
    finest, coarser = _split(means)
    n_patches, d, d_c = len(finest), finest.shape[2], sum(z.shape[2] for z in coarser)
    n_cells = len(cells_of(layout).members)
    shapes = (n_cells, d_c, d_c), (n_patches, d_c, d), (n_patches, d, d)
    return tuple(finest.new_zeros(shape) for shape in shapes)


def _add_products(
    scatter: Scatter, layers: list[Tensor], layout: Layout, block: int, alpha: float = 1
) -> None:
    """Add alpha times the products of layers (P_l, B, d_l), summed over B."""
    finest, coarser = _split(layers)
    of_coarser, cross, of_finest = scatter
    of_patches = cells_on(layout, finest.device).of_patches
    for cells, patches in blocks_of(layout, block):
        joined = torch.cat(_at_cells(layout, cells, lambda z: z, coarser), dim=2)
        of_coarser[cells].baddbmm_(joined.mT, joined, alpha=alpha)
        joined = joined.index_select(0, of_patches[patches] - cells.start)
        cross[patches].baddbmm_(joined.mT, finest[patches], alpha=alpha)
        of_finest[patches].baddbmm_(finest[patches].mT, finest[patches], alpha=alpha)


def _fit_dual(
    batches: Iterable[Sequence[Tensor]], n_train: int, ridge: Ridge, layout: Layout, block: int
) -> Gaussians:
    samples = _collect(batches, n_train, layout)
    means = [kept.mean(dim=1, keepdim=True) for kept in samples]
    for kept, mean in zip(samples, means, strict=True):
        _check_finite(mean)
        kept -= mean
    finest, coarser = _split(samples)
    n_cells = len(cells_of(layout).members)
    n_features = sum(kept.shape[2] for kept in samples)

    def find_variance() -> float:
        in_cells = _mean_square_length(coarser, layout, slice(n_cells))
        in_patches = _square_lengths(finest).mean(dim=1)
        total = _mean_variance(in_cells, in_patches, layout)
        return total * n_train / (n_train - 1) / n_features

    eps, shrinkage = ridge.choose(find_variance)
    whitening = finest.new_empty(n_cells, n_train, n_train)
    noise = eps * torch.eye(finest.shape[2], device=finest.device)
    covariance = finest.new_empty(len(finest), *noise.shape)
    for part in blocks_of(layout, block):
        products = _sum(_at_cells(layout, part.cells, lambda x: x @ x.mT, coarser))
        products += _mean_square_length(coarser, layout, part.cells)[:, None, None]
        products.diagonal(dim1=1, dim2=2).add_(eps * (n_train - 1))
        _invert_factors(products, whitening[part.cells])
        covariance[part.patches] = noise
        _condition(whitening, finest, covariance, layout, part, alpha=eps)
    return Gaussians(layout, means, coarser, whitening, finest, covariance, eps, shrinkage)


def _collect(batches: Iterable[Sequence[Tensor]], n_train: int, layout: Layout) -> list[Tensor]:
    """The patches of all images, per layer (P_l, N, d_l)."""
    samples, seen = [], 0
    for layers in batches:
        patches = to_patches(layers, layout)
        if not samples:
            samples = [z.new_empty(len(z), n_train, z.shape[2]) for z in patches]
        for kept, piece in zip(samples, patches, strict=True):
            kept[:, seen : seen + piece.shape[1]] = piece
        seen += len(layers[0])
        del layers, patches, piece  # free this batch before the next one is made
    assert seen == n_train
    return samples


def _at_cells(
    layout: Layout, cells: slice, function: Callable[..., Tensor], *layers: list[Tensor]
) -> list[Tensor]:
    """What a function returns for each coarser layer, at the cells.

    Args:
        layout: of the patches.
        cells: some of the cells.
        function: takes some of a layer's patches (n, ...) from each of the lists and returns
            (n, ...). It is called once for each patch of the layer, then the result is repeated.
        layers: lists of a tensor (P_l, ...) for each coarser layer.
    """
    found = []
    wanted = cells_of(layout).parents[:, cells]
    index = cells_on(layout, layers[0][0].device).parents[:, cells]
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
    layout: Layout,
    block: Block,
    alpha: float,
) -> None:
    """Condition the finest layer on the coarser ones, in a block, in place.

    Args:
        whitening: (C, k, k), of the coarser layers.
        cross: (P, k, d), products with the finest layer; becomes the loadings B.
        covariance: (P, d, d) of the finest layer; becomes T after alpha BᵀB is added.
        layout: of the patches.
        block: some of the cells and their patches.
        alpha: the factor of BᵀB.
    """
    # One patch of each cell at a time, as the patches of a cell share its whitening. The index
    # repeats the last patch of a short cell, so all columns are read before any is overwritten.
    members = cells_on(layout, cross.device).members[block.cells].unbind(1)
    columns = [cross[patches] for patches in members]
    for patches, column in zip(members, columns, strict=True):
        cross[patches] = whitening[block.cells] @ column
    loadings, residual = cross[block.patches], covariance[block.patches]
    residual.baddbmm_(loadings.mT, loadings, alpha=alpha)
    _invert_factors(residual, residual)


def _mean_square_length(samples: list[Tensor], layout: Layout, cells: slice) -> Tensor:
    """The samples' mean squared length in each cell (C,), which is added to all inner products.

    Samples are centred, so the constant vector is no part of any product Xz and no distance
    changes. Left at eps, its eigenvalue would swamp the diagonal that leave_out reads.
    """
    return _sum(_at_cells(layout, cells, lambda x: _square_lengths(x).mean(dim=1), samples))


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
        raise UserError(
            "the features are so large that float32 loses eps beside their covariance; "
            "the weights are not those of a trained network"
        ) from error
    identity = torch.eye(cholesky.shape[1], device=cholesky.device)
    return torch.linalg.solve_triangular(cholesky, identity, upper=False)


def _check_finite(mean: Tensor) -> None:
    """Refuse embeddings that are not all finite: then their mean is not finite either."""
    if not mean.isfinite().all():
        raise UserError("an embedding is not finite; the weights or the images are damaged")
