import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.images import Preprocessing
from utils.model_file import FORMAT, KEY, TrainedModel, load_model, model_bytes, save_model
from utils.padim import PaDiM
from utils.thresholds import find_thresholds

CPU = torch.device("cpu")
CHANNELS = (3, 70, 200, 64, 400, 12)
SIZE = (32, 48)


def features(n, seed=0):
    """Layer outputs of ResNet-18 for n images of SIZE."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"layer1": (64, 8, 12), "layer2": (128, 4, 6), "layer3": (256, 2, 3)}
    return {name: torch.randn(n, *size, generator=generator) for name, size in sizes.items()}


def fit(n):
    padim = PaDiM(CHANNELS).fit([features(n)], n, held_out=range(n))
    thresholds = find_thresholds(padim.held_out_maps(SIZE), 0.01)
    return TrainedModel(
        *("bolt", "resnet18", "ab" * 32, "float32"),
        *(Preprocessing(0, 0), SIZE, "cd" * 32, padim, thresholds),
    )


@pytest.fixture(scope="module", params=[4, 9], ids=["dual", "primal"])
def model(request):
    """Six channels: up to six images are kept in dual form."""
    return fit(request.param)


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


def test_loaded_model_gives_the_same_maps(model, path):
    loaded = load_model(path, CPU)
    test = features(3, seed=1)
    expected = model.padim.anomaly_maps(test, SIZE)
    np.testing.assert_array_equal(loaded.padim.anomaly_maps(test, SIZE), expected)


def test_loaded_model_knows_what_was_saved(model, path):
    loaded = load_model(path, CPU)
    for name in ("class_name", "arch", "weights_sha256", "preprocessing", "image_size"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.training_sha256 == model.training_sha256
    assert (loaded.padim.n_train, loaded.padim.channels) == (model.padim.n_train, list(CHANNELS))
    assert loaded.thresholds.image == model.thresholds.image
    assert loaded.thresholds.pixel == model.thresholds.pixel
    np.testing.assert_array_equal(loaded.thresholds.good_scores, model.thresholds.good_scores)


def test_half_precision_halves_the_file_and_keeps_the_maps(model, path, tmp_path):
    half = tmp_path / "half.safetensors"
    save_model(half, model, "float16")
    sizes = [model_bytes(model.padim, dtype) for dtype in ("float32", "float16")]
    assert sizes[0] == 2 * sizes[1]
    for file, size in ((path, sizes[0]), (half, sizes[1])):
        assert size < file.stat().st_size < size + 4000
    test = features(3, seed=1)
    maps = load_model(half, CPU).padim.anomaly_maps(test, SIZE)
    np.testing.assert_allclose(maps, model.padim.anomaly_maps(test, SIZE), rtol=5e-3)


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.safetensors; --model takes"):
        load_model(tmp_path / "x.safetensors", CPU)


@pytest.mark.parametrize("kept", [0, 5, 300, -100])
def test_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"bolt\.safetensors is damaged or no model of this suite"):
        load_model(path, CPU)


def test_file_of_another_tool_is_refused(path):
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="no model of this suite"):
        load_model(path, CPU)


def test_pickle_is_refused_and_not_run(path):
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no model of this suite"):
        load_model(path, CPU)


def test_other_format_is_refused(path):
    rewrite(path, lambda tensors, settings: settings.update(format=FORMAT + 1))
    with pytest.raises(
        ValueError, match=f"has model format {FORMAT + 1}, this version reads {FORMAT}"
    ):
        load_model(path, CPU)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(path, value):
    rewrite(path, lambda tensors, settings: tensors["whitening"].view(-1)[5:6].fill_(value))
    with pytest.raises(ValueError, match="whitening is not finite"):
        load_model(path, CPU)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "resnet19"}, "resnet19"),
        ({"channels": [1, 2]}, "instead of|grids are"),
        ({"channels": [1, 2, 3, 4, 5, 4000]}, "channels that the network does not have"),
        ({"n_train": 5, "channels": [1]}, "instead of|grids are"),
        ({"grids": [[8, 11]]}, "grids are"),
        ({"preprocessing": {"zoom": 3}}, "zoom"),
        ({"thresholds": {}}, "missing"),
        ({"class_name": 7}, "class_name is 7"),
        ({"weights_sha256": None}, "weights_sha256 is None"),
        ({"n_train": "5"}, "n_train is '5'"),
        ({"eps": 1e-9}, "eps out of range"),
    ],
)
def test_settings_that_do_not_fit_are_refused(path, change, reason):
    rewrite(path, lambda tensors, settings: settings.update(change))
    with pytest.raises(ValueError, match=rf"is damaged or no model.*({reason})"):
        load_model(path, CPU)


@pytest.mark.parametrize("value", [30.0, -2e7, 3e38])
def test_values_with_which_distances_would_overflow_are_refused(path, value):
    name = "whitening" if value == 30 else "mean"

    def change(tensors, settings):
        next(t for key, t in tensors.items() if key.startswith(name)).view(-1)[5] = value

    rewrite(path, change)
    # ||L^-1|| is at most 1 / sqrt(eps)
    with pytest.raises(ValueError, match=rf"{name}(\.0)? is beyond (20|1e\+06)"):
        load_model(path, CPU)


@pytest.mark.parametrize("scores", [[], [2.0, 1.0]])
def test_good_scores_out_of_order_are_refused(path, scores):
    rewrite(path, lambda tensors, settings: tensors.update(good_scores=torch.tensor(scores)))
    with pytest.raises(ValueError, match="good_scores are not in ascending order"):
        load_model(path, CPU)


def test_unknown_dtype_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose from float32, float16"):
        save_model(tmp_path / "x.safetensors", model, "int8")


def test_failed_write_leaves_the_old_file(model, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_model(path, model)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
