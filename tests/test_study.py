"""The studies: the real command on a small tree, and their parts against hand-made values."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion
from sklearn.decomposition import PCA
from utils.commands.study_features import ClassFeatures
from utils.commands.study_methods import (
    principal_axes,
    study_layers,
)
from utils.commands.study_rotation import Move, RotatedDataset, draw_move, turn_and_crop
from utils.commands.study_tables import ACCURACY, COST, make_table, plot_studies

from datasets.dataset import load_splits
from datasets.images import load_image
from datasets.masks import load_mask
from datasets.preprocessing import DEFAULT, Preprocessing
from tests.helpers import call, read_csv, write_image
from tests.naive import naive_auroc
from utils.backbone import draw_channels
from utils.commands import study_rotation
from utils.commands.study import STUDIES, Settings
from utils.features import concatenate, load_extractor
from utils.gaussian import fit_gaussians
from utils.metrics import METRICS
from utils.report.tables import COMPARED

# rows of a class by study, with two draws and two networks; rotation is defined for large images
ROWS = {
    **{"layers": 6, "dimensions": 7, "draws": 2, "cost": 2, "neighbourhood": 6, "networks": 6},
    **{"shrinkage": 7, "alignment": 6},
}
SMALL = ["--resize", 72, "--crop", 64]


@pytest.fixture(scope="module")
def made(drawn_tree, random_weights, tmp_path_factory):
    """The folder that all studies of a class leave, but for rotation."""
    folder = tmp_path_factory.mktemp("made")
    words = ["--data_path", drawn_tree, "--class_name", "weave", "--save_path", folder, *SMALL]
    words += ["--weights", random_weights("resnet18"), "--seeds", 2]
    with pytest.MonkeyPatch.context() as patch:
        # the larger networks take longer, and need not be there
        patch.setattr("utils.backbone.find_spec", lambda name: "lite0" in name or None)
        done = call("study", *words, "--study", *ROWS)
    assert done.returncode == 0, done.stderr
    return folder / "studies" / "resnet18"


@pytest.fixture(scope="module")
def images(drawn_tree, random_weights):
    """A small class that has been through the network."""
    extractor = load_extractor("resnet18", random_weights("resnet18"), "cpu")
    settings = Settings(batch_size=4, num_workers=0)
    draws = {1024: draw_channels("resnet18", n_features=1)}
    splits = load_splits(drawn_tree, "bolt", preprocessing=Preprocessing(72, 64))
    return ClassFeatures(settings, extractor, draws, *splits)


def test_all_studies_leave_their_rows_and_tables(made, drawn_tree):
    assert {*ROWS, "rotation"} == set(STUDIES)
    files = [f"{name}.{suffix}" for name in ROWS for suffix in ("csv", "md")]
    assert {path.name for path in made.iterdir()} == {*files, "studies.png"}
    for name, n_rows in ROWS.items():
        described, _ = STUDIES[name]
        title, *rows, note, command = (made / f"{name}.md").read_text().splitlines()
        assert title == f"**resnet18 on {drawn_tree.name}: {described}**"
        assert note.startswith("- ")
        assert "main.py study --data_path" in command
        assert "weights sha256" in command
        rows = read_csv(made / f"{name}.csv")
        assert len({(row["method"], row.get("seed")) for row in rows}) == len(rows) == n_rows
        assert {row["class_name"] for row in rows} == {"weave"}
        found = [[float(row[metric]) for metric in COMPARED] for row in rows if name != "cost"]
        assert all(0 < value <= 1 for of_row in found for value in of_row)
        # each row is of another model; Ledoit and Wolf's shrinkage is that of another row
        assert len(set(map(tuple, found))) >= len(found) - 1
    searched = [row["search_seconds"] for row in read_csv(made / "alignment.csv")]
    assert [bool(seconds) for seconds in searched] == [False, True, True] * 2
    assert all(0 < float(seconds) < 10 for seconds in filter(None, searched))


def test_each_seed_is_another_draw(made):
    for name in ("dimensions", "draws"):
        rows = [row for row in read_csv(made / f"{name}.csv") if row["method"] == "Rd100"]
        assert [row["seed"] for row in rows] == ["1024", "1025"]
        assert rows[0]["pixel_auroc"] != rows[1]["pixel_auroc"]


def test_random_channels_give_the_main_runs_metrics(run, made, drawn_tree, random_weights):
    done = run(
        *("--data_path", drawn_tree, "--class_name", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--figures", "none", "--seed", 1025),
        *("--save_path", made.parent / "main", *SMALL),
    )
    assert done.returncode == 0, done.stderr
    (expected,) = read_csv(made.parent / "main/resnet18/metrics.csv")
    first, second = read_csv(made / "draws.csv")
    assert {name: second[name] for name in METRICS} == {name: expected[name] for name in METRICS}
    # the first draw is that of the other studies
    for name, number in [("layers", 5), ("dimensions", 1)]:
        row = read_csv(made / f"{name}.csv")[number]
        assert [row[metric] for metric in COMPARED] == [first[metric] for metric in COMPARED]


def test_studies_obey_the_settings_of_the_method(run, drawn_tree, random_weights, tmp_path):
    words = [
        *("--data_path", drawn_tree, "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", tmp_path),
        *("--n_features", "all", "--neighbourhood", 3, "--shrinkage", 0.1, "--align", "on"),
        *SMALL,
    ]
    for command in ["--figures", "none"], ["study", "--study", "layers", "alignment", "shrinkage"]:
        done = run(*command, *words)
        assert done.returncode == 0, done.stderr
    assert "bolt is aligned: correlation" in done.stdout
    (main_run,) = read_csv(tmp_path / "resnet18/metrics.csv")
    for name, method in [
        ("layers", "concatenation"),
        ("alignment", "range, whole image"),
        ("shrinkage", "R = 0.1"),
    ]:
        rows = read_csv(tmp_path / f"studies/resnet18/{name}.csv")
        found = {row["method"]: [row[metric] for metric in COMPARED] for row in rows}
        assert found[method] == [main_run[metric] for metric in COMPARED]
        assert len(set(map(tuple, found.values()))) > 1


@pytest.mark.parametrize("option", [("--align", "auto"), ("--context", "16")])
def test_turned_images_are_not_aligned(refused, drawn_tree, option):
    words = ["study", "--data_path", str(drawn_tree), "--study", "rotation", *option]
    assert f"--study rotation turns the images itself; leave out {option[0]}" in refused(*words)


def test_chosen_study_of_two_classes_has_their_mean(run, drawn_tree, random_weights, tmp_path):
    done = run(
        *("study", "--data_path", drawn_tree, "--class_name", "bolt", "weave", "--seeds", "1"),
        *("--study", "rotation", "--weights", random_weights("resnet18"), "--save_path", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "studies" / "resnet18"
    files = ["rotation.csv", "rotation.md", "studies.png"]
    assert sorted(path.name for path in folder.iterdir()) == files
    rows = read_csv(folder / "rotation.csv")
    found = [(row["class_name"], row["method"]) for row in rows]
    methods = ("aligned", "rotated")
    assert found == [(name, method) for name in ("bolt", "weave") for method in methods]
    mean = (float(rows[1]["aupro"]) + float(rows[3]["aupro"])) / 2
    line = (folder / "rotation.md").read_text().partition("| mean of 2 classes, rotated |")[2]
    assert line.splitlines()[0].endswith(f"| {mean:.3f} |")


def test_network_without_draws_has_no_study_of_them(run, drawn_tree, tmp_path):
    done = run(
        *("study", "--data_path", drawn_tree, "--class_name", "bolt", "--study", "draws"),
        *("--arch", "efficientnet_lite0"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no study of draws: efficientnet_lite0 uses all of its 176 channels\n"


def test_each_layer_is_a_model_of_its_own_and_maps_are_summed(images):
    rows = {row["method"]: row for row in study_layers(images)}
    masks = np.concatenate([masks for *_, masks in images.unseen])
    labels = np.concatenate([labels for _, _, labels, _ in images.unseen])
    maps = []
    for number in range(3):
        gaussians = fit_gaussians([[batch[number]] for batch in images.good], 5)
        alone = [lambda layers, number=number: [layers[number]]]
        of_batches = [images.make_maps(gaussians, *alone, seen) for seen, *_ in images.unseen]
        maps.append(np.concatenate(of_batches))
    for i, of_row in enumerate([*maps, sum(maps)], start=1):
        row = rows["layers 1+2+3" if i > 3 else f"layer {i}"]
        assert row["n_features"] == (64, 128, 256, 448)[i - 1]
        assert row["pixel_auroc"] == pytest.approx(naive_auroc(masks, of_row), abs=1e-6)
        assert row["image_auroc"] == pytest.approx(naive_auroc(labels, of_row.max(axis=(1, 2))))


def test_principal_axes_are_those_of_all_patches():
    torch.manual_seed(0)
    layers = [torch.randn(12, *shape) + 1 for shape in ((4, 8, 8), (6, 4, 4), (8, 2, 2))]
    axes = principal_axes([[layer[:5] for layer in layers], [layer[5:] for layer in layers]])
    patches = concatenate(layers).permute(0, 2, 3, 1).reshape(-1, 18).double().numpy()
    expected = PCA(svd_solver="full").fit(patches).components_
    # up to their signs
    np.testing.assert_allclose(np.abs(expected @ axes.numpy()), np.eye(18), atol=1e-4)


def test_cost_is_measured(made):
    rows = read_csv(made / "cost.csv")
    for row in rows:
        assert row["form"] == "dual"  # 5 training images
        assert 0 < float(row["network_seconds"]) < 10
        assert 0 < float(row["map_seconds"]) < 10
        # weights of ResNet-18 up to layer3, a bias for each output of its 15 convolutions once
        # batch norm is folded, and the 6 numbers that normalise an image
        weights, biases = 9_408 + 147_456 + 524_288 + 2_097_152, 5 * (64 + 128 + 256)
        assert int(row["network_bytes"]) == 4 * (weights + biases + 6)
    assert int(rows[0]["gaussians_bytes"]) < int(rows[1]["gaussians_bytes"])


def test_cost_table_is_in_milliseconds_and_megabytes():
    row = {
        **{"class_name": "bolt", "method": "Rd3", "n_features": 3, "n_train": 9, "form": "primal"},
        **{"network_seconds": 0.0101, "map_seconds": 0.02},
        **{"network_bytes": 11_000_000, "gaussians_bytes": 250_000},
    }
    other = row | {"class_name": "weave", "form": "dual", "network_seconds": 0.0301}
    cells, _, mean = make_table("", [row, other], COST, []).rows
    assert cells == ["bolt, Rd3", "3", "9", "primal", "10.1", "20.0", "30.1", "11.0", "0.2", "11.2"]
    assert mean[:5] == ["mean of 2 classes, Rd3", "3", "9", "–", "20.1"]


def accuracy_row(class_name, method, value, pixel=0.5):
    metrics = {"image_auroc": value, "pixel_auroc": pixel, "aupro": pixel}
    return {"class_name": class_name, "method": method, "n_features": 3} | metrics


def test_table_has_spread_over_seeds_and_the_mean_of_classes(tmp_path):
    rows = [
        *(accuracy_row("bolt", "Rd3", 0.8), accuracy_row("bolt", "Rd3", 0.9, pixel=None)),
        *(accuracy_row("weave", "Rd3", 0.6), accuracy_row("weave", "Rd3", 0.5)),
        *(accuracy_row("bolt", "PCA3", 0.75), accuracy_row("weave", "PCA3", 0.25)),
    ]
    cells = {row[0]: row[1:] for row in make_table("title", rows, ACCURACY, []).rows}
    # sd of 0.8 and 0.9: 0.1 / sqrt(2)
    assert cells["bolt, Rd3"] == ["3", "0.850 ± 0.071", "–", "–"]
    assert cells["weave, Rd3"] == ["3", "0.550 ± 0.071", "0.500 ± 0.000", "0.500 ± 0.000"]
    # (0.8 + 0.6) / 2 and (0.9 + 0.5) / 2 are both 0.7
    assert cells["mean of 2 classes, Rd3"] == ["3", "0.700 ± 0.000", "–", "–"]
    assert cells["mean of 2 classes, PCA3"][1] == "0.500"
    plot_studies(tmp_path / "studies.png", {"dimensions": rows}, "title")
    assert Image.open(tmp_path / "studies.png").width == 1500


@pytest.mark.parametrize("size", [(300, 300), (410, 290)])
def test_without_turn_the_centre_crop_is_the_aligned_image(tmp_path, monkeypatch, size):
    rng = np.random.default_rng(0)
    for path in ("train/good/0", "train/good/1", "test/good/0", "test/crack/0"):
        pixels = rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        write_image(tmp_path / f"bolt/{path}.png", pixels)
    mask = np.uint8(rng.random(size[::-1]) < 0.5) * 255
    mask_path = write_image(tmp_path / "bolt/ground_truth/crack/0_mask.png", mask)
    monkeypatch.setattr(study_rotation, "draw_move", lambda key: Move(0, 16, 16))
    _, test = load_splits(tmp_path, "bolt")
    cracked, good = RotatedDataset(test, 0)
    for (image, label, mask), sample in ((cracked, test.samples[0]), (good, test.samples[1])):
        assert label == sample.label
        np.testing.assert_array_equal(image, load_image(sample.path, DEFAULT))
        assert mask.any() == bool(label)
    np.testing.assert_array_equal(cracked[2], load_mask(mask_path, DEFAULT))


def test_image_and_mask_move_alike(tmp_path):
    """A bright rectangle that is its own mask stays under the mask, which does move."""
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[60:110, 40:200] = 255
    for i in range(3):
        write_image(tmp_path / f"bolt/test/crack/{i}.png", np.stack([mask] * 3, axis=2))
        write_image(tmp_path / f"bolt/ground_truth/crack/{i}_mask.png", mask)
        write_image(tmp_path / f"bolt/train/good/{i}.png", mask)
    _, test = load_splits(tmp_path, "bolt")
    masks = [load_mask(test.samples[0].mask_paths[0], DEFAULT)]
    for image, _, mask in (RotatedDataset(test, 0)[i] for i in range(3)):
        bright = image[0] > 127
        # the border is resampled in two ways
        assert bright[binary_erosion(mask, iterations=2)].all()
        assert not bright[~binary_dilation(mask, iterations=2)].any()
        assert all((mask != other).mean() > 0.01 for other in masks)
        masks.append(mask)
    # the seed fixes the moves
    np.testing.assert_array_equal(RotatedDataset(test, 0)[2][2], masks[3])
    assert (RotatedDataset(test, 1)[2][2] != masks[3]).any()


def test_positive_angle_turns_counter_clockwise_about_the_centre():
    pixels = np.zeros((256, 256), dtype=np.uint8)
    pixels[123:133, 210:220] = 255
    turned = turn_and_crop(pixels, Move(10, 16, 16), Image.Resampling.BICUBIC)
    y, x = np.argwhere(turned > 127).mean(axis=0)
    # 86.5 pixels right of the centre at (111.5, 111.5), up by their sine
    assert y == pytest.approx(111.5 - 86.5 * np.sin(np.radians(10)), abs=1)
    assert x == pytest.approx(111.5 + 86.5 * np.cos(np.radians(10)), abs=1)
    # and no corner is left black
    white = np.full((256, 256, 3), 255, dtype=np.uint8)
    for move in (Move(-10, 0, 0), Move(10, 32, 32), Move(10, 0, 32)):
        assert turn_and_crop(white, move, Image.Resampling.BICUBIC).min() == 255


def test_moves_fill_their_range():
    moves = [draw_move(str(i)) for i in range(2000)]
    angles = [move.angle for move in moves]
    assert -10 <= min(angles) < -9.9
    assert 9.9 < max(angles) <= 10
    for offsets in ([move.left for move in moves], [move.top for move in moves]):
        assert set(offsets) == set(range(33))
