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


@lru_cache(maxsize=64)
def parents_of(pyramid: Pyramid, layer: int) -> np.ndarray:
    """For each patch of the band (P,) int64: which of the layer's patches_of is repeated there."""
    (height, width), (tall, wide) = pyramid.grids[layer], pyramid.grids[0]
    rows = nearest(height, tall)[slice(*pyramid.band)] - pyramid.rows_of(layer)[0]
    return (rows[:, None] * width + nearest(width, wide)).ravel()


@lru_cache(maxsize=64)
def cells_of(pyramid: Pyramid) -> tuple[np.ndarray, np.ndarray]:
    """Which patches of the band share those of all coarser layers, and are a cell in that.

    Returns:
        For each patch (P,) its cell, and for each coarser layer and each cell (layers, cells) which
        of the layer's patches_of is repeated there; int64, in the order of the patches.
    """
    layers = range(1, len(pyramid.grids))
    parents = np.stack([parents_of(pyramid, layer) for layer in layers])
    shared, cells = np.unique(parents, axis=1, return_inverse=True)
    return cells.ravel(), shared


@lru_cache(maxsize=64)
def parents_on(pyramid: Pyramid, layer: int, device: torch.device) -> Tensor:
    """The same as parents_of on a device."""
    return torch.from_numpy(parents_of(pyramid, layer)).to(device)


@lru_cache(maxsize=64)
def cells_on(pyramid: Pyramid, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same as cells_of on a device."""
    cells, parents = cells_of(pyramid)
    return torch.from_numpy(cells).to(device), torch.from_numpy(parents).to(device)
