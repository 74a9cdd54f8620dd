"""The benchmark, cut short: not what it measures, but that it reports what it measured."""

import re
import sys

import numpy as np
import pytest
import torch

from tests.benchmark import __main__ as benchmark
from tests.benchmark import alone, stream
from tests.helpers import SMALL, good_images, write_image
from utils.backbone import draw_channels, load_network
from utils.detector import Detector
from utils.features import FeatureExtractor


@pytest.fixture
def words(tree, random_weights, tmp_path):
    """Options of a short benchmark."""
    return [
        *("--data_path", str(tree), "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", str(random_weights("resnet18")), "--save_path", str(tmp_path / "out")),
        *("--repeats", "1", "--parts", "whole"),
    ]


def test_whole_commands_give_the_same_numbers_and_are_timed(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    benchmark.main()
    text = (tmp_path / "out" / "whole.md").read_text()
    assert text in capsys.readouterr().out
    suite, naive = map(float, re.search(r"whole command, s \| (\S+) \| (\S+)", text).groups())
    assert min(suite, naive) > 0.5
    suite, naive = re.search(r"pixel ROCAUC \| (\S+) \| (\S+)", text).groups()
    assert float(suite) == pytest.approx(float(naive), abs=2e-6)
    assert "python -m tests.benchmark --data_path" in text


def test_failed_command_ends_the_benchmark():
    with pytest.raises(SystemExit, match="ended with status 3"):
        benchmark.measure([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_network_gaussians_and_onnx_runtime_are_timed(random_weights, monkeypatch):
    monkeypatch.setattr(alone, "ROUNDS", 1)
    network = load_network("resnet18", random_weights("resnet18"))
    extractor = FeatureExtractor(
        network, torch.device("cpu"), channels=draw_channels("resnet18", n_features=40)
    )
    batches = list(np.random.default_rng(0).integers(0, 256, (2, 2, 3, 32, 32), dtype=np.uint8))
    found = alone.time_class(batches, batches, extractor)
    found |= alone.time_runtimes(batches[0], extractor)
    names = ["network", "fit", "score", "per image, network", "per image, ONNX Runtime"]
    assert list(found) == names
    assert min(found.values()) > 0


def test_times_of_different_outputs_are_not_compared():
    with pytest.raises(SystemExit, match="the outputs of ONNX Runtime differ by 5"):
        alone.check_equal((torch.ones(3),), [np.full(3, 2.0)])


def test_answers_of_the_stream_are_timed(random_weights, tmp_path):
    weights = random_weights("resnet18")
    detector = Detector.fit(good_images(3), "resnet18", weights, SMALL)
    path = write_image(tmp_path / "a.png", good_images(1)[0])
    found = stream.time_stream(detector, weights, [path, path])
    assert list(found) == ["decoding, network and Gaussians", "answer"]
    assert 0 < min(found.values()) < max(found.values()) < 10


def test_noise_has_the_number_of_images_that_was_asked_for(tmp_path):
    benchmark.write_noise(tmp_path, 40)
    paths = sorted((tmp_path / "noise").rglob("*.png"))
    assert len(paths) == 40 + 3 * benchmark.N_TEST
