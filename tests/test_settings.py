"""Models of settings other than the defaults: saved, loaded, predicted with and exported."""

import numpy as np
from PIL import Image

from tests.helpers import call, read_csv
from tests.tolerances import SCORES
from utils.detector import Detector

ARCH = "efficientnet_lite0"


def test_model_of_two_layers_averaged_gives_the_runs_scores(drawn_tree, run, tmp_path):
    words = ["--data_path", drawn_tree, "--class_name", "bolt", "--arch", ARCH]
    words += ["--layers", "layer2", "layer3", "--neighbourhood", "3"]
    words += ["--resize", "48", "--crop", "48", "--figures", "none"]
    done = run(*words, "--save_path", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / ARCH
    rows = [row for row in read_csv(folder / "scores.csv") if row["defect_type"] == "crack"]
    expected = [float(row["score"]) for row in rows]

    model = folder / "models/bolt.safetensors"
    images = drawn_tree / "bolt/test/crack"
    done = call("predict", "--model", model, images, "--output", tmp_path / "predicted")
    assert done.returncode == 0, done.stderr
    predicted = read_csv(tmp_path / "predicted/predictions.csv")
    np.testing.assert_allclose([float(row["score"]) for row in predicted], expected, rtol=SCORES)

    detector = Detector.load(model)
    scores = [detector.score(Image.open(path))[0] for path in sorted(images.iterdir())]
    np.testing.assert_allclose(scores, expected, rtol=SCORES)

    # the command refuses a graph whose scores differ by more than 1e-3
    done = call("export", "--model", model, "--onnx", tmp_path / "bolt.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bolt.onnx").exists()
