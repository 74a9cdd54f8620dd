import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.naive import naive_distances
from utils.features import concatenate
from utils.gaussian import (
    COVARIANCE_EPS,
    PATCH_BLOCK,
    Gaussians,
    _fit_dual,
    _fit_primal,
    count_numbers,
    fit_gaussians,
)
from utils.patches import arrange

FORMS = {"primal": _fit_primal, "dual": _fit_dual}
FEW_OR_MANY = {"dual": 3, "primal": 20}  # images with which it is the smaller form
in_both_forms = pytest.mark.parametrize("form", FORMS)
# float32 against float64 on embeddings near 1; the largest error seen is a tenth of it
TOLERANCE = 1e-4


def draw(n: int, d: int, grid: tuple[int, int] = (3, 2), seed: int = 0) -> Tensor:
    """Embeddings (n, d, *grid) with correlated channels."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(d).normal(size=(d, d)) / np.sqrt(d)
    values = np.einsum("ce,nehw->nchw", mixing, rng.normal(size=(n, d, *grid)))
    return torch.from_numpy(values).float()


def draw_pyramid(n: int, grids: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    return [draw(n, 4 + i, grid, seed) for i, grid in enumerate(grids)]


def fit(
    form: str,
    train: Tensor | list[Tensor],
    eps: float = COVARIANCE_EPS,
    block: int = PATCH_BLOCK,
) -> Gaussians:
    """Fit all images at once in the form wanted, whatever their number."""
    layers = [train] if isinstance(train, Tensor) else train
    return FORMS[form]([arrange(layers)], len(layers[0]), eps, block)


def leave_one_out(form: str, train: Tensor | list[Tensor]) -> Tensor:
    layers = [train] if isinstance(train, Tensor) else train
    n = len(layers[0])
    return fit(form, layers).leave_one_out(arrange(layers) if form == "primal" else range(n), n)


def repeat(layers: list[Tensor]) -> np.ndarray:
    """Layers in one piece, as torch repeats them to the first one's grid."""
    grid = layers[0].shape[2:]
    return torch.cat([F.interpolate(z, grid, mode="nearest") for z in layers], dim=1).numpy()


