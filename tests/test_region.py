"""The region of interest: files that are refused, maps, scores, models and whole runs."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.preprocessing import Preprocessing
from datasets.region import place_region, read_region
from tests.helpers import SMALL, defective, good_images, metrics, write_image
from tests.naive import naive_maps
from tests.samples import Lookup, draw_layers, numbered
from utils.alignment import Poses
from utils.backbone import draw_channels
from utils.detector import Detector
from utils.evaluation import ScoredImages, evaluate
from utils.model_file import gaussians_bytes
from utils.padim import PaDiM
from utils.thresholds import find_thresholds, score_maps
from utils.view import TINY, View

GRIDS, SIZE = [(16, 24), (8, 12), (4, 6)], (64, 96)
BOLT = 48, 48  # pixels of the images of bolt


def box(top, bottom, left, right, size=SIZE):
    """A region (H, W) bool."""
    region = np.zeros(size, dtype=bool)
    region[top:bottom, left:right] = True
    return region


def fit(region, image_score="max"):
    """A model of 12 images."""
    model = PaDiM(
        Lookup(draw_layers(12, GRIDS)), View(Preprocessing(0, 0), None, region), "bolt", image_score
    )
    return model.fit([numbered(0, 12, SIZE)], 12)


# files


@pytest.fixture
def region_of(tmp_path):
    """Write a region of bolt."""
    return lambda pixels: write_image(tmp_path / "region.png", pixels)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.ones(BOLT, bool), "is 48x48 pixels but the template of bolt is 72x72"),
        (np.zeros(BOLT, bool), "region .*, 48x48 pixels, must be white where"),
        (np.ones((48, 40), bool), "is 40x48 pixels but the image .*png is 48x48"),
        (np.tri(48, dtype=np.uint8) * 200, "48x48 pixels, must be white where defects are and bl"),
        (
            np.full((48, 48, 4), (255, 255, 255, 254), np.uint8),
            "48x48 pixels, must be .*, without transparency",
        ),
        (box(0, 2, 0, 48, BOLT), "48x48 pixels, lies outside the crop"),
    ],
    ids=["template", "black", "size", "grey", "transparent", "outside"],
)
def test_what_is_no_region_is_refused_with_its_size(refused, experiment, region_of, pixels, reason):
    align = "on" if "template" in reason else "off"
    options = ["--region", region_of(pixels), "--align", align]
    line = refused(*experiment, "--class_name", "bolt", *options)
    assert re.search(reason, line), line


def test_regions_of_classes_that_are_not_run_are_refused(refused, experiment, region_of):
    path = region_of(np.ones(BOLT, bool))
    assert "is one file, but 2 classes are run" in refused(*experiment, "--region", path)
    line = refused(*experiment, "--class_name", "bolt", "--region", path.parent)
    assert f"region {path} is of no class that is run (bolt)" in line
    path.unlink()
    assert f"region {path.parent} is of" in refused(*experiment, "--region", path.parent)


def test_a_region_is_cropped_like_a_mask_with_the_context(tmp_path):
    drawn = box(30, 60, 10, 40, (100, 100))
    white = read_region(write_image(tmp_path / "x.png", drawn))
    placed = place_region(white, Preprocessing(50, 32, context=4), "x.png")
    assert placed.shape == (40, 40)
    np.testing.assert_array_equal(placed, box(10, 25, 0, 15, (40, 40)))


# maps


def test_near_its_border_a_score_is_a_mean_of_patches_in_the_region():
    region = box(20, 45, 30, 70)
    model = fit(region)
    model.extractor = Lookup(draw_layers(4, GRIDS, seed=1))
    found = model.anomaly_maps(numbered(0, 4, SIZE))
    kept = box(5, 12, 7, 18, GRIDS[0])  # patches of 4 x 4 pixels
    distances = model.gaussians.distances(model.extractor.layers).numpy()
    assert ((distances > 0) == kept).all()
    weight = naive_maps(kept[None].astype(np.float32), SIZE)[:, region]
    expected = naive_maps(distances, SIZE)[:, region] / weight
    np.testing.assert_allclose(found[:, region], expected, rtol=1e-5)


def test_a_pixel_in_the_region_scores_more_than_0():
    region = box(0, 32, 0, 96)
    maps = View(Preprocessing(0, 0), None, region).lay_back(torch.zeros(1, 16, 24), None, SIZE)
    np.testing.assert_array_equal(maps[0], np.where(region, np.float32(TINY), 0))


def test_a_region_turns_and_moves_with_the_part():
    region = box(0, 20, 0, 48, BOLT)
    aligned = View(Preprocessing(0, 0), SimpleNamespace(), region)
    poses = Poses(*(torch.tensor([x]) for x in (90.0, 0.0, 5.0, 1.0)))
    distances = torch.from_numpy(region[None, ::4, ::4]).float()
    maps = aligned.lay_back(distances, poses, BOLT)
    expected = np.roll(np.rot90(region), 5, axis=1)  # counter-clockwise, and to the right
    expected[:, :5] = False
    np.testing.assert_array_equal(maps[0] > 0, expected)
    np.testing.assert_allclose(maps[0][expected], 1, rtol=1e-5)


# scores, thresholds and metrics


def test_scores_and_thresholds_are_of_the_pixels_in_the_region(monkeypatch):
    region = box(20, 64, 30, 96)
    model = fit(region, image_score="top")
    held_out = model.held_out_maps()
    monkeypatch.setattr(model, "held_out_maps", lambda: held_out)
    found, inside = model.find_thresholds(0.1, 0.05), held_out[:, 20:, 30:]
    expected = find_thresholds(inside, 0.1, 0.05, "top")
    assert (found.image, found.pixel, found.peak) == (expected.image, expected.pixel, expected.peak)
    np.testing.assert_array_equal(model.image_scores(held_out), score_maps(inside, "top"))


def test_pixels_outside_take_no_part_in_metrics():
    rng = np.random.default_rng(0)
    labels, masks = np.array([0, 0, 1, 1]), np.zeros((4, 128, 160), dtype=bool)
    masks[2:, 16:80, 60:120] = True
    maps = rng.random(masks.shape, dtype=np.float32) + np.float32(0.5) * masks
    maps[0, 0, :5] = np.linspace(1.1, 1.45, 5)  # false positives, which AUPIMO counts
    maps[..., 80:] = 0
    scores = score_maps(maps)
    found, expected = (
        evaluate(ScoredImages(labels, scores, (0, 2), *arrays, {}), True, has_region=outside)
        for arrays, outside in (((maps, masks), True), ((maps[..., :80], masks[..., :80]), False))
    )
    assert None not in found.metrics.values()
    assert found.metrics == expected.metrics


# models and runs


@pytest.mark.parametrize("n_train", [209, 500], ids=["dual", "primal"])
def test_of_a_quarter_of_the_image_a_model_has_at_most_30_percent(n_train):
    channels, quarter = draw_channels("resnet18"), box(56, 168, 50, 162, (224, 224))
    whole, part = (gaussians_bytes(channels, (224, 224), n_train, r) for r in (None, quarter))
    assert part <= 0.3 * whole


def test_detector_keeps_its_region_in_the_file(weights, tmp_path):
    region = box(10, 60, 40, 80, (96, 120))
    options = {"weights": weights, "preprocessing": SMALL}
    detector = Detector.fit(good_images(), **options, region=region)
    detector.save(tmp_path / "bolt.safetensors")
    loaded = Detector.load(tmp_path / "bolt.safetensors", options["weights"])
    found, again = (x.score(defective())[1] for x in (detector, loaded))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(found > 0, region[8:88, 20:100])  # of the crop


def test_detector_takes_a_region_of_the_template(weights):
    options = {"weights": weights, "preprocessing": SMALL, "align": "on"}
    region = box(30, 70, 30, 70, (96, 120))
    detector = Detector.fit(good_images(3), **options, region=region)
    assert detector.model.describe()["region"] == region.mean()
    assert 0 < (detector.score(defective())[1] > 0).mean() < 0.5


def test_a_run_obeys_the_regions_of_its_classes(run, experiment, results_folder, tree, tmp_path):
    drawn = box(0, 40, 16, 64, (40, 64))
    path = write_image(tmp_path / "regions/weave.png", drawn)
    command = [*experiment, "--figures", "none", "--region", path.parent]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "(region: 95.3% of the pixels that the network sees)" in done.stdout
    results = json.loads((results_folder / "metrics.json").read_text())["results"]
    assert [result["learnt"]["region"] for result in results] == [None, pytest.approx(0.953125)]
    in_region = metrics(results_folder)

    done = run(*command)
    assert "weave is finished" in done.stdout
    write_image(path, np.full((40, 64), 255, np.uint8))
    done = run(*command)
    assert "weave is finished" not in done.stdout
    assert "bolt is finished" in done.stdout
    assert metrics(results_folder)[0] == in_region[0]
    assert metrics(results_folder)[1] != in_region[1]


def test_predict_scores_0_outside_and_draws_the_border(run, weights, tmp_path):
    region = box(8, 40, 8, 40, BOLT)
    detector = Detector.fit(
        good_images(5, BOLT), weights=weights, preprocessing=Preprocessing(72, 64), region=region
    )
    detector.save(tmp_path / "bolt.safetensors")
    image = write_image(tmp_path / "new.png", good_images(1, BOLT)[0])
    done = run("predict", image, "--model", "bolt.safetensors", "--weights", weights,
               "--maps", "npy")  # fmt: skip
    assert done.returncode == 0, done.stderr
    anomaly_map = np.load("predictions/maps/new.npy")
    # bilinear interpolation reaches a pixel beyond
    assert (anomaly_map[9:39, 9:39] > 0).all()
    assert np.nan_to_num(anomaly_map)[~box(7, 41, 7, 41, BOLT)].max() == 0
    overlay = np.asarray(Image.open("predictions/overlays/new.jpg"))
    assert (overlay[24, 6:10].min(axis=1) > 230).any()
