import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.preprocessing import Preprocessing
from tests.samples import draw_layer
from utils.model_file import (
    FORMAT,
    KEY,
    TrainedModel,
    class_bytes,
    load_model,
    model_bytes,
    save_model,
)
from utils.padim import PaDiM
from utils.thresholds import find_thresholds

CPU = torch.device("cpu")
# of layer1 two, of layer2 two, of layer3 two
CHANNELS = [3, 70, 200, 64, 400, 12]
SIZE = (32, 48)


def features(n, seed=0):
    """Chosen channels of ResNet-18's layers for n images of SIZE."""
    grids = [(8, 12), (4, 6), (2, 3)]
    return [draw_layer(n, 2, grid, seed) for grid in grids]


@pytest.fixture(scope="module", params=[4, 9], ids=["dual", "primal"])
def model(request):
    """Four coarser channels: up to four images are kept in dual form."""
    n = request.param
    padim = PaDiM().fit([features(n)], n)
    assert padim.gaussians.is_primal is (n == 9)
    return TrainedModel(
        class_name="bolt",
        arch="resnet18",
        channels=CHANNELS,
        neighbourhood=3,
        weights_sha256="ab" * 32,
        precision="bf16",
        preprocessing=Preprocessing(0, 0),
        image_size=SIZE,
        training_sha256="cd" * 32,
        padim=padim,
        thresholds=find_thresholds(padim.held_out_maps(SIZE), 0.01),
    )


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "größe 1" / "bolt.safetensors"
    save_model(path, model)
    return path


def rewrite(path, change):
    """Let change edit the file's tensors and settings."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    tensors, settings = load_file(path), json.loads(header["__metadata__"][KEY])
    change(tensors, settings)
    save_file(tensors, path, {KEY: json.dumps(settings)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "resnet99"}, "it needs resnet99, this version has resnet18, "),
        ({"precision": "int8"}, "it needs int8, this version has float32, "),
        ({"channels": [*CHANNELS[:-1], 9999]}, "its Gaussians do not fit its channels of resnet18"),
        ({"channels": CHANNELS[:-1]}, "its Gaussians do not fit its channels of resnet18"),
        ({"image_size": (32, 64)}, "its Gaussians do not fit its channels of resnet18 and its ima"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(model, tmp_path, change, reason):
    save_model(tmp_path / "bolt.safetensors", replace(model, **change))
    with pytest.raises(ValueError, match=f"no model of this suite .*{reason}"):
        load_model(tmp_path / "bolt.safetensors", CPU)


def test_loaded_model_is_the_one_saved(model, path):
    loaded = load_model(path, CPU)
    same = set(vars(model)) - {"padim", "thresholds"}
    assert len(same) == 9
    assert {k: getattr(loaded, k) for k in same} == {k: getattr(model, k) for k in same}
    assert loaded.padim.n_train == model.padim.n_train
    found, expected = vars(loaded.thresholds).copy(), vars(model.thresholds).copy()
    for name in ("good_scores", "pixel_scores"):
        np.testing.assert_array_equal(found.pop(name), expected.pop(name))
    assert found == expected
    maps = [one.padim.anomaly_maps(features(3, seed=1), SIZE) for one in (loaded, model)]
    assert torch.equal(*maps)


def test_half_precision_halves_the_file_and_keeps_the_maps(model, path, tmp_path):
    half = tmp_path / "half.safetensors"
    save_model(half, model, "float16")
    sizes = [model_bytes(model.padim, dtype) for dtype in ("float32", "float16")]
    assert sizes[0] == 2 * sizes[1]
    for file, size in ((path, sizes[0]), (half, sizes[1])):
        assert size < file.stat().st_size < size + 6000
    unseen = features(3, seed=1)
    maps = load_model(half, CPU).padim.anomaly_maps(unseen, SIZE)
    np.testing.assert_allclose(maps, model.padim.anomaly_maps(unseen, SIZE), rtol=1e-2)


def test_bytes_of_a_class_are_those_that_fitting_keeps(model):
    n = model.padim.n_train
    of_image = 2 * (8 * 12 + 4 * 6 + 2 * 3) * 4
    # in primal form the features of held-out images, here all, are kept as well
    held_out = n * of_image if model.padim.gaussians.is_primal else 0
    found = class_bytes("resnet18", CHANNELS, SIZE, n)
    assert found == model_bytes(model.padim) + held_out


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*x\.safetensors; --model takes"):
        load_model(tmp_path / "x.safetensors", CPU)


def assert_refused(path, reason):
    message = rf"bolt\.safetensors is damaged or no model of this suite \(.*{reason}.*\); make it"
    with pytest.raises(ValueError, match=message):
        load_model(path, CPU)


@pytest.mark.parametrize("kept", [0, 300, -100])
def test_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path, "Safetensor")


def test_file_of_another_tool_is_refused(path):
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    assert_refused(path, "KeyError")


def test_other_format_is_refused(path):
    rewrite(path, lambda tensors, settings: settings.update(format=FORMAT + 1))
    with pytest.raises(
        ValueError, match=f"has model format {FORMAT + 1}, this version reads {FORMAT}"
    ):
        load_model(path, CPU)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, settings: settings.update(n_train=5.0),
        lambda tensors, settings: settings["thresholds"].update(image=0.0),
        lambda tensors, settings: tensors["whitening"].view(-1)[1:2].add_(1e-3),
        lambda tensors, settings: tensors.update(loadings=tensors["loadings"][1:].clone()),
        lambda tensors, settings: tensors.update({"mean.7": torch.zeros(1)}),
    ],
)
def test_changed_content_is_refused(path, change):
    rewrite(path, change)
    assert_refused(path, "its content was changed")


def test_model_of_a_single_layer_is_the_one_saved(model, tmp_path):
    layer = features(5)[:1]
    padim = PaDiM().fit([layer], 5)
    save_model(tmp_path / "x.safetensors", replace(model, padim=padim, channels=[3, 12]))
    loaded = load_model(tmp_path / "x.safetensors", CPU).padim
    assert torch.equal(loaded.anomaly_maps(layer, SIZE), padim.anomaly_maps(layer, SIZE))


def test_unknown_dtype_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose from float32, float16"):
        save_model(tmp_path / "x.safetensors", model, "int8")


def test_failed_write_leaves_the_old_file(model, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match="full"):
        save_model(path, model)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
