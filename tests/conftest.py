"""What several test files share: a synthetic data set, random weights, and the way to real ones.

Tests on real weights and images skip where there are none. They are looked for in PADIM_WEIGHTS
(a ResNet-18 state dict) and PADIM_DATA (a folder with bottle/ and transistor/), then in the folder
shared/ beside the repository.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import nn
from torchvision import models

import main

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
TREE_CLASSES = ("bolt", "weave")
TREE_DEFECT_TYPES = ("crack", "stain")
# width and height, RGB or grey
TREE_SIZES = {"bolt": (48, 48), "weave": (64, 40)}
TREE_N_TRAIN, TREE_N_GOOD, TREE_N_DEFECT = 5, 2, 3


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """One thread: the matrices are small, and two threads wait for each other on a busy machine."""
    torch.set_num_threads(1)
    threadpool_limits(1)


class Done(NamedTuple):
    """What is left of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in tmp_path, in this process: imports take seconds, and are done."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            main.main()
        except SystemExit as end:
            return Done(end.code, *capsys.readouterr())
        return Done(0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run):
    """Run a command; the one line on stderr with which it refuses its arguments or data."""

    def refused(*arguments):
        done = run(*arguments)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    return refused


@pytest.fixture
def tree(tmp_path: Path, drawn_tree: Path) -> Path:
    """A folder in MVTec AD's layout: bolt is RGB and square, weave is grey and wide."""
    return shutil.copytree(drawn_tree, tmp_path / "data")


@pytest.fixture(scope="session")
def drawn_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original of tree, which no test changes."""
    folder = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for class_name in TREE_CLASSES:
        for i in range(TREE_N_TRAIN):
            write_image(folder / class_name / f"train/good/{i:03}.png", _texture(class_name, rng))
        for i in range(TREE_N_GOOD):
            write_image(folder / class_name / f"test/good/{i:03}.png", _texture(class_name, rng))
        for defect_type in TREE_DEFECT_TYPES:
            for i in range(TREE_N_DEFECT):
                pixels = _texture(class_name, rng)
                mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
                top, left = rng.integers(8, 20, 2)
                mask[top : top + 12, left : left + 12] = 255
                pixels[mask > 0] = 250 if defect_type == "crack" else 5
                write_image(folder / class_name / f"test/{defect_type}/{i:03}.png", pixels)
                masks = folder / class_name / "ground_truth" / defect_type
                write_image(masks / f"{i:03}_mask.png", mask)
    return folder


def _texture(class_name: str, rng: np.random.Generator) -> np.ndarray:
    width, height = TREE_SIZES[class_name]
    channels = (3,) if class_name == "bolt" else ()
    waves = 128 + 40 * np.sin(np.arange(width) / 3)
    noise = rng.normal(0, 8, (height, width, *channels))
    return (waves.reshape(1, -1, *[1] * len(channels)) + noise).clip(0, 255).astype(np.uint8)


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels (H, W) or (H, W, 3) to path, whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def build_network(arch: str) -> nn.Module:
    """The network as its package builds it, with random weights.

    It is whole, but for the wide one, which is cut off behind layer3 to be light.
    """
    if arch == "efficientnet_lite0":
        return EfficientNet.from_name("efficientnet-lite0")
    network = models.get_model(arch, weights=None)
    if arch == "wide_resnet50_2":
        network.layer4 = network.fc = nn.Identity()
    return network


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an architecture to a file with the state dict of build_network.

    The batch norms hold the statistics of a batch of noise, and random weights and biases: none
    of their values is trivial, and activations stay near 1 at any depth.
    """
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def write(arch: str) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build_network(arch)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
                    module.momentum = 1.0
            side = 224 if arch == "efficientnet_lite0" else 64
            with torch.no_grad():
                network.train()(torch.randn(4, 3, side, side))
        path = folder / f"{arch}.pth"
        torch.save(network.state_dict(), path)
        return path

    return write


@pytest.fixture(scope="session")
def reference_weights() -> Path:
    """ImageNet weights of ResNet-18."""
    return _find_real("PADIM_WEIGHTS", SHARED / "weights/resnet18_imagenet1k_v1_layers1-3.pth")


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """A folder with MVTec AD's bottle and transistor."""
    return _find_real("PADIM_DATA", SHARED / "mvtec_ad")


def _find_real(variable: str, default: Path) -> Path:
    if variable in os.environ:
        path = Path(os.environ[variable])
        if not path.exists():
            pytest.fail(f"{variable} is {path}, which is not there")
        return path
    if not default.exists():
        pytest.skip(f"{variable} is not set and there is no {default}")
    return default
