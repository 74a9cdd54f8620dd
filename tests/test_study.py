"""The studies: the real command on a small tree, and their parts against hand-made values."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from datasets.dataset import load_splits
from datasets.images import DEFAULT, load_image, load_mask
from datasets.loading import load_batches
from tests.conftest import write_image
from tests.naive import naive_auroc
from tests.test_main import MAIN, read_rows
from utils.backbone import draw_channels, load_network
from utils.commands import study_methods
from utils.commands.study import STUDIES, accuracy_table, cost_table, plot_studies
from utils.commands.study_methods import (
    ClassFeatures,
    Move,
    RotatedDataset,
    Setup,
    draw_move,
    principal_axes,
    project,
    sum_maps,
    turn_and_crop,
)
from utils.features import FeatureExtractor, concatenate
from utils.gaussian import fit_gaussians
from utils.padim import PaDiM
from utils.patches import arrange

START = "import main; main.COMMANDS['study'] = 'utils.commands.study'; main.main()"
COMPARED = ("image_auroc", "pixel_auroc", "aupro")
BICUBIC = Image.Resampling.BICUBIC


def run_study(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", START, "study", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(drawn_tree, random_weights, tmp_path_factory):
    """What all studies of a class leave, and what they print."""
    folder = tmp_path_factory.mktemp("made")
    done = run_study(
        *("--data_path", drawn_tree, "--class_name", "weave", "--seeds", "2"),
        *("--weights", random_weights("resnet18"), "--save_path", folder),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "studies" / "resnet18", done.stdout


@pytest.fixture(scope="module")
def images(drawn_tree, random_weights):
    """A small class that has been through the network, and the setup."""
    extractor = FeatureExtractor(
        load_network("resnet18", random_weights("resnet18")), torch.device("cpu")
    )
    setup = Setup("resnet18", extractor, lambda data: load_batches(data, 4, 0), [1024])
    return setup, ClassFeatures(setup, *load_splits(drawn_tree, "bolt"))


@pytest.fixture
def layers():
    """Layer outputs of 12 images with 4 + 6 + 8 channels."""
    torch.manual_seed(0)
    shapes = {"layer1": (4, 8, 8), "layer2": (6, 4, 4), "layer3": (8, 2, 2)}
    return {name: torch.randn(12, *shape) + 1 for name, shape in shapes.items()}


def test_all_studies_leave_their_files(made, drawn_tree):
    folder, output = made
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.{suffix}" for name in STUDIES for suffix in ("csv", "md")), "studies.png"]
    )
    for name, study in STUDIES.items():
        text = (folder / f"{name}.md").read_text()
        assert f"resnet18 on {drawn_tree.name}: {study.title}" in text
        assert "python main.py study --data_path" in text
        assert "weights sha256" in text
        assert study.title in output
    assert Image.open(folder / "studies.png").width == 1500


def test_each_study_has_its_methods(made):
    folder, _ = made
    expected = {
        "layers": [
            *("layer 1", "layer 2", "layer 3", "layers 1+2+3"),
            *("concatenation", "concatenation, Rd100"),
        ],
        "dimensions": [
            *("all channels", "Rd100", "Rd100", "PCA100", "Rd200", "Rd200", "PCA200"),
        ],
        "cost": ["Rd100", "all channels"],
        "rotation": ["aligned", "rotated", "rotated"],
    }
    assert expected.keys() == STUDIES.keys()
    for name, methods in expected.items():
        rows = read_csv(folder / f"{name}.csv")
        assert [row["method"] for row in rows] == methods
        assert {row["class_name"] for row in rows} == {"weave"}
        if name != "cost":
            assert all(0 < float(row[metric]) <= 1 for row in rows for metric in COMPARED)


def test_concatenation_is_the_main_run(run, made, drawn_tree, random_weights, tmp_path):
    done = run(
        *("--data_path", drawn_tree, "--class_name", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", "out", "--figures", "none"),
    )
    assert done.returncode == 0, done.stderr
    (main_row,) = read_rows(tmp_path / "out" / "resnet18")
    places = [("layers", "concatenation, Rd100"), ("dimensions", "Rd100"), ("rotation", "aligned")]
    for name, method in places:
        rows = [row for row in read_csv(made[0] / f"{name}.csv") if row["method"] == method]
        assert [rows[0][metric] for metric in COMPARED] == [main_row[m] for m in COMPARED]


def test_a_study_gives_the_same_numbers_alone_and_among_classes(
    made, drawn_tree, random_weights, tmp_path
):
    done = run_study(
        *("--data_path", drawn_tree, "--class_name", "bolt", "weave", "--study", "rotation"),
        *("--weights", random_weights("resnet18"), "--save_path", tmp_path, "--seeds", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "studies" / "resnet18"
    names = ["rotation.csv", "rotation.md", "studies.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    rows = read_csv(folder / "rotation.csv")
    assert [row["class_name"] for row in rows] == ["bolt"] * 2 + ["weave"] * 2
    assert rows[2:] == read_csv(made[0] / "rotation.csv")[:2]
    mean = (float(rows[1]["aupro"]) + float(rows[3]["aupro"])) / 2
    line = (folder / "rotation.md").read_text().partition("| mean of 2 classes, rotated |")[2]
    assert line.splitlines()[0].endswith(f"| {mean:.3f} |")


def test_another_seed_is_another_draw_and_another_rotation(made):
    for name, method in [("dimensions", "Rd100"), ("rotation", "rotated")]:
        rows = [row for row in read_csv(made[0] / f"{name}.csv") if row["method"] == method]
        assert [row["seed"] for row in rows] == ["1024", "1025"]
        assert rows[0]["pixel_auroc"] != rows[1]["pixel_auroc"]


def test_draws_are_those_of_the_main_run(images):
    setup, _ = images
    assert setup.draw(100, 7) == draw_channels("resnet18", 7)


def test_each_layer_is_a_model_of_its_own_and_maps_are_summed(images):
    setup, features = images
    rows = {row["method"]: row for row in study_methods.study_layers(setup, features)}
    labels = np.concatenate([labels for _, _, labels, _ in features.unseen])
    masks = np.concatenate([masks for *_, masks in features.unseen])
    total = 0
    for number, n_channels in [(1, 64), (2, 128), (3, 256)]:
        name = f"layer{number}"
        only = [{name: batch[name]} for batch in features.good]
        model = PaDiM(range(n_channels)).fit(only, 5)
        assert model.gaussians.pyramid.grids == ((112 // 2**number,) * 2,)
        maps = np.concatenate(
            [model.anomaly_maps({name: b[name]}, (224, 224)) for b, *_ in features.unseen]
        )
        row = rows[f"layer {number}"]
        assert row["n_features"] == n_channels
        assert row["pixel_auroc"] == pytest.approx(naive_auroc(masks, maps), abs=1e-6)
        total = total + maps
    row = rows["layers 1+2+3"]
    assert row["pixel_auroc"] == pytest.approx(naive_auroc(masks, total), abs=1e-6)
    scores = total.max(axis=(1, 2))
    assert row["image_auroc"] == pytest.approx(naive_auroc(labels, scores), abs=1e-6)


def test_summed_maps_have_their_own_image_score(images):
    _, features = images
    scored = features.score(range(64))
    one, other = np.zeros((2, 8, 4, 4))
    one[:, 0, 0], other[:, 0, 0], other[:, 2, 2] = 3, 1, 5
    summed = sum_maps(scored, [one, other])
    assert np.array_equal(summed.anomaly_maps, one + other)
    # 3 + 1 and 0 + 5, not 3 + 5
    assert summed.image_scores.tolist() == [5] * 8
    assert summed.labels is scored.labels


def test_principal_axes_are_those_of_all_patches(layers):
    axes = principal_axes(
        [{k: v[:5] for k, v in layers.items()}, {k: v[5:] for k, v in layers.items()}]
    )
    patches = (
        concatenate(list(layers.values())).permute(0, 2, 3, 1).reshape(-1, 18).double().numpy()
    )
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    assert axes.shape == (18, 18)
    assert torch.allclose(axes.mT @ axes, torch.eye(18), atol=1e-5)
    variances = np.var(patches @ axes.double().numpy(), axis=0, ddof=1)
    assert variances == pytest.approx(values[::-1], rel=1e-5)
    assert np.abs(np.sum(vectors[:, ::-1] * axes.numpy(), axis=0)) == pytest.approx(1, abs=1e-4)


def test_all_principal_components_leave_the_distances_as_they_are(layers):
    """A rotation of the embeddings changes no distance: it takes eps I to itself."""
    rotated = project(layers, principal_axes([layers]))
    plain = fit_gaussians([arrange(list(layers.values()))], 12)
    turned = fit_gaussians([arrange(list(rotated.values()))], 12)
    unseen = {name: layer.flip(0) * 1.5 for name, layer in layers.items()}
    distances = plain.distances(arrange(list(unseen.values())))
    again = turned.distances(arrange(list(project(unseen, principal_axes([layers])).values())))
    assert torch.allclose(distances, again, rtol=1e-3)
    fewer = project(unseen, principal_axes([layers])[:, :6])
    assert fewer["components"].shape == (12, 6, 8, 8)


def test_cost_is_measured(made):
    rows = read_csv(made[0] / "cost.csv")
    assert len(rows) == 2
    for row in rows:
        assert row["form"] == "dual"  # 5 training images
        assert 1e-4 < float(row["network_seconds"]) < 10
        assert 1e-4 < float(row["map_seconds"]) < 10
        # weights of ResNet-18 up to layer3, a bias for each output of its 15
        # convolutions once batch norm is folded, and the 6 numbers that normalise an image
        weights = 9_408 + 147_456 + 524_288 + 2_097_152
        biases = 5 * 64 + 5 * 128 + 5 * 256
        assert int(row["network_bytes"]) == 4 * (weights + biases + 6)
    assert int(rows[0]["gaussians_bytes"]) < int(rows[1]["gaussians_bytes"])


def test_cost_table_is_in_milliseconds_and_megabytes():
    row = {
        "class_name": "bolt",
        "method": "Rd3",
        "n_features": 3,
        "n_train": 9,
        "form": "primal",
        "network_seconds": 0.0101,
        "map_seconds": 0.02,
        "network_bytes": 11_000_000,
        "gaussians_bytes": 250_000,
    }
    (cells,) = cost_table("", [row], []).rows
    assert cells == ["bolt, Rd3", "3", "9", "primal", "10.1", "20.0", "30.1", "11.0", "0.2", "11.2"]


def accuracy_row(class_name, method, value, pixel=0.5):
    return {
        "class_name": class_name,
        "method": method,
        "n_features": 3,
        "image_auroc": value,
        "pixel_auroc": pixel,
        "aupro": pixel,
    }


def test_table_has_spread_over_seeds_and_the_mean_of_classes(tmp_path):
    rows = [
        *(accuracy_row("bolt", "Rd3", 0.8), accuracy_row("bolt", "Rd3", 0.9, pixel=None)),
        *(accuracy_row("weave", "Rd3", 0.6), accuracy_row("weave", "Rd3", 0.5)),
        *(accuracy_row("bolt", "PCA3", 0.75), accuracy_row("weave", "PCA3", 0.25)),
    ]
    table = accuracy_table("title", rows, [])
    cells = {row[0]: row[1:] for row in table.rows}
    # sd of 0.8 and 0.9: 0.1 / sqrt(2)
    assert cells["bolt, Rd3"] == ["3", "0.850 ± 0.071", "–", "–"]
    assert cells["weave, Rd3"] == ["3", "0.550 ± 0.071", "0.500 ± 0.000", "0.500 ± 0.000"]
    # (0.8 + 0.6) / 2 and (0.9 + 0.5) / 2 are both 0.7
    assert cells["mean of 2 classes, Rd3"] == ["3", "0.700 ± 0.000", "–", "–"]
    assert cells["mean of 2 classes, PCA3"][1] == "0.500"
    plot_studies(tmp_path / "studies.png", {"dimensions": rows}, "title")
    assert Image.open(tmp_path / "studies.png").width == 1500


def test_cost_alone_has_no_figure(tmp_path):
    plot_studies(tmp_path / "studies.png", {"cost": [{}]}, "title")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(300, 300), (410, 290)])
def test_without_turn_the_centre_crop_is_the_aligned_protocol(tmp_path, monkeypatch, size):
    rng = np.random.default_rng(0)
    folder = tmp_path / "bolt"
    for split in ("train/good", "test/good", "test/crack"):
        for i in range(2):
            pixels = rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            write_image(folder / split / f"{i}.png", pixels)
    for i in range(2):
        mask = np.uint8(rng.random(size[::-1]) < 0.5) * 255
        write_image(folder / f"ground_truth/crack/{i}_mask.png", mask)
    monkeypatch.setattr(study_methods, "draw_move", lambda key: Move(0, 16, 16))
    _, test = load_splits(tmp_path, "bolt")
    moved = RotatedDataset(test, 0)
    assert len(moved) == 4
    for i, sample in enumerate(test.samples):
        image, label, mask = moved[i]
        assert label == sample.label
        assert np.array_equal(image, load_image(sample.path, DEFAULT))
        if not sample.mask_paths:
            assert not mask.any()
        else:
            assert np.array_equal(mask, load_mask(sample.mask_paths[0], DEFAULT))
            assert mask.any()


def test_image_and_mask_move_alike(tmp_path):
    """A bright rectangle that is its own mask stays under the mask, which does move."""
    folder = tmp_path / "bolt"
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[60:110, 40:200] = 255
    for i in range(6):
        write_image(folder / f"test/crack/{i}.png", np.stack([mask] * 3, axis=2))
        write_image(folder / f"ground_truth/crack/{i}_mask.png", mask)
        write_image(folder / f"train/good/{i}.png", mask)
    test = load_splits(tmp_path, "bolt")[1]
    still = load_mask(test.samples[0].mask_paths[0], DEFAULT)
    moved = RotatedDataset(test, 0)
    masks = []
    for i in range(6):
        image, _, found = moved[i]
        assert image.shape == (3, 224, 224)
        assert image.dtype == np.uint8
        assert found.dtype == bool
        bright = image[0] > 127
        # the border is resampled in two ways
        assert bright[binary_erosion(found, iterations=2)].all()
        assert not bright[~binary_dilation(found, iterations=2)].any()
        assert (found != still).mean() > 0.01
        masks.append(found)
    assert all((one != other).any() for one, other in zip(masks, masks[1:], strict=False))
    again = RotatedDataset(test, 0)[3]
    assert np.array_equal(again[0], moved[3][0])
    assert np.array_equal(again[2], moved[3][2])
    assert not np.array_equal(RotatedDataset(test, 1)[3][2], moved[3][2])


def test_a_positive_angle_turns_counter_clockwise():
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[123:133, 210:220] = 255
    turned = np.asarray(turn_and_crop(Image.fromarray(pixels), Move(10, 16, 16), BICUBIC))[..., 0]
    y, x = np.argwhere(turned > 127).mean(axis=0)
    # 86.5 pixels right of the centre at (111.5, 111.5), up by their sine
    assert y == pytest.approx(111.5 - 86.5 * np.sin(np.radians(10)), abs=1)
    assert x == pytest.approx(111.5 + 86.5 * np.cos(np.radians(10)), abs=1)


@pytest.mark.parametrize("angle", [-10, 10])
@pytest.mark.parametrize("corner", [(0, 0), (0, 32), (32, 0), (32, 32)])
def test_no_corner_is_left_black(angle, corner):
    white = Image.new("RGB", (256, 256), (255, 255, 255))
    assert np.asarray(turn_and_crop(white, Move(angle, *corner), BICUBIC)).min() == 255


def test_moves_fill_their_range():
    moves = [draw_move(str(i)) for i in range(2000)]
    angles = [move.angle for move in moves]
    assert -10 <= min(angles) < -9.9
    assert 9.9 < max(angles) <= 10
    assert abs(np.mean(angles)) < 0.5
    for offsets in ([move.left for move in moves], [move.top for move in moves]):
        assert set(offsets) == set(range(33))
    assert draw_move("0") == moves[0]


def test_command_line_is_read_without_the_network_packages(tmp_path):
    code = "import sys, utils.commands.study; sys.exit('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(MAIN.parent)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env).returncode == 0
