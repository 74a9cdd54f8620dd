from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.preprocessing import Preprocessing
from tests.samples import draw_layer
from utils.backbone import Channels
from utils.gaussian import Gaussians, fit_gaussians
from utils.model_file import features_bytes, gaussians_bytes, model_bytes, read_model, write_model
from utils.thresholds import find_thresholds
from utils.view import View, enlarge

CPU = torch.device("cpu")
CHANNELS = Channels(((3, 12), (0, 6), (8, 208)), "ab")
SIZE = (32, 48)
NETWORK = {"arch": "resnet18", "precision": "bf16", "neighbourhood": 3}
NETWORK["channels"] = asdict(CHANNELS)
SETTINGS = {"class_name": "bolt", "window_size": SIZE, "image_kinds": []}
VIEW = View(Preprocessing(0, 0, exif=True, bit_depth=12, context=3))
THRESHOLDS = find_thresholds(np.random.default_rng(0).random((4, *SIZE), dtype=np.float32), 0.01)


def features(n, seed=0):
    """Chosen channels of ResNet-18's layers for n images of SIZE."""
    return [draw_layer(n, 2, grid, seed) for grid in CHANNELS.grids(SIZE)]


@pytest.fixture(scope="module", params=[4, 9], ids=["dual", "primal"])
def gaussians(request) -> Gaussians:
    """Four coarser channels: up to four images are kept in dual form."""
    found = fit_gaussians([features(request.param)], request.param)
    assert found.is_primal is (request.param == 9)
    return found


def write(folder, gaussians, dtype="float32", **network) -> Path:
    """Write a model with some other settings of the network."""
    path, settings = folder / "größe 1/bolt.safetensors", SETTINGS | {"network": NETWORK | network}
    write_model(path, settings, VIEW, gaussians, THRESHOLDS, dtype)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "resnet99"}, "it needs resnet99, this version has resnet18, "),
        ({"precision": "int8"}, "it needs int8, this version has float32, "),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(gaussians, tmp_path, change, reason):
    path = write(tmp_path, gaussians, **change)
    with pytest.raises(ValueError, match=f"damaged or no model of this suite .*{reason}"):
        read_model(path, CPU)


def test_what_is_read_is_what_was_written(gaussians, tmp_path):
    settings, view, found, thresholds = read_model(write(tmp_path, gaussians), CPU)
    assert settings["class_name"] == "bolt"
    assert view == VIEW
    assert settings["window_size"] == SIZE
    assert settings["network"] == NETWORK | {"channels": CHANNELS}
    assert vars(thresholds).keys() == vars(THRESHOLDS).keys()
    for name, value in vars(THRESHOLDS).items():
        np.testing.assert_array_equal(getattr(thresholds, name), value)
    assert found.grids == gaussians.grids
    unseen = features(3, seed=1)
    assert torch.equal(found.distances(unseen), gaussians.distances(unseen))


def test_bytes_are_counted_and_half_precision_halves_them(gaussians, tmp_path):
    n = 9 if gaussians.is_primal else 4
    whole = gaussians_bytes(CHANNELS, SIZE, n)
    assert features_bytes(CHANNELS, SIZE) == 2 * (8 * 12 + 4 * 6 + 2 * 3) * 4
    for dtype, size in (("float32", whole), ("float16", whole / 2)):
        path = write(tmp_path, gaussians, dtype)
        assert model_bytes(gaussians, dtype) == size < path.stat().st_size < size + 6000
    unseen = features(3, seed=1)
    read = (gaussians, read_model(path, CPU)[2])
    expected, found = (enlarge(one.distances(unseen), SIZE) for one in read)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_model_of_a_single_layer_is_the_one_saved(tmp_path):
    layer, channels = features(5)[:1], replace(CHANNELS, of_layers=((3, 12), (), ()))
    gaussians = fit_gaussians([layer], 5)
    found = read_model(write(tmp_path, gaussians, channels=asdict(channels)), CPU)[2]
    assert torch.equal(found.distances(layer), gaussians.distances(layer))


def test_unknown_dtype_is_refused(gaussians, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose from float32, float16"):
        write(tmp_path, gaussians, "int8")
