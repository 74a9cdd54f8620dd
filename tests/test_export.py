"""The export command, its file run in ONNX Runtime beside the suite."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from datasets.preprocessing import Preprocessing
from tests.helpers import defective, good_images, turned_parts, write_image
from utils.alignment import Poses
from utils.backbone import IMAGENET_MEAN, IMAGENET_STD
from utils.commands import export
from utils.detector import Detector
from utils.thresholds import score_maps

README = Path(__file__).resolve().parent.parent / "README.md"
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


def readme_programs(word):
    """The README's Python programs that have a word."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return [block for block in blocks if word in block]


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
    assert detector.model.gaussians.is_primal == (form == "primal")
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
        np.testing.assert_allclose(scores, score_maps(expected), rtol=1e-3)


@pytest.mark.parametrize("align", ["off", "on"])
def test_a_graph_obeys_the_region_of_its_model(align, weights, run):
    region = np.zeros(SIZE, dtype=bool)
    region[10:50, 20:60] = True
    detector = fit(weights, 9, region=region, image_score="top", align=align)
    done = run(*command(detector, weights))  # which compares scores and maps
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession("größe 1/bolt.onnx")
    images = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    _, maps, *poses = session.run(None, {"images": images})
    assert (maps[:, ~region].max() == 0) == (align == "off")
    assert len(poses) == (align == "on")
    share = (maps > 0).mean()
    assert share == pytest.approx(region.mean(), rel=0.2)


def test_graph_that_differs_is_refused_and_not_written(
    detectors, weights, refused, tmp_path, monkeypatch
):
    find = export.ExportedModel.find_distances
    wrong = lambda *given: 1.01 * find(*given)  # noqa: E731
    monkeypatch.setattr(export.ExportedModel, "find_distances", wrong)
    message = refused(*command(detectors["dual"], weights))
    found = re.search(r"ONNX Runtime differs from the suite by (\S+), relative", message)
    assert float(found[1]) == pytest.approx(1.005**2 - 1, rel=0.1)
    assert "at most 1e-03 is accepted, so größe 1/bolt.onnx was not written" in message
    assert list((tmp_path / "größe 1").iterdir()) == []


def test_nan_is_refused_and_the_old_file_stays(detectors, weights, refused, tmp_path, monkeypatch):
    path = tmp_path / "größe 1/bolt.onnx"
    path.parent.mkdir()
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "export", lambda model, path: path.write_bytes(b"new"))
    monkeypatch.setattr(export, "compare", lambda *_: np.nan)
    assert "differs from the suite by nan" in refused(*command(detectors["dual"], weights))
    assert path.read_bytes() == b"old"


@pytest.fixture(scope="module")
def file(detectors, tmp_path_factory):
    """The ONNX file of the primal detector."""
    path = tmp_path_factory.mktemp("onnx") / "bolt.onnx"
    export.export(detectors["primal"].model, path)
    return path


def test_metadata_describe_the_model(file, detectors):
    model = detectors["primal"].model
    texts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    found = {name: json.loads(text) for name, text in texts.items()}
    thresholds = model.thresholds
    numbers = {name: found.pop(name) for name in ("mean", "std", "good_scores")}
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
    }
    assert numbers["mean"] == pytest.approx(IMAGENET_MEAN)
    assert numbers["std"] == pytest.approx(IMAGENET_STD)
    assert numbers["good_scores"] == thresholds.good_scores.tolist()


def test_layers_in_the_metadata_are_those_that_channels_were_drawn_from(weights):
    for layers in (["layer2"], ["layer1", "layer3"]):
        assert export.make_metadata(fit(weights, 3, layers=layers).model)["layers"] == layers


def test_openvino_gives_the_same_numbers(file, detectors):
    openvino = pytest.importorskip("openvino")
    images = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(file)
    found = compiled(images)
    for name, expected in zip(
        ("scores", "anomaly_maps"), session.run(None, {"images": images}), strict=True
    ):
        np.testing.assert_allclose(found[name], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("preprocessing", "size", "settings"),
    [
        (Preprocessing(96, 80), (120, 97), {}),
        (Preprocessing(72, 0), (96, 121), {"image_score": "top"}),
        # the window is 1 pixel off the middle, and cut at the left and right
        (Preprocessing(0, 64, context=9), (97, 79), {"image_score": "top", "shrinkage": 0.1}),
    ],
)
def test_the_readmes_program_decides_as_predict_does(
    preprocessing, size, settings, weights, run, tmp_path, monkeypatch, capsys
):
    (code,) = readme_programs("onnxruntime")
    assert len(code.splitlines()) <= 28
    monkeypatch.chdir(tmp_path)
    settings |= {"n_features": 6, "name": "bolt"}
    detector = Detector.fit(good_images(4, size), "resnet18", weights, preprocessing, **settings)
    detector.save("bolt.safetensors")
    model = ["--model", "bolt.safetensors", "--weights", weights]
    assert run("export", *model, "--onnx", "bottle.onnx").returncode == 0
    for pixels in (good_images(1, size)[0], defective(size)):
        write_image(Path("new_images/000.png"), pixels)
        exec(compile(code, "README.md", "exec"), {})
        (verdict, found, *region) = capsys.readouterr().out.split()
        score, anomaly_map = detector.score(pixels)
        assert verdict == ("good", "anomalous")[score >= detector.model.thresholds.image]
        assert float(found) == pytest.approx(score, rel=1e-3)
        assert bool(region) == bool(detector.find_regions(anomaly_map, size[::-1]))
    assert verdict == "anomalous"
    assert region[0] == f"{(anomaly_map >= detector.model.thresholds.pixel).mean():.1%}"


def test_graph_of_an_aligned_model_finds_the_part(weights, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"n_features": 6, "align": "on", "name": "bolt"}
    preprocessing = Preprocessing(0, 64)
    detector = Detector.fit(turned_parts(8), "resnet18", weights, preprocessing, **settings)
    done = run(*command(detector, weights))
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession("größe 1/bolt.onnx")
    images = np.stack([detector.prepare(image) for image in turned_parts(3, seed=1)])
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (images.astype(np.float32) / 255 - mean) / std
    scores, maps, poses = session.run(None, {"images": normalised})
    found = detector.model.view.alignment.find_poses(torch.from_numpy(images))
    assert np.ptp(poses[:, 0]) > 20
    np.testing.assert_allclose(poses, np.stack(found, axis=1), atol=0.1)
    assert maps.shape == (3, 64, 64)
    expected, _ = export.maps_at(detector.model, images, Poses(*torch.tensor(poses).mT))
    np.testing.assert_allclose(maps, expected, atol=export.ALIGNED_TOLERANCE * expected.max())
    np.testing.assert_allclose(scores, score_maps(expected), rtol=export.ALIGNED_TOLERANCE)


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
