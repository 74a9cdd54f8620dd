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


def grids_of(layers: Sequence[Tensor]) -> Grids:
    """Height and width of each layer (..., h_l, w_l)."""
    return tuple((layer.shape[-2], layer.shape[-1]) for layer in layers)


def to_patches(layers: Sequence[Tensor]) -> list[Tensor]:
    """Layers (B, d_l, h_l, w_l) as patches (P_l, B, d_l) in row-major order; copies nothing."""
    return [layer.flatten(2).permute(2, 0, 1) for layer in layers]


def nearest(from_side: int, to_side: int) -> np.ndarray:
    """For each of to_side places, the one of from_side that torch's "nearest" repeats (int64)."""
    # in float32, as torch rounds
    scale = np.float32(from_side) / np.float32(to_side)
    places = (np.arange(to_side, dtype=np.float32) * scale).astype(np.int64)
    return places.clip(max=from_side - 1)


class Cells(NamedTuple):
    """The cells of the finest grid; a single layer counts as coarser, its patches are the cells.

    Indices are int64; cells and patches are in row-major order.

    Attributes:
        of_patches: (P,) the cell of each patch.
        parents: (layers, C) the patch of each coarser layer that is repeated in each cell.
        members: (C, m) the patches of each cell. A cell with fewer than m patches repeats its
            last ones, so that all rows have one length.
    """

    of_patches: np.ndarray | Tensor
    parents: np.ndarray | Tensor
    members: np.ndarray | Tensor


@lru_cache(maxsize=64)
def cells_of(grids: Grids) -> Cells:
    """The cells of the finest of these grids."""
    coarser = grids[1:] or grids
    rows, columns = (_group(_coarser_lines(grids, axis)) for axis in (0, 1))
    widths = np.array([width for _, width in coarser])[:, None, None]
    parents = rows.lines[:, :, None] * widths + columns.lines[:, None]
    members = rows.members[:, None, :, None] * grids[0][1] + columns.members[:, None]
    n_rows, n_columns, tall, wide = members.shape
    return Cells(
        (rows.of_places[:, None] * n_columns + columns.of_places).ravel(),
        parents.reshape(len(coarser), n_rows * n_columns),
        members.reshape(n_rows * n_columns, tall * wide),
    )


@lru_cache(maxsize=64)
def cells_on(grids: Grids, device: torch.device) -> Cells:
    """The same as cells_of, as tensors on a device."""
    return Cells(*(torch.from_numpy(index).to(device) for index in cells_of(grids)))


class Block(NamedTuple):
    """Some whole rows of cells, and the patches in them."""

    cells: slice
    patches: slice


@lru_cache(maxsize=64)
def blocks_of(grids: Grids, size: int) -> list[Block]:
    """The finest grid in blocks of about so many patches, at least a row of cells each."""
    height, width = grids[0]
    first_rows = _group(_coarser_lines(grids, 0)).members[:, 0]
    n_columns = len(_group(_coarser_lines(grids, 1)).members)
    step = max(size * len(first_rows) // (height * width), 1)  # rows of cells
    first_patches = [*(first_rows * width).tolist(), height * width]
    cuts = [*range(0, len(first_rows), step), len(first_rows)]
    return [
        Block(
            slice(first * n_columns, end * n_columns),
            slice(first_patches[first], first_patches[end]),
        )
        for first, end in zip(cuts, cuts[1:], strict=False)
    ]


def _coarser_lines(grids: Grids, axis: int) -> np.ndarray:
    """For each row (or column) of the finest grid, those of the coarser layers: (layers, n)."""
    coarser = grids[1:] or grids
    return np.stack([nearest(grid[axis], grids[0][axis]) for grid in coarser])


class _Groups(NamedTuple):
    """Neighbouring rows (or columns) of the finest grid with the same rows of all coarser layers.

    Attributes:
        lines: (layers, k) those coarser rows, for each group.
        of_places: (n,) the group of each row.
        members: (k, m) the rows of each group; short groups repeat their last row.
    """

    lines: np.ndarray
    of_places: np.ndarray
    members: np.ndarray


def _group(lines: np.ndarray) -> _Groups:
    different, groups = np.unique(lines, axis=1, return_inverse=True)
    groups = groups.ravel()
    number = np.arange(different.shape[1])
    # lines never decrease, so equal ones are neighbours
    first, end = (np.searchsorted(groups, number, side) for side in ("left", "right"))
    longest = (end - first).max()
    members = np.minimum(first[:, None] + np.arange(longest), end[:, None] - 1)
    return _Groups(different, groups, members)
