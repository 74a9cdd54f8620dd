"""The method on a GPU that is only pretended; gpu_cases.py needs a real one.

Fake tensors have shapes, types and devices but no numbers: an operation on tensors of two devices
is an error, and nothing needs a GPU.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from utils import gaussian, patches, view
from utils.features import FeatureExtractor
from utils.gaussian import fit_gaussians
from utils.held_out import HeldOut
from utils.view import enlarge

CUDA = torch.device("cuda:0")
SIZE = (64, 48)
GRIDS, DEPTHS = [(16, 12), (8, 6), (4, 3)], [20, 30, 50]


@pytest.fixture
def pretended(monkeypatch):
    """Tensors made from now on are fake, and may be on a GPU."""
    # numbers that do not exist are neither finite nor not, and no near copies are found by them
    monkeypatch.setattr(gaussian, "_check_finite", lambda mean: None)
    monkeypatch.setattr("utils.held_out.group_near_copies", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # scipy takes no fake tensors
    monkeypatch.setattr(view, "enlarging", lambda *sides: torch.empty(sides[:2], device=sides[2]))
    # indices that were made before are not fake, those made here are
    patches.cells_on.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    patches.cells_on.cache_clear()


def make_layers(n: int, device: torch.device = CUDA) -> list[torch.Tensor]:
    sizes = zip(DEPTHS, GRIDS, strict=True)
    return [torch.empty(n, depth, *grid, device=device) for depth, grid in sizes]


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_features_are_float32_on_the_device_and_tf32_is_allowed_where_asked_for(
    pretended, monkeypatch, precision
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    allowed = []

    def run_layer1(images):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return images

    extractor = SimpleNamespace(device=CUDA, precision=precision, stages=[], choose=list)
    extractor._run_layer1 = run_layer1
    extractor._extract = partial(FeatureExtractor._extract, extractor)
    images = torch.empty(3, 3, *SIZE, dtype=torch.uint8, device="cpu")
    (layer,) = FeatureExtractor.forward(extractor, images)
    assert (layer.device, layer.dtype) == (CUDA, torch.float32)
    # the setting of the process stays as it is
    assert allowed == [precision == "tf32"]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("n", [20, 120], ids=["dual", "primal"])
def test_fit_and_maps_stay_on_the_device(pretended, n):
    held_out = HeldOut(n)
    gaussians = fit_gaussians(held_out.watch(make_layers(20) for _ in range(n // 20)), n)
    assert gaussians.is_primal is (n == 120)
    matrices = gaussians.whitening, gaussians.loadings, gaussians.residual_whitening
    tensors = [*matrices, *gaussians.means, *gaussians.samples]
    tensors.append(enlarge(gaussians.distances(make_layers(3)), SIZE))
    # a tensor left on another device is noticed
    with pytest.raises(RuntimeError, match="device"):
        gaussians.distances(make_layers(3, torch.device("cpu")))
    tensors.append(held_out.distances(gaussians))
    assert {tensor.device for tensor in tensors} == {CUDA}
