from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from datasets.preprocessing import Preprocessing
from tests.samples import draw_layer
from utils.backbone import Channels
from utils.gaussian import Gaussians, fit_gaussians
from utils.maps import enlarge
from utils.model_file import features_bytes, gaussians_bytes, model_bytes, read_model, write_model
from utils.thresholds import find_thresholds
from utils.view import View

CPU = torch.device("cpu")
CHANNELS = Channels(((3, 12), (0, 6), (8, 208)), "ab")
SIZE = (32, 48)
NETWORK = {
    **{"arch": "resnet18", "precision": "bf16", "neighbourhood": 3},
    "channels": asdict(CHANNELS),
}
SETTINGS = {
    "class_name": "bolt",
    "network": NETWORK,
    **{"image_size": SIZE, "window_size": SIZE, "image_kinds": []},
}
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


@pytest.fixture
def path(gaussians, tmp_path):
    path = tmp_path / "größe 1" / "bolt.safetensors"
    write_model(path, SETTINGS, VIEW, gaussians, THRESHOLDS)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "resnet99"}, "it needs resnet99, this version has resnet18, "),
        ({"precision": "int8"}, "it needs int8, this version has float32, "),
        (
            {"channels": asdict(Channels(((3, 12), (0,), (8, 208)), "ab"))},
            "its Gaussians do not fit its channels and its image size",
        ),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(gaussians, tmp_path, change, reason):
    settings = SETTINGS | {"network": NETWORK | change}
    write_model(tmp_path / "bolt.safetensors", settings, VIEW, gaussians, THRESHOLDS)
    with pytest.raises(ValueError, match=f"damaged or no model of this suite .*{reason}"):
        read_model(tmp_path / "bolt.safetensors", CPU)


def test_what_is_read_is_what_was_written(gaussians, path):
    settings, view, found, thresholds = read_model(path, CPU)
    assert settings["class_name"] == "bolt"
    assert view == VIEW
    assert settings["image_size"] == settings["window_size"] == SIZE
    assert settings["network"] == NETWORK | {"channels": CHANNELS}
    assert vars(thresholds).keys() == vars(THRESHOLDS).keys()
    for name, value in vars(THRESHOLDS).items():
        np.testing.assert_array_equal(getattr(thresholds, name), value)
    assert found.grids == gaussians.grids
    unseen = features(3, seed=1)
    assert torch.equal(found.distances(unseen), gaussians.distances(unseen))


def test_bytes_are_counted_and_half_precision_halves_them(gaussians, path, tmp_path):
    half = tmp_path / "half.safetensors"
    write_model(half, SETTINGS, VIEW, gaussians, THRESHOLDS, "float16")
    sizes = [model_bytes(gaussians, dtype) for dtype in ("float32", "float16")]
    assert sizes[0] == 2 * sizes[1]
    n = 9 if gaussians.is_primal else 4
    assert gaussians_bytes(CHANNELS, SIZE, n) == sizes[0]
    assert features_bytes(CHANNELS, SIZE) == 2 * (8 * 12 + 4 * 6 + 2 * 3) * 4
    for file, size in ((path, sizes[0]), (half, sizes[1])):
        assert size < file.stat().st_size < size + 6000
    unseen = features(3, seed=1)
    read = (gaussians, read_model(half, CPU)[2])
    expected, found = (enlarge(one.distances(unseen), SIZE) for one in read)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_model_of_a_single_layer_is_the_one_saved(tmp_path):
    layer, channels = features(5)[:1], replace(CHANNELS, of_layers=((3, 12), (), ()))
    settings = SETTINGS | {"network": NETWORK | {"channels": asdict(channels)}}
    gaussians = fit_gaussians([layer], 5)
    write_model(tmp_path / "x.safetensors", settings, VIEW, gaussians, THRESHOLDS)
    found = read_model(tmp_path / "x.safetensors", CPU)[2]
    assert torch.equal(found.distances(layer), gaussians.distances(layer))


def test_unknown_dtype_is_refused(gaussians, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose from float32, float16"):
        write_model(tmp_path / "x.safetensors", SETTINGS, VIEW, gaussians, THRESHOLDS, "int8")
