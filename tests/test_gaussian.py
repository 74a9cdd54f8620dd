import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tests.naive import naive_embeddings
from tests.samples import draw_layer, draw_layers, odd_grids
from tests.tolerances import assert_distances, left_out_distances
from utils.gaussian import Gaussians, _left_out_squares, count_numbers, fit_gaussians

GRIDS = {"one layer": [(6, 4)], "two": [(6, 4), (3, 2)], "three": [(7, 5), (4, 3), (2, 2)]}
# the dual form is for no more images than coarser layers have channels, which are 4, 5 and 5 + 6
in_both_forms = pytest.mark.parametrize("n", [4, 20], ids=["dual", "primal"])
on_all_grids = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)


def quarter(height: int, width: int) -> np.ndarray:
    """A region in the middle of a grid."""
    region = np.zeros((height, width), dtype=bool)
    region[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    return region


in_region_too = pytest.mark.parametrize("region", [None, quarter], ids=["all", "region"])


def fit(layers: list[Tensor], **options) -> Gaussians:
    """Gaussians of all images in one batch."""
    return fit_gaussians([layers], len(layers[0]), **options)


@in_both_forms
@on_all_grids
@in_region_too
def test_numbers_are_counted(n, grids, region):
    gaussians = fit(draw_layers(n, grids), region=region and region(*grids[0]))
    assert gaussians.is_primal is (n == 20)
    matrices = gaussians.whitening, gaussians.loadings, gaussians.residual_whitening
    tensors = [*matrices, *gaussians.means, *gaussians.samples]
    features = [4, 5, 6][: len(grids)]
    assert count_numbers(gaussians.layout, features, n) == sum(t.numel() for t in tensors)


@settings(max_examples=200)
@given(
    n=st.integers(2, 25),
    grids=odd_grids(6),
    eps=st.sampled_from([0.001, 0.01, 10]),
    mean=st.sampled_from([0, 0, 10, 1000]),
    scale=st.sampled_from([1e-4, 0.1, 1, 1, 3]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_distances_in_any_batches_blocks_and_regions_equal_the_naive_ones(
    n, grids, eps, mean, scale, seed, data
):
    layers = [(mean + scale * z.double()).float() for z in draw_layers(n + 2, grids, seed)]
    train, test = ([z[part] for z in layers] for part in (slice(n), slice(n, None)))
    before = [z.clone() for z in layers]
    first, block = data.draw(st.integers(1, n - 1)), data.draw(st.integers(1, 40))
    region = data.draw(st.none() | arrays(bool, grids[0]).filter(np.any))
    shrinkage = data.draw(st.sampled_from([None, 0.3])) if mean == 0 else None
    batches = zip(*(z.split([first, n - first]) for z in train), strict=True)
    gaussians = fit_gaussians(batches, n, eps, block, shrinkage, region)
    distances = gaussians.distances(test, block)
    assert all(map(torch.equal, layers, before))
    assert (distances.dtype, distances.shape) == (torch.float32, (2, *grids[0]))
    inside = np.ones(grids[0], bool) if region is None else region
    assert (distances.numpy()[:, ~inside] == 0).all()
    found, *embeddings = (
        z[..., inside][..., None]
        for z in (distances.numpy(), naive_embeddings(train), naive_embeddings(test))
    )
    if shrinkage:
        eps = gaussians.eps
        assert eps == pytest.approx(0.3 * embeddings[0].var(axis=0, ddof=1).mean(), rel=1e-5)
    assert (gaussians.shrinkage, gaussians.eps) == (shrinkage, eps)
    assert_distances(found, *embeddings, eps, dual=not gaussians.is_primal)


def test_square_that_rounding_makes_negative_counts_as_0():
    # squares near 2e5 over 0.01, of which all but about 3 cancel, are more than float32 holds
    train = [70 * draw_layer(5, 40, (8, 8))]
    distances = fit(train).distances(train)
    assert (distances == 0).any()
    assert distances.isfinite().all()


def assert_left_out(layers: list[Tensor], groups: list[list[int]], region=None) -> None:
    """Compare the distances of images left out in groups with those of fits without the group."""
    gaussians = fit(layers, region=region)
    distances = gaussians.leave_out(groups, layers, len(layers[0])).numpy()
    inside = np.ones(distances.shape[1:], bool) if region is None else region
    assert (distances[:, ~inside] == 0).all()
    for group in groups:
        found, distances = np.split(distances, [len(group)])
        expected, error = left_out_distances(
            naive_embeddings(layers), group, dual=not gaussians.is_primal
        )
        assert (np.abs(found - expected) <= error)[:, inside].all()
    assert not len(distances)


@pytest.mark.parametrize("scale", [1, 20])
@pytest.mark.parametrize("n", [3, 4, 12, 30])
@on_all_grids
@in_region_too
def test_distances_of_images_left_out_are_those_of_a_fit_without_them(n, scale, grids, region):
    # with at least as many coarser channels as images, each image is almost all there is in its
    # direction
    layers = [scale * layer for layer in draw_layers(n, grids)]
    region = region and region(*grids[0])
    assert_left_out(layers, [[number] for number in range(n)], region)
    if n > 9:
        assert_left_out(layers, [[3], [0, 8, 1], [5, 2], [7], [6, 4]], region)


@pytest.mark.parametrize("n", [6, 20], ids=["dual", "primal"])
@pytest.mark.parametrize("noise", [0, 1e-3, 0.3])
def test_copies_and_near_copies_are_left_out_together(n, noise):
    layers = [3 * layer for layer in draw_layers(n, GRIDS["three"])]
    for layer in layers:
        layer[1:3] = layer[0] + noise * layer[1:3]
    assert_left_out(layers, [[0, 1, 2], [n - 1]])


@in_both_forms
def test_leave_one_out_of_equal_images_is_0(n):
    assert_left_out([torch.full((n, 8, 2, 1), 7.0)], [[number] for number in range(n)])


def test_image_of_which_rounding_leaves_nothing_is_far_away():
    residual = torch.tensor([-1e-9, 0, 1e-9])[:, None, None, None]
    squares = _left_out_squares(residual, 10)
    assert squares.isfinite().all()
    assert (squares > 1e6).all()


def test_fewer_than_two_images_are_refused():
    with pytest.raises(ValueError, match="covariance needs at least 2 training images; got 1"):
        fit([draw_layer(1, 5, (3, 2))])


@in_both_forms
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embedding_that_is_not_finite_is_refused(value, n):
    train = draw_layers(n, GRIDS["two"])
    train[1][2, 0, 0, 0] = value
    with pytest.raises(ValueError, match="an embedding is not finite; the weights or the images"):
        fit(train)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (5, 8)], ids=["primal", "dual"])
def test_features_that_drown_eps_are_refused(n, d):
    # two equal channels and two equal images: without eps neither form has a Cholesky factor
    embeddings = 3000 * draw_layer(n, d, (8, 8))
    embeddings[:, 1] = embeddings[:, 0]
    embeddings[1] = embeddings[0]
    with pytest.raises(ValueError, match="the features are so large that float32 loses eps"):
        fit([embeddings])