def assert_close(distances: Tensor, expected: np.ndarray | Tensor, tolerance: float = TOLERANCE):
    np.testing.assert_allclose(distances.numpy(), np.asarray(expected), rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize(("n", "primal"), [(5, False), (12, False), (13, True)])
def test_form_is_the_smaller_one(n, primal):
    assert fit_gaussians([arrange([draw(n, 12)])], n).is_primal is primal


@pytest.mark.parametrize(("n", "primal"), [(11, False), (12, True)])
def test_form_counts_the_channels_of_the_coarser_layers(n, primal):
    # 4, and 5 + 6
    pyramid = draw_pyramid(n, [(4, 4), (2, 2), (1, 1)])
    assert fit_gaussians([arrange(pyramid)], n).is_primal is primal


@in_both_forms
@pytest.mark.parametrize("grids", [[(6, 4)], [(6, 4), (3, 2)], [(7, 5), (4, 3), (2, 2)]])
def test_numbers_are_counted(form, grids):
    gaussians = fit_gaussians([arrange(draw_pyramid(n := FEW_OR_MANY[form], grids))], n)
    assert gaussians.is_primal is (form == "primal")
    found = []
    gaussians.map_tensors(lambda tensor, part: found.append(tensor.numel()))
    features = [4 + i for i in range(len(grids))]
    assert count_numbers(gaussians.pyramid, features, n) == sum(found)


@pytest.mark.parametrize("n", [2, 5, 12, 13, 40])
def test_distances_equal_the_naive_ones(n):
    train, test = draw(n, 12), draw(4, 12, seed=1)
    distances = fit_gaussians([arrange([train])], n).distances(arrange([test]))
    assert distances.shape == (4, 3, 2)
    assert_close(distances, naive_distances(train.numpy(), test.numpy()))


@in_both_forms
@pytest.mark.parametrize("n", [5, 12, 40])
def test_both_forms_equal_the_naive_one_at_any_size(form, n):
    train, test = draw(n, 12), draw(4, 12, seed=1)
    distances = fit(form, train).distances(arrange([test]))
    assert_close(distances, naive_distances(train.numpy(), test.numpy()))


@in_both_forms
@pytest.mark.parametrize("sizes", [[9], [1] * 9])
def test_large_means_and_tiny_variances_lose_no_digits(form, sizes):
    # float32 holds 1000 to 6e-5: the inputs are rounded alike for both
    train, test = 1000 + 0.1 * draw(9, 8), 1000 + 0.1 * draw(3, 8, seed=1)
    batches = [[images] for images in train.split(sizes)]
    distances = FORMS[form](map(arrange, batches), 9, COVARIANCE_EPS, PATCH_BLOCK).distances(
        arrange([test])
    )
    expected = naive_distances(train.numpy(), test.numpy())
    np.testing.assert_allclose(distances.numpy(), expected, rtol=2e-3)


@in_both_forms
@pytest.mark.parametrize("eps", [0.001, 0.1, 10])
def test_eps_is_added_to_the_diagonal(form, eps):
    train, test = draw(9, 5), draw(3, 5, seed=1)
    distances = fit(form, train, eps).distances(arrange([test]))
    assert_close(distances, naive_distances(train.numpy(), test.numpy(), eps), 1e-3)


def test_eps_is_that_of_the_paper():
    assert COVARIANCE_EPS == 0.01


@in_both_forms
@pytest.mark.parametrize(
    "grids",
    [
        [(8, 8), (4, 4), (2, 2)],
        [(7, 7), (4, 4), (2, 2)],
        [(7, 5), (4, 3), (3, 2)],
        [(3, 6), (3, 6)],
    ],
)
def test_pyramid_equals_its_layers_in_one_piece(form, grids):
    train, test = draw_pyramid(10, grids), draw_pyramid(3, grids, seed=1)
    whole = fit(form, concatenate(train)).distances(arrange([concatenate(test)]))
    assert_close(fit(form, train).distances(arrange(test)), whole)


@in_both_forms
def test_pyramid_equals_the_naive_distances_of_nearest_repeats(form):
    grids = [(7, 5), (4, 3), (2, 2)]
    train, test = draw_pyramid(10, grids), draw_pyramid(3, grids, seed=1)
    expected = naive_distances(repeat(train), repeat(test))
    assert_close(fit(form, train).distances(arrange(test)), expected)


@in_both_forms
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_block_size_of_the_fit_has_no_effect(form, block):
    train, test = (draw_pyramid(n, [(6, 4), (3, 2)], seed=n) for n in (9, 3))
    distances = fit(form, train, block=block).distances(arrange(test))
    assert_close(distances, fit(form, train).distances(arrange(test)), 1e-5)


@in_both_forms
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_block_size_of_the_distances_has_no_effect(form, block):
    train, test = (draw_pyramid(n, [(6, 4), (3, 2)], seed=n) for n in (9, 3))
    gaussians = fit(form, train)
    assert_close(
        gaussians.distances(arrange(test), block), gaussians.distances(arrange(test)), 1e-5
    )


@in_both_forms
@pytest.mark.parametrize("sizes", [[1] * 9, [4, 4, 1], [1, 8]])
def test_batch_size_of_the_fit_has_no_effect(form, sizes):
    train, test = (draw_pyramid(n, [(6, 4), (3, 2)], seed=n) for n in (9, 3))
    parts = [layer.split(sizes) for layer in train]
    batches = [list(layers) for layers in zip(*parts, strict=True)]
    assert len(batches) == len(sizes)
    gaussians = FORMS[form](map(arrange, batches), 9, COVARIANCE_EPS, PATCH_BLOCK)
    assert_close(
        gaussians.distances(arrange(test)), fit(form, train).distances(arrange(test)), 1e-5
    )


@in_both_forms
def test_batch_size_of_the_distances_has_no_effect(form):
    train, test = (draw_pyramid(n, [(6, 4), (3, 2)], seed=n) for n in (9, 3))
    gaussians = fit(form, train)
    alone = torch.cat(
        [gaussians.distances(arrange([layer[[i]] for layer in test])) for i in range(3)]
    )
    assert_close(gaussians.distances(arrange(test)), alone, 1e-5)


@in_both_forms
def test_distance_to_an_identity_covariance_is_euclidean(form):
    # +-a along each of 3 axes: covariance 2 a^2 / 5, and with eps the identity
    a = (2.5 * (1 - COVARIANCE_EPS)) ** 0.5
    train = torch.cat([a * torch.eye(3), -a * torch.eye(3)])[:, :, None, None]
    test = torch.tensor([[1.0, 2, 2], [3, 0, 4], [0, 0, 0]])[:, :, None, None]
    distances = fit(form, train).distances(arrange([test]))
    np.testing.assert_allclose(distances.flatten(), [3, 5, 0], rtol=1e-5)


@in_both_forms
def test_distance_to_equal_images_is_euclidean_over_the_root_of_eps(form):
    # no variance: the covariance is eps, its root 0.1
    train = torch.full((4, 2, 1, 1), 7.0)
    test = torch.tensor([10.0, 11.0]).view(1, 2, 1, 1)
    assert fit(form, train).distances(arrange([test])).item() == pytest.approx(50, rel=1e-5)


@in_both_forms
def test_distance_is_not_squared(form):
    train, test = draw(9, 5), draw(3, 5, seed=1)
    mean = train.mean(dim=0)
    gaussians = fit(form, train)
    near, far = (gaussians.distances(arrange([mean + k * (test - mean)])) for k in (1, 3))
    assert_close(far, 3 * near)


@in_both_forms
def test_distance_to_the_mean_is_0(form):
    train = draw(9, 5)
    distances = fit(form, train).distances(arrange([train.mean(dim=0, keepdim=True)]))
    np.testing.assert_allclose(distances.numpy(), 0, atol=1e-5)


@in_both_forms
def test_translation_has_no_effect(form):
    train, test, shift = draw(9, 5), draw(3, 5, seed=1), draw(1, 5, seed=2)
    moved = fit(form, train + shift).distances(arrange([test + shift]))
    assert_close(moved, fit(form, train).distances(arrange([test])))


@in_both_forms
def test_rotation_has_no_effect(form):
    train, test = draw(9, 5), draw(3, 5, seed=1)
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(2).normal(size=(5, 5)))).Q
    turned = [torch.einsum("ce,nehw->nchw", rotation.float(), x) for x in (train, test)]
    assert_close(
        fit(form, turned[0]).distances(arrange([turned[1]])),
        fit(form, train).distances(arrange([test])),
    )


