"""The export command, its file run in ONNX Runtime beside the suite."""

import json
import os
import re
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from datasets.preprocessing import Preprocessing
from tests.helpers import call, defective, good_images, turned_parts, write_image
from utils import alignment
from utils.alignment import Poses
from utils.backbone import IMAGENET_MEAN, IMAGENET_STD
from utils.commands import export
from utils.detector import Detector

README = Path(__file__).resolve().parent.parent / "utils" / "README.md"
SIZE = (64, 48)


def fit(weights, n, **settings):
    """A detector of six channels: up to about six images are kept in dual form."""
    settings |= {"n_features": 6, "name": "bolt"}
    return Detector.fit(good_images(n, SIZE), "resnet18", weights, Preprocessing(0, 0), **settings)


@pytest.fixture(scope="module")
def detectors(weights):
    region = np.zeros(SIZE, dtype=bool)
    region[10:50, 20:60] = True
    settings = {"layers": ["layer2", "layer3"], "neighbourhood": 3, "image_score": "top"}
    dual = fit(weights, 3, region=region, **settings)
    return {"dual": dual, "primal": fit(weights, 9)}


def export_with_command(detector, weights, folder):
    """How the command ended, and the file."""
    model, path = folder / "bolt.safetensors", folder / "größe 1/bolt.onnx"
    detector.save(model)
    return call("export", "--model", model, "--weights", weights, "--onnx", path), path


@pytest.fixture(scope="module")
def exported(detectors, weights, tmp_path_factory):
    """By form, how the command ended, and the file."""
    return {
        form: export_with_command(detector, weights, tmp_path_factory.mktemp(form))
        for form, detector in detectors.items()
    }


def normalise(images):
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.astype(np.float32) / 255 - mean) / std


# the user sees no progress or advice of the exporter
@pytest.mark.filterwarnings("error::UserWarning", "error::FutureWarning")
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_file_gives_the_suites_scores_and_maps(form, detectors, exported):
    detector, (done, path) = detectors[form], exported[form]
    assert detector.model.gaussians.is_primal == (form == "primal")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset 20"
    assert second.startswith("largest relative difference from the suite: ")
    assert [p.name for p in path.parent.iterdir()] == ["bolt.onnx"]

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path.read_bytes())
    prepared = [detector.prepare(image) for image in good_images(4, SIZE)]
    prepared[0][:, 20:40, 20:40] = 250
    for images in (np.stack(prepared), np.stack(prepared[:1])):
        scores, maps = session.run(["scores", "anomaly_maps"], {"images": normalise(images)})
        expected = detector.score_batch(images)
        assert maps.shape == (len(images), *SIZE)
        np.testing.assert_allclose(maps, expected, rtol=1e-3)
        np.testing.assert_allclose(scores, detector.model.image_scores(expected), rtol=1e-3)
    if form == "dual":  # it has a region
        np.testing.assert_array_equal(maps[0] > 0, detector.model.view.region)


def test_what_a_graph_computes_otherwise_is_found(detectors, exported):
    _, path = exported["primal"]
    model = copy(detectors["primal"].model)
    assert export.compare(path, model) < export.TOLERANCE
    whitening = 1.01 * model.gaussians.whitening  # that of the coarser layers
    model.gaussians = replace(model.gaussians, whitening=whitening)
    assert export.TOLERANCE < export.compare(path, model) < 0.02


@pytest.mark.parametrize("difference", [np.nan, 0.00123])
def test_a_graph_that_differs_is_refused_and_the_old_file_stays(
    difference, detectors, weights, tmp_path, monkeypatch
):
    path = tmp_path / "größe 1/bolt.onnx"
    path.parent.mkdir()
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "export", lambda model, path: path.write_bytes(b"new"))
    monkeypatch.setattr(export, "compare", lambda *_: difference)
    done, _ = export_with_command(detectors["dual"], weights, tmp_path)
    assert done.returncode == 2
    assert f"ONNX Runtime differs from the suite by {difference:.1e}, relative; at" in done.stderr
    assert f"at most 1e-03 is accepted, so {path} was not written; try other" in done.stderr
    assert path.read_bytes() == b"old"


def test_metadata_describe_the_model(exported, detectors):
    model = detectors["primal"].model
    texts = onnxruntime.InferenceSession(exported["primal"][1]).get_modelmeta().custom_metadata_map
    found = {name: json.loads(text) for name, text in texts.items()}
    thresholds = model.thresholds
    assert found == {
        **{"format": 2, "class_name": "bolt", "arch": "resnet18"},
        **{"weights_sha256": model.extractor.weights_sha256, "neighbourhood": 1},
        "layers": model.extractor.channels.layers,
        **{"exif": False, "bit_depth": 16, "resize": 0, "crop": 0, "context": 0},
        **{"image_size": list(SIZE), "window_size": list(SIZE), "crop_place": [0, 0]},
        **{"interpolation": "lanczos", "eps": 0.01, "shrinkage": None, "alignment": None},
        "region": None,
        **{"image_score": "max", "image_threshold": thresholds.image},
        **{"pixel_threshold": thresholds.pixel, "peak_threshold": thresholds.image},
        **{"target_fpr": 0.01, "image_fpr": 0.1, "pixel_fpr": 0.01, "n_good_images": 9},
        **{"mean": pytest.approx(IMAGENET_MEAN), "std": pytest.approx(IMAGENET_STD)},
        "good_scores": thresholds.good_scores.tolist(),
    }
    assert export.make_metadata(detectors["dual"].model)["layers"] == ["layer2", "layer3"]


@pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41",
    reason="OpenVINO's own oneDNN ends in 'bad combination' without AVX",
)
def test_openvino_gives_the_same_numbers(exported):
    openvino = pytest.importorskip("openvino")
    _, file = exported["primal"]
    images = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images)
    outputs = onnxruntime.InferenceSession(file).run(None, {"images": images})
    for name, expected in zip(("scores", "anomaly_maps"), outputs, strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-3)


def run_the_readmes_program(pixels, capsys):
    """The words that it prints about an image; bottle.onnx is in the current folder."""
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [program for program in programs if "onnxruntime" in program]
    assert len(code.splitlines()) <= 28
    write_image(Path("new_images/000.png"), pixels)
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out.split()


def test_the_readmes_program_decides_as_predict_does(weights, tmp_path, monkeypatch, capsys):
    # the window is 1 pixel off the middle, and cut at the left and right
    preprocessing, size = Preprocessing(81, 64, context=9), (97, 79)
    settings = {"image_score": "top", "shrinkage": 0.1, "n_features": 6, "name": "bolt"}
    monkeypatch.chdir(tmp_path)
    detector = Detector.fit(good_images(4, size), "resnet18", weights, preprocessing, **settings)
    done, path = export_with_command(detector, weights, tmp_path)
    assert done.returncode == 0, done.stderr
    path.rename("bottle.onnx")
    for pixels in (good_images(1, size)[0], defective(size)):
        verdict, found, *region = run_the_readmes_program(pixels, capsys)
        score, anomaly_map = detector.score(pixels)
        assert verdict == ("good", "anomalous")[bool(score >= detector.model.thresholds.image)]
        assert float(found) == pytest.approx(score, rel=1e-3)
        assert bool(region) == bool(detector.find_regions(anomaly_map, size[::-1]))
    assert verdict == "anomalous"
    assert region[0] == f"{(anomaly_map >= detector.model.thresholds.pixel).mean():.1%}"


def test_graph_of_an_aligned_model_finds_the_part_and_obeys_the_region(
    weights, tmp_path, monkeypatch, capsys
):
    # a graph holds every step of the search: with all of them its export takes minutes
    monkeypatch.setattr(alignment, "REFINED_SIDES", (64, 128))
    monkeypatch.setattr(alignment, "REFINED_STEPS", 1)
    region = np.zeros((80, 80), dtype=bool)  # of the template
    region[15:65, 20:60] = True
    settings = {"n_features": 6, "align": "on", "region": region, "image_score": "top"}
    parts = turned_parts(8)
    detector = Detector.fit(parts, "resnet18", weights, Preprocessing(0, 64), **settings)
    done, path = export_with_command(detector, weights, tmp_path)  # which compares scores and maps
    assert done.returncode == 0, done.stderr
    others = turned_parts(3, seed=1)
    images = np.stack([detector.prepare(image) for image in others])
    session = onnxruntime.InferenceSession(path)
    scores, maps, poses = session.run(None, {"images": normalise(images)})
    found = detector.model.view.alignment.find_poses(torch.from_numpy(images))
    assert np.ptp(poses[:, 0]) > 20
    np.testing.assert_allclose(poses, np.stack(found, axis=1), atol=0.1)
    assert maps.shape == (3, 64, 64)
    assert 0.2 < (maps > 0).mean() < 0.7
    expected, _ = export.maps_at(detector.model, images, Poses(*torch.tensor(poses).mT))
    shown = (maps > 0) & (expected > 0)
    np.testing.assert_allclose(maps[shown], expected[shown], atol=export.TOLERANCE * expected.max())
    np.testing.assert_allclose(scores, detector.model.image_scores(expected), rtol=export.TOLERANCE)
    path.rename(tmp_path / "bottle.onnx")
    monkeypatch.chdir(tmp_path)
    for image, score in zip(others, scores, strict=True):
        verdict, found, *_ = run_the_readmes_program(image, capsys)
        assert verdict == ("good", "anomalous")[bool(score >= detector.model.thresholds.image)]
        assert float(found) == pytest.approx(score, rel=export.TOLERANCE)


def test_missing_package_is_reported_with_its_command(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused("export", "--model", "bolt.safetensors", "--onnx", "bolt.onnx")
    assert "export needs more packages" in message
    assert message.endswith("; pip install onnx onnxscript onnxruntime\n")


def test_model_that_a_file_cannot_hold_is_refused(weights, detectors, monkeypatch):
    with pytest.raises(ValueError, match="--precision bf16, an ONNX file computes in float32; fit"):
        export.check_model(fit(weights, 3, precision="bf16").model)
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"has \d\.\d GB, an ONNX file holds .* fit it to fewer"):
        export.check_model(detectors["dual"].model)
