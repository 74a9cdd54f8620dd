"""The benchmark, cut short: not what it measures, but that it reports what it measured."""

import json
import re
import sys

import numpy as np
import pytest

from tests import naive_pipeline
from tests.benchmark import __main__ as benchmark
from tests.benchmark import alone, stream
from tests.helpers import SMALL, good_images, write_image
from utils.backbone import draw_channels
from utils.detector import Detector
from utils.features import load_extractor

AREAS = ("image ROCAUC", "pixel ROCAUC")


@pytest.fixture
def words(tree, random_weights, tmp_path):
    """Options of a short benchmark."""
    return [
        *("--data_path", str(tree), "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", str(random_weights("resnet18")), "--save_path", str(tmp_path / "out")),
        *("--repeats", "1", "--parts", "whole"),
    ]


def test_numbers_of_both_commands_are_read(run, words, tmp_path, monkeypatch, capsys):
    args = benchmark.make_parser().parse_args(words)
    save_path = ["--save_path", str(tmp_path / "run")]
    short = ["--resize", "72", "--crop", "64", "--figures", "none"]
    assert run(*benchmark.suite_command(args)[2:], *save_path, *short).returncode == 0
    suite = benchmark.read_metrics(tmp_path / "run")
    assert list(suite) == [*benchmark.STAGES, *AREAS]
    assert min(suite.values()) > 0
    monkeypatch.setattr(naive_pipeline, "naive_run", lambda *_: (0.5, 0.75))  # test_main.py runs it
    monkeypatch.setattr(sys, "argv", [*benchmark.module("naive_pipeline", args)[2:], *save_path])
    naive_pipeline.main()
    naive = json.loads(capsys.readouterr().out)
    assert naive == {"image ROCAUC": 0.5, "pixel ROCAUC": 0.75}


def test_seconds_of_commands_and_what_they_print_become_a_table(words, tmp_path, monkeypatch):
    suite = dict.fromkeys((*benchmark.STAGES, *AREAS), 0.5)
    naive = suite | {part: 2 for parts in benchmark.STAGES.values() for part in parts}

    def print_json(numbers):
        return [sys.executable, "-c", f"print('begin'); print({json.dumps(numbers)!r})"]

    monkeypatch.setattr(benchmark, "suite_command", lambda args: print_json(suite))
    monkeypatch.setattr(benchmark, "module", lambda name, args: print_json(naive))
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    benchmark.main()
    text = (tmp_path / "out" / "whole.md").read_text()
    assert "| fit, s | 0.50 | 8.00 | 16.0 |" in text
    assert re.search(r"whole command, s \| 0\.\d\d \| 0\.\d\d", text)
    assert "python -m tests.benchmark --data_path" in text
    with pytest.raises(SystemExit, match="ended with status 3"):
        benchmark.measure([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_network_gaussians_and_onnx_runtime_are_timed(random_weights, monkeypatch):
    monkeypatch.setattr(alone, "ROUNDS", 1)
    channels, seconds = draw_channels("resnet18", n_features=40), naive_pipeline.Stopwatch()
    extractor = load_extractor("resnet18", random_weights("resnet18"), "cpu", channels=channels)
    batches = list(np.random.default_rng(0).integers(0, 256, (2, 2, 3, 32, 32), dtype=np.uint8))
    alone.time_class(batches, batches, extractor, seconds)
    found = {**seconds, **alone.time_runtimes(batches[0], extractor)}
    names = ["network", "fit", "score", "per image, network", "per image, ONNX Runtime"]
    assert list(found) == names
    assert min(found.values()) > 0


def test_answers_of_the_stream_are_timed(random_weights, tmp_path, monkeypatch):
    # in place of predict: prints a header, then each path
    echo = "print('path', flush=True)\nwhile True: print(input(), flush=True)"
    monkeypatch.setattr(stream, "MAIN", [sys.executable, "-c", echo])
    weights = random_weights("resnet18")
    detector = Detector.fit(good_images(3), "resnet18", weights, SMALL)
    path = write_image(tmp_path / "a.png", good_images(1)[0])
    found = stream.time_stream(detector, weights, [path, path])
    assert list(found) == ["decoding, network and Gaussians", "answer"]
    assert 0 < min(found.values()) < max(found.values()) < 10
