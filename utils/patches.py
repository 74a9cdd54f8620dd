"""The patches of each layer's grid, and the cells of the finest grid.

A patch of a coarse grid is repeated at several patches of the finest one, as nearest-neighbour
resizing repeats it (upstream's unfold and fold, bit for bit). Patches of the finest grid that
repeat the same patches of all coarser layers form a cell.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Grids = tuple[tuple[int, int], ...]  # height and width of each layer, finest first


class Layout(NamedTuple):
    """The grids of the layers, and which patches of the finest are kept.

    Of a coarser layer the patches are kept that are repeated at one of these.
    """

    grids: Grids
    inside: bytes | None = None  # a bool for each patch, in row-major order; None keeps all


def make_layout(grids: Grids, region: np.ndarray | None) -> Layout:
    """The layout of the patches that have a pixel in a region (H, W) bool; None keeps all."""
    if region is None:
        return Layout(grids)
    assert region.any()
    return Layout(grids, patches_in(region, grids[0]).tobytes())


def patches_in(region: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Whether each patch of a grid (h, w) has a part of a pixel in a region (H, W): (h, w) bool."""
    # no matrix product: NumPy's threads would wait busily beside those of the network
    inside = region
    for n, side in zip(grid, region.shape, strict=True):
        ends = np.arange(n + 1) * side
        sums = np.pad(inside, ((1, 0), (0, 0))).cumsum(axis=0)
        inside = (sums[-(-ends[1:] // n)] > sums[ends[:-1] // n]).T
    return inside


def grids_of(layers: Sequence[Tensor]) -> Grids:
    """Height and width of each layer (..., h_l, w_l)."""
    return tuple((layer.shape[-2], layer.shape[-1]) for layer in layers)


def keep_inside(layers: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Layers (B, d_l, h_l, w_l) without the patches outside: (B, d_l, P_l); all if none is."""
    if layout.inside is None:
        return list(layers)
    kept = cells_on(layout, layers[0].device).kept
    return [layer.flatten(2)[..., index] for layer, index in zip(layers, kept, strict=True)]


def to_patches(layers: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """The kept patches (P_l, B, d_l) of layers in row-major order; copies nothing if all are.

    Args:
        layers: (B, d_l, h_l, w_l), or (B, d_l, P_l) as keep_inside returns them.
        layout: of the patches.
    """
    if layers[0].ndim == 4:
        layers = keep_inside(layers, layout)
    return [layer.flatten(2).permute(2, 0, 1) for layer in layers]


def nearest(from_side: int, to_side: int) -> np.ndarray:
    """For each of to_side places, the one of from_side that torch's "nearest" repeats (int64)."""
    # in float32, as torch rounds
    scale = np.float32(from_side) / np.float32(to_side)
    places = (np.arange(to_side, dtype=np.float32) * scale).astype(np.int64)
    return places.clip(max=from_side - 1)


class Cells(NamedTuple):
    """The cells of the finest grid; a single layer counts as coarser, its patches are the cells.

    Indices are int64; cells and patches are in row-major order, and numbered without those outside.
    """

    of_patches: np.ndarray | Tensor  # (P,) the cell of each patch
    parents: np.ndarray | Tensor  # (layers, C) the patch of a coarser layer repeated in each cell
    # (C, m) the patches of each cell; one with fewer repeats its last, so that rows have one length
    members: np.ndarray | Tensor
    kept: Sequence[np.ndarray | Tensor]  # of each layer (P_l,), its patches' places in its grid


@lru_cache(maxsize=64)
def cells_of(layout: Layout) -> Cells:
    """The cells that hold the kept patches, without the others."""
    grids = layout.grids
    height, width = grids[0]
    coarser = grids[1:] or grids
    # neighbouring rows (and columns) with the same rows of all coarser layers are a row of cells
    rows, columns = (np.unique(_coarser_lines(grids, axis), axis=1) for axis in (0, 1))
    widths = np.array([width_l for _, width_l in coarser])[:, None, None]
    parents = (rows[:, :, None] * widths + columns[:, None]).reshape(len(coarser), -1)
    in_row, in_column = (_cell_lines(grids, axis) for axis in (0, 1))
    of_patches = (in_row[:, None] * columns.shape[1] + in_column).ravel()

    places = np.arange(height * width)
    if layout.inside is not None:
        places = places[np.frombuffer(layout.inside, dtype=bool)]
    cells, of_patches = np.unique(of_patches[places], return_inverse=True)
    kept, parents = zip(
        *(np.unique(line[cells], return_inverse=True) for line in parents), strict=True
    )
    kept = [places, *kept] if len(grids) > 1 else [places]
    return Cells(of_patches, np.stack(parents), _members(of_patches), kept)


def _members(of_patches: np.ndarray) -> np.ndarray:
    """The patches of each cell, as Cells has them."""
    by_cell = np.argsort(of_patches, kind="stable")
    ends = np.cumsum(np.bincount(of_patches))
    first = np.concatenate([[0], ends[:-1]])
    longest = (ends - first).max()
    return by_cell[np.minimum(first[:, None] + np.arange(longest), ends[:, None] - 1)]


@lru_cache(maxsize=64)
def cells_on(layout: Layout, device: torch.device) -> Cells:
    """The same as cells_of, as tensors on a device."""
    *indices, kept = cells_of(layout)
    on_device = [torch.from_numpy(index).to(device) for index in (*indices, *kept)]
    return Cells(*on_device[:3], on_device[3:])


class Block(NamedTuple):
    """Some whole rows of cells, and the patches in them."""

    cells: slice
    patches: slice


@lru_cache(maxsize=64)
def blocks_of(layout: Layout, size: int) -> list[Block]:
    """The kept patches in blocks of about so many, at least a row of cells each."""
    of_patches, _, _, (places, *_) = cells_of(layout)
    rows = _cell_lines(layout.grids, 0)[places // layout.grids[0][1]]  # of cells, of each patch
    starts = np.unique(rows, return_index=True)[1]
    step = max(size * len(starts) // len(places), 1)
    cuts = [*starts[::step].tolist(), len(places)]
    blocks = []
    for first, end in zip(cuts, cuts[1:], strict=False):
        cells = of_patches[first:end]
        blocks.append(Block(slice(int(cells.min()), int(cells.max()) + 1), slice(first, end)))
    return blocks


def _coarser_lines(grids: Grids, axis: int) -> np.ndarray:
    """For each row (or column) of the finest grid, those of the coarser layers: (layers, n)."""
    coarser = grids[1:] or grids
    return np.stack([nearest(grid[axis], grids[0][axis]) for grid in coarser])


def _cell_lines(grids: Grids, axis: int) -> np.ndarray:
    """For each row (or column) of the finest grid, the row (or column) of cells: (n,)."""
    return np.unique(_coarser_lines(grids, axis), axis=1, return_inverse=True)[1].ravel()
