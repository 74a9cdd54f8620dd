"""The method on a GPU that is only pretended; gpu_cases.py needs a real one.

Fake tensors have shapes, types and devices but no numbers: an operation on tensors of two devices
is an error, and nothing needs a GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utils import features, gaussian, maps, patches
from utils.backbone import BACKBONES, Channels, Network
from utils.features import FeatureExtractor
from utils.gaussian import fit_gaussians
from utils.held_out import HeldOut
from utils.maps import enlarge

CUDA = torch.device("cuda:0")
SIZE = (64, 48)
GRIDS, DEPTHS = [(16, 12), (8, 6), (4, 3)], [20, 30, 50]
in_both_forms = pytest.mark.parametrize("n", [20, 120], ids=["dual", "primal"])


@pytest.fixture
def pretended(monkeypatch):
    """Tensors made from now on are fake, and may be on a GPU."""
    # numbers that do not exist are neither finite nor not
    monkeypatch.setattr(gaussian, "_check_finite", lambda mean: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # scipy takes no fake tensors, and torch.tensor makes none
    monkeypatch.setattr(maps, "enlarging", lambda *sides: torch.empty(sides[:2], device=sides[2]))
    monkeypatch.setattr(features, "_index", make_index)
    # indices that were made before are not fake, those made here are
    patches.cells_on.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    patches.cells_on.cache_clear()


def make_index(channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.empty(len(channels), dtype=torch.int64, device=device)


def make_layers(n: int, device: torch.device = CUDA) -> list[torch.Tensor]:
    sizes = zip(DEPTHS, GRIDS, strict=True)
    return [torch.empty(n, depth, *grid, device=device) for depth, grid in sizes]


def move(extractor: FeatureExtractor) -> None:
    """Do what the constructor does for a device: no module can be sent to a pretended one."""
    for module in extractor.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device=CUDA)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=CUDA))
    extractor.device, extractor.memory_format = CUDA, torch.contiguous_format


@pytest.mark.parametrize("precision", ["float32", "tf32", "fp16"])
def test_features_are_float32_on_the_device(precision, request, monkeypatch):
    with torch.device("meta"):
        stages = [stage.eval() for stage in BACKBONES["resnet18"].build()[1]]
    network, channels = Network("resnet18", stages, ""), Channels(((0,), (6,), (108,)), "")
    extractor = FeatureExtractor(network, torch.device("meta"), precision, channels)
    request.getfixturevalue("pretended")
    move(extractor)
    seen = []
    stages[3].register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    layers = extractor(torch.empty(3, 3, *SIZE, dtype=torch.uint8, device="cpu"))
    assert [tuple(layer.shape) for layer in layers] == [(3, 1, *grid) for grid in GRIDS]
    assert {(layer.device, layer.dtype) for layer in layers} == {(CUDA, torch.float32)}
    # TF32 is allowed where it is asked for, and the setting of the process stays as it is
    assert seen == [precision == "tf32"]
    assert torch.backends.cudnn.allow_tf32


@in_both_forms
def test_fit_and_maps_stay_on_the_device(pretended, monkeypatch, n):
    # near copies are found by numbers, which do not exist
    monkeypatch.setattr("utils.held_out.group_near_copies", lambda *_: None)
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
