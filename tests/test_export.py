"""The export command, its file run in ONNX Runtime beside the suite."""

import re
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from datasets.images import Preprocessing
from utils.backbone import IMAGENET_MEAN, IMAGENET_STD, load_network
from utils.commands import export
from utils.features import FeatureExtractor
from utils.model_file import TrainedModel, save_model
from utils.padim import PaDiM, image_scores
from utils.thresholds import find_thresholds

CPU = torch.device("cpu")
SIZE = (64, 48)
CHANNELS = (3, 70, 200, 64, 400, 12)


def noise(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, *SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def extractor(random_weights):
    return FeatureExtractor(load_network("resnet18", random_weights("resnet18")), CPU)


@pytest.fixture(scope="module", params=[5, 9], ids=["dual", "primal"])
def model(request, random_weights, extractor):
    """Six channels: up to six images are kept in dual form."""
    n = request.param
    padim = PaDiM(CHANNELS).fit([extractor(noise(n, seed=1))], n, held_out=range(n))
    thresholds = find_thresholds(padim.held_out_maps(SIZE), 0.01)
    sha256 = load_network("resnet18", random_weights("resnet18")).weights_sha256
    return TrainedModel(
        *("bolt", "resnet18", sha256, "float32"),
        *(Preprocessing(0, 0), SIZE, "cd" * 32, padim, thresholds),
    )


@pytest.fixture
def words(model, tmp_path, random_weights):
    """A command that succeeds."""
    save_model(tmp_path / "bolt.safetensors", model)
    weights = random_weights("resnet18")
    return ["export", "--model", "bolt.safetensors", "--weights", weights, "--onnx", "bolt.onnx"]


# the progress and advice of the exporter stay away from the user
@pytest.mark.filterwarnings("error::UserWarning", "error::FutureWarning")
def test_file_gives_the_suites_scores_and_maps(words, model, extractor, run, tmp_path):
    done = run(*words[:-1], "größe 1/bolt.onnx")
    path = tmp_path / "größe 1/bolt.onnx"
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"größe 1/bolt.onnx: {path.stat().st_size / 1e6:.1f} MB, opset 20"
    assert second.startswith("largest relative difference from the suite: ")
    assert [p.name for p in path.parent.iterdir()] == ["bolt.onnx"]

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path.read_bytes())
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for batch_size in (1, 4):
        images = noise(batch_size, seed=2)
        normalised = (images.astype(np.float32) / 255 - mean) / std
        scores, maps = session.run(["scores", "anomaly_maps"], {"images": normalised})
        expected = model.padim.anomaly_maps(extractor(images), SIZE).numpy()
        assert maps.shape == (batch_size, *SIZE)
        np.testing.assert_allclose(maps, expected, rtol=1e-3)
        np.testing.assert_allclose(scores, image_scores(expected), rtol=1e-3)


def test_graph_that_differs_is_refused_and_not_written(words, refused, tmp_path, monkeypatch):
    original = export.enlarging
    monkeypatch.setattr(export, "enlarging", lambda *sides: 1.005 * original(*sides))
    before = sorted(tmp_path.iterdir())
    message = refused(*words)
    assert "ONNX Runtime differs from the suite by 1.0e-02, relative" in message
    assert "at most 1e-03 is accepted, so bolt.onnx was not written" in message
    assert sorted(tmp_path.iterdir()) == before


def test_values_that_are_no_numbers_are_refused(words, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", lambda module, size, path: path.write_bytes(b"graph"))
    monkeypatch.setattr(export, "compare", lambda *_: np.nan)
    assert "differs from the suite by nan" in refused(*words)
    assert not (tmp_path / "bolt.onnx").exists()


def test_failed_export_leaves_the_old_file(words, refused, tmp_path, monkeypatch):
    (tmp_path / "bolt.onnx").write_bytes(b"old")
    monkeypatch.setattr(export, "export", lambda module, size, path: path.write_bytes(b"graph"))
    monkeypatch.setattr(export, "compare", lambda *_: 0.5)
    refused(*words)
    assert (tmp_path / "bolt.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_reported_with_its_command(name, words, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    message = refused(*words)
    assert "export needs more packages" in message
    assert message.endswith("; pip install onnx onnxscript onnxruntime\n")


def test_model_too_large_for_a_file_is_refused(words, refused, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    assert re.search(r"has \d\.\d GB, an ONNX file holds .* fit it to fewer", refused(*words))
