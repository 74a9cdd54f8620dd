import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from tests.naive import naive_embeddings
from tests.samples import draw_layers
from utils.gaussian import fit_gaussians
from utils.shrinkage import LEAST

GRIDS = [(7, 5), (4, 3), (2, 2)]
REGION = np.zeros(GRIDS[0], dtype=bool)
REGION[2:5, 1:3] = True
# the dual form is for no more images than the coarser layers have channels
in_both_forms = pytest.mark.parametrize("n", [8, 20], ids=["dual", "primal"])


@in_both_forms
@pytest.mark.parametrize("region", [None, REGION], ids=["all", "region"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_auto_is_the_mean_of_ledoit_and_wolfs(n, region, n_layers):
    # far from 0 and of another scale at each patch
    layers = [layer * torch.linspace(1, 3, layer.shape[3]) + 9 for layer in draw_layers(n, GRIDS)]
    layers = layers[:n_layers]
    batches = zip(*(layer.split(5) for layer in layers), strict=True)
    gaussians = fit_gaussians(batches, n, shrinkage="auto", region=region)
    inside = np.ones(GRIDS[0], dtype=bool) if region is None else region
    patches = naive_embeddings(layers)[:, :, inside]
    variance = patches.var(axis=0, ddof=1).mean(axis=0)
    s = np.array([ledoit_wolf_shrinkage(patches[..., i]) for i in range(patches.shape[2])])
    expected = (s / (1 - s) * variance / variance.mean()).clip(max=1).mean()
    assert LEAST < expected < 1
    assert gaussians.shrinkage == pytest.approx(expected, rel=1e-4)
    assert gaussians.eps == pytest.approx(expected * variance.mean(), rel=1e-4)


def test_auto_of_two_images_is_the_least():
    assert fit_gaussians([draw_layers(2, GRIDS)], 2, shrinkage="auto").shrinkage == LEAST


@pytest.mark.parametrize("shrinkage", [0, -0.1, 1.01, float("nan"), "much"])
def test_shrinkage_out_of_range_is_refused(shrinkage):
    with pytest.raises(ValueError, match=f"--shrinkage {shrinkage} is out of range; give a number"):
        fit_gaussians([draw_layers(3, GRIDS)], 3, shrinkage=shrinkage)


@in_both_forms
def test_images_that_do_not_vary_have_nothing_to_shrink_to(n):
    layers = [layer[:1].expand(n, -1, -1, -1) * 0 + 1 for layer in draw_layers(1, GRIDS)]
    with pytest.raises(ValueError, match="the features of the training images do not vary"):
        fit_gaussians([layers], n, shrinkage=0.1)
