"""The export command, its file run in ONNX Runtime beside the suite."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from datasets.images import Preprocessing
from tests.helpers import good_images
from utils.backbone import IMAGENET_MEAN, IMAGENET_STD
from utils.commands import export
from utils.detector import Detector
from utils.padim import image_scores

SIZE = (64, 48)


@pytest.fixture(scope="module")
def weights(random_weights):
    return random_weights("resnet18")


def fit(weights, n, **settings):
    """A detector of six channels: up to about six images are kept in dual form."""
    images = good_images(n, SIZE)
    return Detector.fit(
        images, "resnet18", weights, Preprocessing(0, 0), n_features=6, name="bolt", **settings
    )


@pytest.fixture(scope="module")
def detectors(weights):
    return {"dual": fit(weights, 3, neighbourhood=3), "primal": fit(weights, 9)}


def command(detector, weights):
    """Save the detector in the current folder; a command that exports it."""
    detector.save("bolt.safetensors")
    words = ["export", "--model", "bolt.safetensors", "--weights", weights]
    return [*words, "--onnx", "größe 1/bolt.onnx"]


# the user sees no progress or advice of the exporter
@pytest.mark.filterwarnings("error::UserWarning", "error::FutureWarning")
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_file_gives_the_suites_scores_and_maps(form, detectors, weights, run, tmp_path):
    detector = detectors[form]
    assert detector.model.padim.gaussians.is_primal == (form == "primal")
    done = run(*command(detector, weights))
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
    prepared = [detector.prepare(image) for image in good_images(4, SIZE)]
    prepared[0][:, 20:40, 20:40] = 250
    for images in (np.stack(prepared), np.stack(prepared[:1])):
        normalised = (images.astype(np.float32) / 255 - mean) / std
        scores, maps = session.run(["scores", "anomaly_maps"], {"images": normalised})
        expected = detector.score_batch(images)
        assert maps.shape == (len(images), *SIZE)
        np.testing.assert_allclose(maps, expected, rtol=1e-3)
        np.testing.assert_allclose(scores, image_scores(expected), rtol=1e-3)


def test_graph_that_differs_is_refused_and_not_written(
    detectors, weights, refused, tmp_path, monkeypatch
):
    original = export.enlarging
    monkeypatch.setattr(export, "enlarging", lambda *sides: 1.005 * original(*sides))
    message = refused(*command(detectors["dual"], weights))
    assert "ONNX Runtime differs from the suite by 1.0e-02, relative" in message
    assert "at most 1e-03 is accepted, so größe 1/bolt.onnx was not written" in message
    assert list((tmp_path / "größe 1").iterdir()) == []


def test_nan_is_refused_and_the_old_file_stays(detectors, weights, refused, tmp_path, monkeypatch):
    path = tmp_path / "größe 1/bolt.onnx"
    path.parent.mkdir()
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "export", lambda module, size, path: path.write_bytes(b"new"))
    monkeypatch.setattr(export, "compare", lambda *_: np.nan)
    assert "differs from the suite by nan" in refused(*command(detectors["dual"], weights))
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", export.PACKAGES)
def test_missing_package_is_reported_with_its_command(name, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    message = refused("export", "--model", "bolt.safetensors", "--onnx", "bolt.onnx")
    assert "export needs more packages" in message
    assert message.endswith("; pip install onnx onnxscript onnxruntime\n")


def test_model_that_a_file_cannot_hold_is_refused(weights, detectors, monkeypatch):
    with pytest.raises(ValueError, match="--precision bf16, an ONNX file computes in float32; fit"):
        export.check_model(fit(weights, 3, precision="bf16").model)
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"has \d\.\d GB, an ONNX file holds .* fit it to fewer"):
        export.check_model(detectors["dual"].model)
