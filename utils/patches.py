"""Patches of images: layers that lie on grids of their own, and the rows that are worked on.

A patch of a coarse grid is repeated at several patches of the finest one, as nearest-neighbour
resizing repeats it (upstream's unfold and fold, bit for bit).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Pyramid(NamedTuple):
    """The grids of the layers, and the band of rows of the finest one that is worked on.

    Attributes:
        grids: h and w of each layer, finest first.
        band: its first row and the row behind its last; all rows, unless processes share them.
    """

    grids: tuple[tuple[int, int], ...]
    band: tuple[int, int]

    @classmethod
    def whole(cls, grids: Sequence[Sequence[int]]) -> "Pyramid":
        """The pyramid of these grids with all rows."""
        return cls(tuple(tuple(grid) for grid in grids), (0, grids[0][0]))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the band; its P patches are in row-major order."""
        return self.band[1] - self.band[0], self.grids[0][1]

    def split(self, n: int) -> list["Pyramid"]:
        """The n bands, in order, that n processes share all rows in."""
        cuts = [self.grids[0][0] * i // n for i in range(n + 1)]
        return [self._replace(band=band) for band in zip(cuts, cuts[1:], strict=False)]

    def patches_of(self, layer: int) -> slice:
        """The patches of a layer's own grid that are repeated in the band."""
        first, end = self.rows_of(layer)
        width = self.grids[layer][1]
        return slice(first * width, end * width)

    def new_patches_of(self, layer: int) -> slice:
        """Those of patches_of, counted from its first, that no earlier band has."""
        (start, _), (first, end) = self.band, self.rows_of(layer)
        height, width = self.grids[layer]
        rows = nearest(height, self.grids[0][0])
        shared = 0 < start < len(rows) and rows[start - 1] == rows[start]
        return slice(width * int(shared and end > first), (end - first) * width)

    def rows_of(self, layer: int) -> tuple[int, int]:
        """The rows of a layer's own grid that the band needs: the first and the one behind all."""
        rows = nearest(self.grids[layer][0], self.grids[0][0])[slice(*self.band)]
        return (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 0)


class Patches(NamedTuple):
    """Embeddings of B images: per layer (P_l, B, d_l), at its patches_of the pyramid's band."""

    pyramid: Pyramid
    layers: list[Tensor]


def arrange(layers: Sequence[Tensor]) -> Patches:
    """Layers (B, d_l, h_l, w_l), finest first, as patches of all rows; nothing is copied."""
    pyramid = Pyramid.whole([layer.shape[2:] for layer in layers])
    return Patches(pyramid, [layer.flatten(2).permute(2, 0, 1) for layer in layers])


def nearest(from_side: int, to_side: int) -> np.ndarray:
    """For each of to_side places (int64) the one of from_side that torch's "nearest" repeats."""
    # in float32, as torch rounds
    scale = np.float32(from_side) / np.float32(to_side)
    places = (np.arange(to_side, dtype=np.float32) * scale).astype(np.int64)
    return places.clip(max=from_side - 1)


class Cells(NamedTuple):
    """Patches of a band with the same patches of all coarser layers, which are a cell together.

    A single layer counts as coarser: its patches are the cells. Indices are int64, cells and
    patches in row-major order.

    Attributes:
        of_patches: for each patch (P,) its cell.
        parents: for each coarser layer and each cell (layers, C) which of the layer's patches_of is
            repeated there.
        members: for each cell (C, m) its patches; one of fewer than m has its last ones twice.
    """

    of_patches: np.ndarray | Tensor
    parents: np.ndarray | Tensor
    members: np.ndarray | Tensor


@lru_cache(maxsize=64)
def cells_of(pyramid: Pyramid) -> Cells:
    """The cells of a band."""
    coarser = pyramid.grids[1:] or pyramid.grids
    first_rows = [pyramid.rows_of(layer)[0] for layer in range(-len(coarser), 0)]
    rows = _lines(pyramid, 0)[:, slice(*pyramid.band)] - np.array(first_rows)[:, None]
    row_parents, row_cells, row_members = _group(rows)
    column_parents, column_cells, column_members = _group(_lines(pyramid, 1))
    widths = np.array([width for _, width in coarser])[:, None, None]
    parents = row_parents[:, :, None] * widths + column_parents[:, None]
    members = row_members[:, None, :, None] * pyramid.shape[1] + column_members[:, None]
    (_, n_rows, n_columns), (_, _, tall, wide) = parents.shape, members.shape
    return Cells(
        (row_cells[:, None] * n_columns + column_cells).ravel(),
        parents.reshape(len(coarser), n_rows * n_columns),
        members.reshape(n_rows * n_columns, tall * wide),
    )


class Block(NamedTuple):
    """Rows of cells, and the patches in them."""

    cells: slice
    patches: slice


@lru_cache(maxsize=64)
def blocks_of(pyramid: Pyramid, size: int) -> list[Block]:
    """The band in blocks of about so many patches, a row of cells or more."""
    rows = _group(_lines(pyramid, 0)[:, slice(*pyramid.band)])[2][:, 0]
    first_patches = [*(rows * pyramid.shape[1]).tolist(), pyramid.shape[0] * pyramid.shape[1]]
    n_columns = len(_group(_lines(pyramid, 1))[2])
    step = max(size * len(rows) // max(first_patches[-1], 1), 1)
    cuts = [*range(0, len(rows), step), len(rows)]
    return [
        Block(
            slice(first * n_columns, behind * n_columns),
            slice(first_patches[first], first_patches[behind]),
        )
        for first, behind in zip(cuts, cuts[1:], strict=False)
    ]


def new_cells_of(pyramid: Pyramid) -> slice:
    """Those of the band's cells that no earlier band has a part of."""
    lines, start = _lines(pyramid, 0), pyramid.band[0]
    shared = 0 < start < lines.shape[1] and (lines[:, start - 1] == lines[:, start]).all()
    n_columns = len(_group(_lines(pyramid, 1))[2])
    n_cells = cells_of(pyramid).parents.shape[1]
    return slice(min(n_columns * int(shared), n_cells), n_cells)


def _lines(pyramid: Pyramid, axis: int) -> np.ndarray:
    """For each row (or column) of the finest grid, those of all coarser layers: (layers, n)."""
    coarser = pyramid.grids[1:] or pyramid.grids
    return np.stack([nearest(grid[axis], pyramid.grids[0][axis]) for grid in coarser])


def _group(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different lines (layers, k), which of them each (n,) is, and where each is found (k, m)."""
    different, groups = np.unique(lines, axis=1, return_inverse=True)
    groups = groups.ravel()
    number = np.arange(different.shape[1])
    # no line is below the one before, so equal ones are neighbours
    first, behind = (np.searchsorted(groups, number, side) for side in ("left", "right"))
    most = (behind - first).max(initial=1)
    return different, groups, np.minimum(first[:, None] + np.arange(most), behind[:, None] - 1)


@lru_cache(maxsize=64)
def cells_on(pyramid: Pyramid, device: torch.device) -> Cells:
    """The same as cells_of on a device."""
    return Cells(*(torch.from_numpy(index).to(device) for index in cells_of(pyramid)))
