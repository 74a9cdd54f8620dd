import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.naive import naive_embeddings
from tests.samples import odd_grids
from utils.patches import Layout, blocks_of, cells_of, make_layout, nearest, patches_in


@st.composite
def layouts(draw, longest: int) -> Layout:
    """Any grids, with all patches or some of them."""
    grids = draw(odd_grids(longest))
    region = draw(st.none() | arrays(bool, grids[0]).filter(np.any))
    return make_layout(grids, region)


def test_nearest_is_that_of_torch():
    for from_side in range(1, 41):
        places = torch.arange(from_side, dtype=torch.float32).view(1, 1, -1)
        for to_side in range(1, 41):
            expected = F.interpolate(places, size=to_side, mode="nearest")[0, 0]
            np.testing.assert_array_equal(nearest(from_side, to_side), expected)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=13)), st.data())
def test_patches_of_a_region_have_a_part_of_a_pixel(region, data):
    height, width = grid = tuple(data.draw(st.integers(1, side)) for side in region.shape)
    # every pixel in h x w parts: a patch is as many of them as the region has pixels
    parts = np.kron(region, np.ones(grid, bool)).reshape(height, len(region), width, -1)
    np.testing.assert_array_equal(patches_in(region, grid), parts.any(axis=(1, 3)))


@settings(max_examples=150)
@given(layouts(13), st.integers(1, 80))
def test_cells_are_the_kept_patches_with_the_same_parents_and_in_one_block(layout, size):
    of_patches, parents, members, kept = cells_of(layout)
    inside = np.ones(np.prod(layout.grids[0]), bool)
    if layout.inside is not None:
        inside = np.frombuffer(layout.inside, bool)
    numbers = [torch.arange(h * w).view(1, 1, h, w) for h, w in layout.grids]
    # a single layer is the coarser one too
    expected = naive_embeddings(numbers)[0, -len(parents) :].reshape(len(parents), -1)[:, inside]
    np.testing.assert_array_equal(kept[0], np.flatnonzero(inside))
    for places, line, of_layer in zip(kept[-len(parents) :], parents, expected, strict=True):
        assert places.tolist() == sorted({*of_layer})
        np.testing.assert_array_equal(places[line[of_patches]], of_layer)
    assert len({*zip(*parents.tolist(), strict=True)}) == parents.shape[1] == len(members)
    for cell, patches in enumerate(members):
        assert set(patches) == set(np.flatnonzero(of_patches == cell))

    cells, patches = [], []
    for block in blocks_of(layout, size):
        of_block = range(parents.shape[1])[block.cells]
        inside = range(len(of_patches))[block.patches]
        assert set(of_patches[inside]) == set(of_block)
        cells += of_block
        patches += inside
    assert cells == [*range(parents.shape[1])]
    assert patches == [*range(len(of_patches))]


def test_blocks_are_of_about_the_size_given():
    # a row of cells is two rows of 56 patches, as in layer2; 13 of these are 1456 patches
    grids = ((56, 56), (28, 28), (14, 14))
    ends = [block.patches.stop for block in blocks_of(Layout(grids), 1500)]
    assert ends == [1456, 2912, 3136]
