"""The whole method on a GPU that is only pretended: a tensor left on another device is an error.

Fake tensors have shapes, types and devices but no numbers, so nothing here needs a GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utils import gaussian, padim, patches
from utils.backbone import BACKBONES, Network
from utils.features import FeatureExtractor
from utils.padim import PaDiM
from utils.thresholds import choose_held_out

CUDA = torch.device("cuda:0")
SIZE = (64, 48)
# of 100 channels; the forms by the number of training images
FORMS = {"dual": 20, "primal": 120}


@pytest.fixture
def pretended(monkeypatch):
    """Tensors made from now on are fake, and may be on a GPU."""
    # whether a number is finite is not known of one that does not exist
    monkeypatch.setattr(gaussian, "_check_finite", lambda mean: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # scipy smooths it, and what is fake is no array
    monkeypatch.setattr(padim, "enlarging", lambda *sides: torch.empty(sides[:2], device=sides[2]))
    forget_indices()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    forget_indices()


def forget_indices() -> None:
    """Those kept are fake, or are not."""
    patches.cells_on.cache_clear()


def features(n: int) -> dict[str, torch.Tensor]:
    sizes = zip((64, 128, 256), (4, 8, 16), strict=True)
    return {
        f"layer{i}": torch.empty(n, depth, SIZE[0] // stride, SIZE[1] // stride, device=CUDA)
        for i, (depth, stride) in enumerate(sizes, start=1)
    }


def fit(n: int) -> PaDiM:
    batches = (features(20) for _ in range(n // 20))
    return PaDiM(range(0, 448, 4)[:100]).fit(batches, n, choose_held_out(n))


def move(extractor: FeatureExtractor) -> FeatureExtractor:
    """What its constructor does for the device: no module can be sent to a pretended one."""
    for module in extractor.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(empty, False) if is_parameter else empty
    extractor.device = CUDA
    extractor.memory_format = torch.contiguous_format
    return extractor


@pytest.fixture(params=["resnet18", "wide_resnet50_2"])
def network(request):
    """A network without numbers."""
    backbone = BACKBONES[request.param]
    with torch.device("meta"):
        return Network(backbone, [one.eval() for one in backbone.split(backbone.build())], "")


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_outputs_of_the_network_are_float32_on_its_device(network, precision, request):
    extractor = FeatureExtractor(network, torch.device("meta"), precision)
    request.getfixturevalue("pretended")
    outputs = move(extractor)(torch.empty(3, 3, *SIZE, dtype=torch.uint8, device="cpu"))
    assert len(outputs) == 3
    for output in outputs.values():
        assert (output.device, output.dtype) == (CUDA, torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_fit_stays_on_the_device(pretended, form):
    model = fit(FORMS[form])
    assert model.gaussians.is_primal is (form == "primal")
    found = []
    model.gaussians.map_tensors(lambda tensor, part: found.append(tensor.device))
    assert found == [CUDA] * (6 if form == "primal" else 8)


@pytest.mark.parametrize("form", FORMS)
def test_anomaly_maps_are_on_the_device(pretended, form):
    anomaly_maps = fit(FORMS[form]).anomaly_maps(features(3), SIZE)
    assert (anomaly_maps.device, anomaly_maps.shape) == (CUDA, (3, *SIZE))


@pytest.mark.parametrize("form", FORMS)
def test_held_out_maps_are_made_on_the_device(pretended, form, monkeypatch):
    found = []

    def enlarge(distances, size):
        found.append(padim_enlarge(distances, size))
        raise StopIteration  # before it is an array: there are no numbers

    padim_enlarge = padim.enlarge
    monkeypatch.setattr(padim, "enlarge", enlarge)
    n = FORMS[form]
    model = fit(n)
    with pytest.raises(StopIteration):
        model.held_out_maps(SIZE)
    (anomaly_maps,) = found
    assert (anomaly_maps.device, anomaly_maps.shape) == (CUDA, (n, *SIZE))


def test_a_tensor_on_another_device_is_noticed(pretended):
    here, there = torch.empty(4, 4, device=CUDA), torch.empty(4, 4, device="cpu")
    with pytest.raises(RuntimeError, match="device"):
        here @ there


def test_a_model_on_another_device_is_noticed(pretended):
    model = fit(20)
    layers = {name: layer.to("cpu") for name, layer in features(3).items()}
    with pytest.raises(RuntimeError, match="device"):
        model.anomaly_maps(layers, SIZE)
