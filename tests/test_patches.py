import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.patches import Pyramid, arrange, blocks_of, cells_of, cells_on, nearest, new_cells_of

CPU = torch.device("cpu")


def naive_parents(pyramid: Pyramid, layer: int) -> np.ndarray:
    """For each patch of the band the number of the layer's patch that torch repeats there."""
    height, width = pyramid.grids[layer]
    numbers = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    repeated = F.interpolate(numbers, size=pyramid.grids[0], mode="nearest")[0, 0]
    return repeated[slice(*pyramid.band)].numpy().astype(int).ravel()


def odd_pyramids() -> st.SearchStrategy[Pyramid]:
    """Of up to three layers, none with more rows or columns than the one before."""

    @st.composite
    def draw(draw):
        grids = [draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))]
        for _ in range(draw(st.integers(0, 2))):
            grids.append(tuple(draw(st.integers(1, side)) for side in grids[-1]))
        return Pyramid.whole(grids)

    return draw()


@pytest.mark.parametrize("from_side", range(1, 71))
def test_nearest_is_that_of_torch(from_side):
    places = torch.arange(from_side, dtype=torch.float32).view(1, 1, -1)
    for to_side in range(1, 71):
        expected = F.interpolate(places, size=to_side, mode="nearest")[0, 0]
        np.testing.assert_array_equal(nearest(from_side, to_side), expected)


@pytest.mark.parametrize("from_side", range(1, 71))
def test_enlarging_leaves_no_place_out(from_side):
    # only so the patches of all bands are all patches of a coarse layer
    for to_side in range(from_side, 71):
        assert set(nearest(from_side, to_side)) == set(range(from_side))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("height", [1, 2, 7, 56])
def test_bands_cover_all_rows_once_and_evenly(height, n):
    bands = [part.band for part in Pyramid.whole([(height, 3)]).split(n)]
    assert len(bands) == n
    assert [row for band in bands for row in range(*band)] == list(range(height))
    sizes = {end - start for start, end in bands}
    assert max(sizes) - min(sizes) <= 1


def test_patches_that_two_bands_need_are_new_in_the_first():
    # rows of layer2 repeated in those of layer1: 0 0 1 1; the cut goes through the first
    pyramid = Pyramid(((4, 3), (2, 2)), (1, 4))
    assert pyramid.patches_of(1) == slice(0, 4)
    assert pyramid.new_patches_of(1) == slice(2, 4)
    assert pyramid.new_patches_of(0) == slice(0, 9)


def test_an_empty_band_has_no_patches():
    pyramid = Pyramid(((4, 3), (2, 2)), (2, 2))
    assert pyramid.shape == (0, 3)
    assert pyramid.patches_of(1) == pyramid.new_patches_of(1) == slice(0, 0)
    of_patches, parents, members = cells_of(pyramid)
    assert of_patches.size == parents.size == members.size == 0
    assert blocks_of(pyramid, 4) == []
    assert new_cells_of(pyramid) == slice(0, 0)


def test_patches_are_in_row_major_order():
    layers = [torch.randn(2, 3, 4, 5), torch.randn(2, 1, 2, 3)]
    pyramid, arranged = arrange(layers)
    assert pyramid == Pyramid(((4, 5), (2, 3)), (0, 4))
    for layer, patches in zip(layers, arranged, strict=True):
        height, width = layer.shape[2:]
        for row in range(height):
            for column in range(width):
                assert torch.equal(patches[row * width + column], layer[:, :, row, column])


@settings(deadline=None, max_examples=150)
@given(pyramid=odd_pyramids(), n=st.integers(1, 6))
def test_parents_of_cells_are_the_patches_that_torch_repeats(pyramid, n):
    for band in pyramid.split(n):
        of_patches, parents, _ = cells_of(band)
        coarser = range(len(band.grids))[-len(parents) :]
        assert list(coarser) == (list(range(1, len(band.grids))) or [0])
        for layer, own_parents in zip(coarser, parents, strict=True):
            expected = naive_parents(band, layer)
            own = range(*band.patches_of(layer).indices(10**6))
            np.testing.assert_array_equal(
                np.array(own, dtype=int)[own_parents[of_patches]], expected
            )
            # all rows of them are needed
            width = band.grids[layer][1]
            assert {i // width for i in own} == {i // width for i in expected}
        on_device = cells_on(band, CPU)
        for index, kept in zip(cells_of(band), on_device, strict=True):
            assert kept.tolist() == index.tolist()


@settings(deadline=None, max_examples=150)
@given(pyramid=odd_pyramids(), n=st.integers(1, 6))
def test_cells_are_the_patches_with_the_same_parents(pyramid, n):
    for band in pyramid.split(n):
        of_patches, parents, members = cells_of(band)
        different = {*zip(*parents.tolist(), strict=True)}
        assert len(different) == parents.shape[1] == len(members)
        for cell, patches in enumerate(members):
            assert set(patches) == set(np.flatnonzero(of_patches == cell))


@settings(deadline=None, max_examples=150)
@given(pyramid=odd_pyramids(), n=st.integers(1, 6), size=st.integers(1, 80))
def test_blocks_are_all_cells_with_their_patches_once(pyramid, n, size):
    for band in pyramid.split(n):
        of_patches, parents, _ = cells_of(band)
        cells, patches = [], []
        for block in blocks_of(band, size):
            cells += range(parents.shape[1])[block.cells]
            own = range(len(of_patches))[block.patches]
            assert set(of_patches[own]) == set(range(parents.shape[1])[block.cells])
            patches += own
        assert cells == list(range(parents.shape[1]))
        assert patches == list(range(len(of_patches)))


@settings(deadline=None, max_examples=150)
@given(pyramid=odd_pyramids(), n=st.integers(1, 6))
def test_new_cells_of_all_bands_are_all_cells_once(pyramid, n):
    def whole_parents(band):
        """Of the band's cells, counted from the first row of all."""
        coarser = range(len(band.grids))[1:] or [0]
        first = [band.patches_of(layer).start for layer in coarser]
        return (cells_of(band).parents + np.array(first)[:, None]).T.tolist()

    found = []
    for band in pyramid.split(n):
        found += whole_parents(band)[new_cells_of(band)]
    assert found == whole_parents(pyramid)


@settings(deadline=None, max_examples=150)
@given(pyramid=odd_pyramids(), n=st.integers(1, 6))
def test_new_patches_of_all_bands_are_all_patches_once(pyramid, n):
    for layer, (height, width) in enumerate(pyramid.grids):
        found = []
        for band in pyramid.split(n):
            own = range(height * width)[band.patches_of(layer)]
            found += own[band.new_patches_of(layer)]
        assert found == list(range(height * width))
