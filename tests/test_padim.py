from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.preprocessing import Preprocessing
from tests.naive import naive_distances, naive_embeddings, naive_maps
from tests.samples import Lookup, draw_layers, numbered
from tests.tolerances import EPSILON, distance_error, left_out_distances
from utils.padim import PaDiM
from utils.view import View, enlarge

GRIDS, SIZE = [(8, 12), (4, 6), (2, 3)], (64, 96)


def fit(layers: list[Tensor], sizes: list[int]) -> PaDiM:
    """A model of all images, given in batches of these sizes."""
    ends = list(accumulate(sizes))
    batches = (numbered(end - n, end, SIZE) for end, n in zip(ends, sizes, strict=True))
    return PaDiM(Lookup(layers), View(Preprocessing(0, 0)), "bolt").fit(batches, len(layers[0]))


def assert_maps(found: np.ndarray | Tensor, distances: np.ndarray, error: np.ndarray) -> None:
    """Compare maps (M, H, W) with those of distances (M, h, w) that may err by so much."""
    expected = naive_maps(distances, SIZE)
    # enlarging and smoothing are sums of positive terms: at most 12 rows times 12 columns
    allowed = naive_maps(error, SIZE) + 24 * EPSILON * expected
    assert (np.abs(np.asarray(found, dtype=np.float64) - expected) <= allowed).all()


# the dual form is for up to 11 images, as the coarser layers have 5 + 6 channels
@pytest.mark.parametrize("n", [6, 20], ids=["dual", "primal"])
def test_maps_and_held_out_maps_equal_the_naive_ones(n):
    train, test = draw_layers(n, GRIDS), draw_layers(3, GRIDS, seed=1)
    model = fit(train, [n - 4, 4])
    assert model.gaussians.is_primal is (n == 20)
    held_out = model.held_out_maps()
    model.extractor = Lookup(test)
    anomaly_maps = model.anomaly_maps(numbered(0, 3, SIZE))
    for maps, count in ((anomaly_maps, 3), (held_out, n)):
        assert (maps.dtype, maps.shape) == (np.float32, (count, *SIZE))
    embeddings = naive_embeddings(train), naive_embeddings(test)
    distances = naive_distances(*embeddings)
    assert_maps(anomaly_maps, distances, distance_error(distances, *embeddings, dual=n == 6))
    for i in (0, 3, n - 1):
        assert_maps(held_out[[i]], *left_out_distances(embeddings[0], [i], n == 6))


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 6), (64, 96)), ((5, 3), (37, 50)), ((4, 4), (4, 4))]
)
def test_maps_are_enlarged_and_smoothed_like_the_naive_ones(grid, size):
    distances = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    before = distances.clone()
    expected = naive_maps(distances.double().numpy(), size)
    np.testing.assert_allclose(enlarge(distances, size), expected, rtol=24 * EPSILON)
    assert torch.equal(distances, before)


@pytest.mark.parametrize(("n", "count"), [(2, 0), (3, 3)])
def test_without_two_other_images_nothing_is_held_out(n, count):
    held_out_maps = fit(draw_layers(n, GRIDS), [n]).held_out_maps()
    assert held_out_maps.shape == (count, *SIZE)
