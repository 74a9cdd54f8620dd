"""What must hold on a GPU. test_gpu.py runs this file in a process that sees the GPUs.

All other tests are about the CPU: conftest.py hides the GPUs from them.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.dataset import load_all
from datasets.preprocessing import Preprocessing
from tests.helpers import call, experiment_options, metrics, read_csv
from tests.samples import draw_images
from utils.backbone import draw_channels, load_network
from utils.detector import Detector
from utils.features import FeatureExtractor
from utils.memory_check import estimate_bytes
from utils.padim import PaDiM
from utils.settings import Experiment
from utils.system import memory
from utils.system.device import choose_device
from utils.view import View

CUDA = torch.device("cuda")
SIZE = (64, 48)


@pytest.fixture(scope="module")
def ends(drawn_tree, weights, tmp_path_factory):
    """A function that runs the experiment on a device; the folder of its results."""

    def run(device, *options):
        folder = tmp_path_factory.mktemp(device)
        words = experiment_options(drawn_tree, weights, folder)
        done = call(*words, "--device", device, *options)
        assert done.returncode == 0, done.stderr
        return folder / "resnet18"

    return run


@pytest.fixture(scope="module")
def both(ends):
    """The folders of a run on the CPU and of one on the GPU."""
    return ends("cpu"), ends("cuda")


def scores(folder):
    return np.array([float(row["score"]) for row in read_csv(folder / "scores.csv")])


@pytest.mark.parametrize("n", [20, 120], ids=["dual", "primal"])
def test_features_maps_and_held_out_maps_agree(weights, n):
    images = draw_images(n + 3, 3, *SIZE)
    maps, layers = [], []
    for name in ("cpu", "cuda"):
        network = load_network("resnet18", weights)
        channels = draw_channels("resnet18")
        extractor = FeatureExtractor(network, choose_device(name), channels=channels)
        model = PaDiM(extractor, View(Preprocessing(0, 0)), "noise")
        model.fit((part.numpy() for part in images[:n].split(20)), n)
        layers.append(extractor(images[n:]))
        maps.append((model.anomaly_maps(images[n:].numpy()), model.held_out_maps()))
    for on_cpu, on_gpu in zip(*layers, strict=True):
        # TF32 would be a hundred times as far away
        error = (on_gpu.cpu() - on_cpu).norm() / on_cpu.norm()
        assert error < 1e-5
    # leaving an image out magnifies rounding
    for on_cpu, on_gpu, tolerance in zip(*maps, (1e-3, 2e-2), strict=True):
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=tolerance, atol=1e-3)


def test_whole_command_gives_the_cpus_numbers(both):
    np.testing.assert_allclose(scores(both[1]), scores(both[0]), rtol=1e-4)
    for on_cpu, on_gpu in zip(*map(metrics, both), strict=True):
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            assert float(on_gpu[name]) == pytest.approx(float(on_cpu[name]), abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("tf32", 0.02), ("bf16", 0.2), ("fp16", 0.05)]
)
def test_lower_precision_changes_scores_a_little(ends, both, precision, tolerance):
    folder = ends("cuda", "--precision", precision)
    found, exact = scores(folder), scores(both[1])
    assert (found != exact).any()
    np.testing.assert_allclose(found, exact, rtol=tolerance)
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert settings["arguments"]["precision"] == precision
    assert settings["device"].startswith("cuda")


def test_no_more_memory_is_taken_than_was_estimated(both, drawn_tree):
    settings = json.loads((both[1] / "metrics.json").read_text())["settings"]
    asked = Experiment(data_path=drawn_tree, arch="resnet18", resize=72, crop=64, figures=1)
    estimates = (estimate_bytes(asked, *splits, CUDA) for splits in load_all(asked))
    needed = max(on_device for _, on_device in estimates)
    # the network's weights come on top; without an allowance they would be most of it here
    assert settings["peak_memory_bytes"]["cuda"] <= needed + memory.LIBRARY_BYTES


def test_memory_that_runs_out_ends_in_one_line(drawn_tree, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.memory_check.check_memory", lambda *_: None)
    words = experiment_options(drawn_tree, weights, tmp_path)
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        done = call(*words, "--device", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no more memory" in line


def test_predict_and_detector_give_the_cpus_scores(both, drawn_tree, weights, tmp_path):
    model = both[0] / "models/bolt.safetensors"
    images = drawn_tree / "bolt/test/crack"
    found = []
    for device in ("cpu", "cuda"):
        words = ["predict", "--model", model, "--weights", weights, "--device", device, images]
        done = call(*words, "--output", tmp_path / device)
        assert done.returncode == 0, done.stderr
        rows = read_csv(tmp_path / device / "predictions.csv")
        found.append([float(row["score"]) for row in rows])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    detector = Detector.load(model, weights, "cuda")
    score, _ = detector.score(Image.open(sorted(images.iterdir())[0]))
    assert score == pytest.approx(found[0][0], rel=1e-4)
