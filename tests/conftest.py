"""Fixtures of several test files: a synthetic data set, random weights, real weights and images.

Tests on real weights and images skip without them. PADIM_WEIGHTS names a ResNet-18 state dict and
PADIM_DATA a folder of MVTec AD's classes; by default both are looked for in shared/ beside the
repository.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import main
from tests.helpers import (  # some tests import build_network and write_image from here
    Done,
    build_network,  # noqa: F401
    experiment_options,
    write_image,
    write_random_weights,
)

# The tests are about the CPU, also in the processes that they start. gpu_cases.py is about GPUs.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
if "PADIM_GPU_CASES" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# the same examples in every run, and no limit to the time that one takes on a busy machine
hypothesis.settings.register_profile("padim", derandomize=True, deadline=None)
hypothesis.settings.load_profile("padim")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
LONGEST = ("test_reference", "test_study", "test_processes", "test_run", "test_main", "test_export")
TREE_SIZES = {"bolt": (48, 48), "weave": (64, 40)}  # width and height


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: at the end, one of two processes would wait for them."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """Compute with one thread, or PADIM_TEST_THREADS: on a busy machine two wait for each other."""
    n_threads = os.environ.get("PADIM_TEST_THREADS", "1")
    os.environ["OMP_NUM_THREADS"] = n_threads  # in the processes that tests start
    torch.set_num_threads(int(n_threads))
    threadpool_limits(int(n_threads))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in tmp_path, in this process, as a new one imports for seconds."""
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
    """Run a command that must fail with status 2; return its only line on stderr."""

    def refused(*arguments):
        done = run(*arguments)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    return refused


@pytest.fixture
def experiment(tree, weights, tmp_path):
    """Options of a small run on tree; its results go to results_folder."""
    return experiment_options(tree, weights, tmp_path / "out")


@pytest.fixture
def results_folder(tmp_path):
    """The folder where the command of experiment writes."""
    return tmp_path / "out" / "resnet18"


@pytest.fixture
def tree(tmp_path: Path, drawn_tree: Path) -> Path:
    """A folder in MVTec AD's layout: bolt is RGB and square, weave is grey and wide."""
    return shutil.copytree(drawn_tree, tmp_path / "data")


@pytest.fixture(scope="session")
def drawn_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that tree copies; no test changes it."""
    # its copies have the same name, which the report shows
    folder = tmp_path_factory.mktemp("tree") / "data"
    rng = np.random.default_rng(0)
    for class_name in TREE_SIZES:
        names = [*(f"train/good/{i:03}" for i in range(5)), "test/good/000", "test/good/001"]
        for name in names:
            write_image(folder / class_name / f"{name}.png", _texture(class_name, rng))
        for defect_type, colour in (("crack", 250), ("stain", 5)):
            for i in range(3):
                pixels = _texture(class_name, rng)
                mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
                top, left = rng.integers(8, 20, 2)
                mask[top : top + 12, left : left + 12] = 255
                pixels[mask > 0] = colour
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


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that writes random weights of an architecture and returns their path."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def write(arch: str) -> Path:
        path = folder / f"{arch}.pth"
        write_random_weights(arch, path)
        return path

    return write


@pytest.fixture(scope="session")
def weights(random_weights: Callable[[str], Path]) -> Path:
    """Random weights of ResNet-18."""
    return random_weights("resnet18")


@pytest.fixture(scope="session")
def reference_weights() -> Path:
    """ImageNet weights of ResNet-18."""
    return _find_real("PADIM_WEIGHTS", SHARED / "weights/resnet18_imagenet1k_v1_layers1-3.pth")


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """A folder of MVTec AD's classes."""
    return _find_real("PADIM_DATA", SHARED / "mvtec_ad")


def _find_real(variable: str, default: Path) -> Path:
    if variable in os.environ:
        path = Path(os.environ[variable])
        if not path.exists():
            pytest.fail(f"{variable} is {path}, which does not exist")
        return path
    if not default.exists():
        pytest.skip(f"{variable} is not set and {default} does not exist")
    return default