@in_both_forms
def test_every_patch_has_its_own_gaussian(form):
    train, test = draw(9, 5), draw(3, 5, seed=1)
    distances = fit(form, train).distances(arrange([test]))
    own = fit(form, train[:, :, 2:, 1:]).distances(arrange([test[:, :, 2:, 1:]]))
    assert_close(distances[:, 2:, 1:], own, 1e-5)


@in_both_forms
def test_test_embeddings_are_not_modified(form):
    train, test = draw(9, 5), draw(3, 5, seed=1)
    before = test.clone()
    fit(form, train).distances(arrange([test]))
    assert torch.equal(test, before)


@in_both_forms
def test_training_embeddings_are_not_modified(form):
    train = draw(9, 5)
    before = train.clone()
    fit(form, train)
    assert torch.equal(train, before)


@in_both_forms
def test_distances_are_float32(form):
    assert fit(form, draw(9, 5)).distances(arrange([draw(3, 5)])).dtype == torch.float32


class Sizes(TorchDispatchMode):
    """Notes how many numbers each tensor that is made has."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made.append(result.numel())
        return result


@in_both_forms
def test_no_copy_of_all_test_embeddings_is_made(form):
    train, test = draw(9, 5, grid=(20, 3)), draw(100, 5, grid=(20, 3), seed=1)
    gaussians, patches = fit(form, train), arrange([test])
    with Sizes() as sizes:
        gaussians.distances(patches, block=6)
    assert max(sizes.made) == 100 * 20 * 3  # the distances


def test_square_that_rounding_makes_negative_counts_as_0():
    # squares near 2e5 over 0.01, of which all but about 3 cancel, are more than float32 holds
    train = 70 * draw(5, 40, grid=(8, 8))
    distances = fit("dual", train).distances(arrange([train]))
    assert (distances == 0).any()
    assert distances.isfinite().all()


@in_both_forms
@pytest.mark.parametrize(("n", "tolerance"), [(3, 5e-2), (6, 1e-2), (12, 2e-3), (30, 1e-4)])
def test_leave_one_out_equals_a_fit_without_the_image(form, n, tolerance):
    train = draw(n, 8)
    distances = leave_one_out(form, train)
    for i in range(n):
        others = np.delete(train.numpy(), i, axis=0)
        expected = naive_distances(others, train[[i]].numpy(), eps=0.01 * (n - 1) / (n - 2))
        np.testing.assert_allclose(distances[i].numpy(), expected[0], rtol=tolerance)


@in_both_forms
def test_leave_one_out_where_eps_is_nothing_beside_the_variance_is_finite(form):
    distances = leave_one_out(form, 30 * draw(6, 12))
    assert distances.isfinite().all()
    assert (distances > 0).all()


def test_leave_one_out_of_far_images_keeps_its_digits():
    # with 12 channels and 6 images each image is almost all there is in its own direction
    train = 20 * draw(6, 12)
    for i, distances in enumerate(leave_one_out("dual", train)):
        others = np.delete(train.numpy(), i, axis=0)
        expected = naive_distances(others, train[[i]].numpy(), eps=0.01 * 5 / 4)
        np.testing.assert_allclose(distances.numpy(), expected[0], rtol=1e-2)


@in_both_forms
@pytest.mark.parametrize(("n", "tolerance"), [(4, 2e-2), (12, 2e-3), (30, 1e-4)])
@pytest.mark.parametrize("grids", [[(4, 4), (2, 2)], [(5, 3), (3, 2), (2, 1)]])
def test_leave_one_out_of_a_pyramid_equals_a_fit_without_the_image(form, n, tolerance, grids):
    train = draw_pyramid(n, grids)
    distances, images = leave_one_out(form, train), repeat(train)
    for i in range(n):
        others = np.delete(images, i, axis=0)
        expected = naive_distances(others, images[[i]], eps=0.01 * (n - 1) / (n - 2))
        np.testing.assert_allclose(distances[i].numpy(), expected[0], rtol=tolerance)


def test_leave_one_out_of_far_images_of_a_pyramid_keeps_its_digits():
    # 5 + 6 coarser channels, of which 6 images are all that there is
    train = [20 * layer for layer in draw_pyramid(6, [(4, 4), (2, 2), (1, 1)])]
    images = repeat(train)
    for i, distances in enumerate(leave_one_out("dual", train)):
        others = np.delete(images, i, axis=0)
        expected = naive_distances(others, images[[i]], eps=0.01 * 5 / 4)
        np.testing.assert_allclose(distances.numpy(), expected[0], rtol=1e-2)


def test_leave_one_out_of_equal_images_is_0():
    train = torch.full((4, 8, 2, 1), 7.0)
    assert (leave_one_out("dual", train) == 0).all()
    assert (leave_one_out("primal", train) == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    form=st.sampled_from(sorted(FORMS)),
    n=st.integers(2, 14),
    d=st.integers(1, 10),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    n_test=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_distances_of_any_shape_equal_the_naive_ones(form, n, d, grid, n_test, seed):
    train, test = draw(n, d, grid, seed), draw(n_test, d, grid, seed + 1)
    distances = fit(form, train, block=3).distances(arrange([test]))
    assert_close(distances, naive_distances(train.numpy(), test.numpy()), 1e-3)


@settings(deadline=None, max_examples=60)
@given(
    form=st.sampled_from(sorted(FORMS)),
    n=st.integers(2, 25),
    grids=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=3),
    block=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_distances_of_any_pyramid_equal_the_naive_ones(form, n, grids, block, seed):
    # no grid has more rows or columns than the one before
    grids = [
        tuple(min(sides) for sides in zip(*grids[: i + 1], strict=True)) for i in range(len(grids))
    ]
    train, test = draw_pyramid(n, grids, seed), draw_pyramid(2, grids, seed + 1)
    distances = fit(form, train, block=block).distances(arrange(test), block)
    assert_close(distances, naive_distances(repeat(train), repeat(test)), 1e-3)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(n):
    with pytest.raises(ValueError, match=f"covariance needs at least 2 training images; got {n}"):
        fit_gaussians([arrange([draw(n, 5)])], n)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", [4, 9])
def test_embedding_that_is_not_finite_is_refused(value, n):
    batches = [draw_pyramid(2, [(4, 4), (2, 2)]), draw_pyramid(n - 2, [(4, 4), (2, 2)])]
    batches[1][1][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="an embedding is not finite; the weights or the images"):
        fit_gaussians(map(arrange, batches), n)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (5, 8)])
def test_features_that_drown_eps_are_refused(n, d):
    # two equal channels and two equal images: without eps neither form has a Cholesky factor
    embeddings = 3000 * draw(n, d, (8, 8))
    embeddings[:, 1] = embeddings[:, 0]
    embeddings[1] = embeddings[0]
    with pytest.raises(ValueError, match="the features are so large that float32 loses eps"):
        fit_gaussians([arrange([embeddings])], n)
