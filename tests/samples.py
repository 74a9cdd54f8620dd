"""Random features and images, of which several test files need some."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

Grid = tuple[int, int]


def draw_layer(n: int, d: int, grid: Grid, seed: int = 0) -> Tensor:
    """Features (n, d, h, w) float32; their channels are correlated, the same way for any seed."""
    mixing = np.random.default_rng(d).normal(size=(d, d)) / np.sqrt(d)
    noise = np.random.default_rng(seed).normal(size=(n, d, *grid))
    return torch.from_numpy(np.einsum("ce,nehw->nchw", mixing, noise)).float()


def draw_layers(n: int, grids: Sequence[Grid], seed: int = 0) -> list[Tensor]:
    """Features of n images on these grids, with 4, 5 and 6 channels."""
    return [draw_layer(n, 4 + i, grid, seed) for i, grid in enumerate(grids)]


def draw_images(*shape: int) -> Tensor:
    """Images of uint8 noise, of shape (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


class Lookup:
    """Instead of a network: the features of images that are numbers, as numbered makes them."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self.layers = layers

    def __call__(self, images: Tensor) -> list[Tensor]:
        numbers = images[:, 0, 0, 0].long()
        return [layer[numbers] for layer in self.layers]


def numbered(first: int, end: int, size: tuple[int, int]) -> np.ndarray:
    """Images (B, 3, H, W) uint8, each of its number."""
    numbers = np.arange(first, end, dtype=np.uint8)
    return np.tile(numbers[:, None, None, None], (1, 3, *size))


@st.composite
def odd_grids(draw, longest: int) -> tuple[Grid, ...]:
    """Up to three grids with sides up to longest, none larger than the one before."""
    sides = st.integers(1, longest)
    grids = [draw(st.tuples(sides, sides))]
    for _ in range(draw(st.integers(0, 2))):
        grids.append(tuple(draw(st.integers(1, side)) for side in grids[-1]))
    return tuple(grids)
