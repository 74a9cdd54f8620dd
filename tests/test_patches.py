import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import draw_layer, odd_grids
from utils.patches import Grids, blocks_of, cells_of, cells_on, grids_of, nearest, to_patches

on_any_grids = settings(max_examples=150)


def naive_parents(grids: Grids) -> np.ndarray:
    """The patch of each coarser layer that torch repeats at each patch of the finest grid."""
    found = []
    for height, width in grids[1:] or grids:
        numbers = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
        found.append(F.interpolate(numbers, size=grids[0], mode="nearest").flatten())
    return torch.stack(found).numpy().astype(int)


def test_nearest_is_that_of_torch():
    for from_side in range(1, 71):
        places = torch.arange(from_side, dtype=torch.float32).view(1, 1, -1)
        for to_side in range(1, 71):
            expected = F.interpolate(places, size=to_side, mode="nearest")[0, 0]
            np.testing.assert_array_equal(nearest(from_side, to_side), expected)


def test_patches_are_in_row_major_order():
    layers = [draw_layer(2, 3, (4, 5)), draw_layer(2, 1, (2, 3))]
    assert grids_of(layers) == ((4, 5), (2, 3))
    for layer, patches in zip(layers, to_patches(layers), strict=True):
        height, width = layer.shape[2:]
        assert patches.shape == (height * width, *layer.shape[:2])
        for row in range(height):
            for column in range(width):
                assert torch.equal(patches[row * width + column], layer[:, :, row, column])


@on_any_grids
@given(odd_grids(13))
def test_parents_of_cells_are_the_patches_that_torch_repeats(grids):
    of_patches, parents, _ = cells_of(grids)
    np.testing.assert_array_equal(parents[:, of_patches], naive_parents(grids))


@on_any_grids
@given(odd_grids(13))
def test_cells_are_the_patches_with_the_same_parents(grids):
    of_patches, parents, members = cells_of(grids)
    different = {*zip(*parents.tolist(), strict=True)}
    assert len(different) == parents.shape[1] == len(members)
    for cell, patches in enumerate(members):
        assert set(patches) == set(np.flatnonzero(of_patches == cell))


def test_cells_on_a_device_are_the_same():
    grids = ((7, 5), (4, 3), (2, 2))
    for tensor, index in zip(cells_on(grids, torch.device("cpu")), cells_of(grids), strict=True):
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == index.tolist()


@on_any_grids
@given(odd_grids(13), st.integers(1, 80))
def test_blocks_are_all_cells_with_their_patches_once(grids, size):
    of_patches, parents, _ = cells_of(grids)
    cells, patches = [], []
    for block in blocks_of(grids, size):
        of_block = range(parents.shape[1])[block.cells]
        inside = range(len(of_patches))[block.patches]
        assert set(of_patches[inside]) == set(of_block)
        cells += of_block
        patches += inside
    assert cells == list(range(parents.shape[1]))
    assert patches == list(range(len(of_patches)))


def test_blocks_are_of_about_the_size_given():
    # a row of cells is two rows of 56 patches, as in layer2; 13 of these are 1456 patches
    grids = ((56, 56), (28, 28), (14, 14))
    ends = [block.patches.stop for block in blocks_of(grids, 1500)]
    assert ends == [1456, 2912, 3136]
