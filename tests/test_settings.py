"""Models of settings other than the defaults: saved, loaded and predicted with."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers import call, read_csv, turned_part, write_image
from tests.test_page import Page
from tests.tolerances import SCORES
from utils.detector import Detector

ARCH = "efficientnet_lite0"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A class of parts that lie turned by any angle, and a test image of one colour."""
    folder = tmp_path_factory.mktemp("parts")
    angles = {"train/good": range(-170, 180, 35), "test/good": (20, 99), "test/dent": (-60, 140)}
    for place, several in angles.items():
        for i, angle in enumerate(several):
            pixels = turned_part(angle, (i % 5 - 2, i % 3 - 1)).transpose(1, 2, 0)
            if place == "test/dent":
                pixels[40:46, 50:56] = 250
            write_image(folder / f"key/{place}/{i:02}.png", pixels)
    write_image(folder / "key/test/dent/blank.png", np.full((96, 96, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def recommended(parts, random_weights, tmp_path_factory):
    """A run of two layers with the recommended preset, but for two settings; what it printed."""
    folder = tmp_path_factory.mktemp("recommended")
    words = ["--data_path", parts, "--arch", ARCH, "--weights", random_weights(ARCH)]
    words += ["--preset", "recommended", "--save_dtype", "float32", "--context", "8"]
    words += ["--layers", "layer2", "layer3"]
    done = call(*words, "--resize", "72", "--crop", "56", "--save_path", folder, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder / ARCH, done.stdout


def read_result(folder):
    content = json.loads((folder / "metrics.json").read_text())
    return content["settings"]["arguments"], content["results"][0]["learnt"]


def test_settings_of_a_preset_are_printed_and_kept_and_one_that_is_given_wins(recommended):
    folder, printed = recommended
    preset = "recommended: --n_features all --neighbourhood 3 --shrinkage auto --align auto "
    assert preset + "--context 8 --image_score top --save_dtype float32" in printed.splitlines()
    arguments, learnt = read_result(folder)
    for name, value in (("n_features", "all"), ("context", 8), ("save_dtype", "float32")):
        assert arguments[name] == value
    assert 0 < learnt["shrinkage"] <= 1
    method = "n_features all, layers layer2 layer3, neighbourhood 3, context 8, align auto, "
    assert f"{method}shrinkage auto, image_score top on " in Page(folder).texts("caption")[0]


def test_what_a_model_learnt_is_shown_with_pictures(recommended, random_weights):
    folder, printed = recommended
    model = Detector.load(folder / "models/key.safetensors", random_weights(ARCH)).model
    _, learnt = read_result(folder)
    assert json.loads(json.dumps(model.describe())) == learnt
    alignment, page = learnt["alignment"], Page(folder)
    assert alignment["before"] < 0.7 < 0.9 < alignment["after"]
    line = f"training images correlate {alignment['lowest']:.2f} or more with the template"
    assert line in printed
    assert any(note.endswith(line) for note in page.texts("p", class_="note"))
    assert any("images of one colour" in line and "blank" in line for line in printed.splitlines())
    names = ["templates/key.png", "templates/key.examples.jpg"]
    assert {*names} <= {*page.values("img", "src")}
    record = json.loads((folder / "classes/key.json").read_text())["record"]
    assert {*names} <= set(record["files"])
    # the picture lies as the template does: it is the median of fewer images
    with Image.open(folder / names[0]) as picture:
        grey = np.asarray(picture.convert("L"), dtype=np.float32)
    template = model.view.alignment.template.numpy()
    assert np.corrcoef(grey.ravel(), template.ravel())[0, 1] > 0.99
    with Image.open(folder / names[1]) as examples:
        pixels = np.asarray(examples.convert("L"), float)
    given, aligned = pixels.reshape(2, 72, 5, 72).swapaxes(1, 2)[:, :, 16:-16, 16:-16]
    assert aligned.std(axis=0).mean() < 0.3 * given.std(axis=0).mean()


def test_predictions_of_a_recommended_model_are_the_runs_with_poses(
    recommended, parts, random_weights, tmp_path
):
    folder, _ = recommended
    model = ["--model", folder / "models/key.safetensors", "--weights", random_weights(ARCH)]
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    images = [parts / "key/test", write_image(tmp_path / "noise.png", noise)]
    images.append(write_image(tmp_path / "wide.png", np.repeat(noise, 2, axis=1)))
    done = call("predict", *model, *images, "--output", tmp_path / "out")
    assert done.returncode == 1
    rows = {
        row["path"].removeprefix(f"{parts}/key/test/"): row
        for row in read_csv(tmp_path / "out/predictions.csv")
    }
    wide = rows[str(images[2])]
    assert wide["error"].endswith("for the network 144x72; this model takes 72x72")
    assert wide["angle"] == wide["correlation"] == ""
    for row in read_csv(folder / "scores.csv"):
        predicted = rows[f"{row['defect_type']}/{row['image']}"]
        assert float(predicted["score"]) == pytest.approx(float(row["score"]), rel=SCORES)
    angles = [float(rows[f"good/0{i}.png"]["angle"]) for i in (0, 1)]
    assert (angles[1] - angles[0] - 79 + 180) % 360 - 180 == pytest.approx(0, abs=2)
    lowest = read_result(folder)[1]["alignment"]["lowest"]
    assert float(rows["good/00.png"]["correlation"]) > lowest
    least = lowest - max(1 - lowest, 0.05)
    note = f"images that correlate less than {least:.2f} with the template of the part: "
    assert f"({note}{images[1]}; all training images reach" in done.stdout
    page = Page(tmp_path / "out")
    assert any(text.startswith(f"turned by {angles[1]:.1f}°, ") for text in page.texts("span"))
    assert any(text.startswith("Alignment: parts are sought at all") for text in page.texts("li"))
