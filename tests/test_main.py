"""The real command on a small tree; where a process of its own matters, as a user starts it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.detector import Detector

MAIN = Path(__file__).resolve().parent.parent / "main.py"


def start(*arguments, cwd, env=None):
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, MAIN, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def read_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def metrics(folder):
    rows = read_rows(folder)
    assert rows
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture
def experiment(tree, random_weights, tmp_path):
    """Arguments of a small run."""
    return [
        *("--data_path", tree, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", tmp_path / "out"),
    ]


def test_run_writes_all_it_promises(experiment, tree, tmp_path):
    done = start(*experiment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "resnet18"
    assert sorted(p.name for p in folder.iterdir()) == [
        "classes",
        "figures",
        "index.html",
        "metrics.csv",
        "metrics.json",
        "models",
        "roc_curve.png",
        "scores.csv",
        "tables.md",
        "thresholds.csv",
    ]
    models = ["bolt.safetensors", "weave.safetensors"]
    assert sorted(p.name for p in (folder / "models").iterdir()) == models
    rows = read_rows(folder)
    assert [(r["class_name"], r["n_train"], r["n_test"]) for r in rows] == [
        ("bolt", "5", "8"),
        ("weave", "5", "8"),
    ]
    assert all(float(row[f"seconds_{stage}"]) > 0 for row in rows for stage in ("fit", "score"))
    for class_name in ("bolt", "weave"):
        expected = {
            f"{p.parent.name}_{p.stem}.png" for p in (tree / class_name / "test").rglob("*.png")
        }
        assert len(expected) == 8
        assert {p.name for p in (folder / "figures" / class_name).iterdir()} == expected
    assert done.stdout.count("image ROCAUC: ") == 2
    assert f"pixel ROCAUC: {float(rows[0]['pixel_auroc']):.3f}" in done.stdout
    assert "mean of 2 classes" in done.stdout


def test_a_run_imports_no_compiler(experiment, tmp_path):
    """torchvision would, and so would random numbers on the meta device."""
    done = start(*experiment, cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "torchvision.models"} <= imported
    assert not {"torch._dynamo", "sympy"} & imported


def test_settings_say_how_to_repeat_the_run(run, experiment, tmp_path):
    run(*experiment, "--figures", "none")
    content = json.loads((tmp_path / "out" / "resnet18" / "metrics.json").read_text())
    settings = content["settings"]
    assert settings["arguments"]["seed"] == 1024
    assert settings["arch"] == "resnet18"
    assert settings["command"].startswith("python main.py --data_path")
    assert settings["channels_sha256"].startswith("8baffeca")
    assert len(settings["weights_sha256"]) == 64
    assert settings["versions"]["torch"]
    assert settings["device"]
    assert settings["peak_memory_bytes"]["host"] > 1e8
    assert [row["class_name"] for row in content["results"]] == ["bolt", "weave"]


def test_several_seeds_are_the_single_ones(run, experiment, tmp_path):
    folder = tmp_path / "out" / "resnet18"
    options = [*experiment, "--class_name", "bolt", "--figures", "none"]
    done = run(*options, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    both = metrics(folder)
    assert [row["seed"] for row in both] == ["1024", "1025"]
    assert " ± " in done.stdout
    run(*options, "--seed", "1025")
    assert metrics(folder) == both[1:]


def test_number_of_figures_and_options_with_hyphens_are_taken(run, experiment, tmp_path):
    options = ["--batch-size", "3", "--num-workers", "0", "--figures", "2", "--device", "cpu"]
    done = run(*experiment, *options)
    assert done.returncode == 0, done.stderr
    # two figures: the first and the last test image
    figures = tmp_path / "out" / "resnet18" / "figures"
    assert sorted(p.name for p in (figures / "bolt").iterdir()) == [
        "crack_000.png",
        "stain_002.png",
    ]


def test_without_masks_only_pixel_metrics_are_left_empty(run, experiment, tree, tmp_path):
    shutil.rmtree(tree / "bolt" / "ground_truth")
    done = run(*experiment, "--figures", "1")
    assert done.returncode == 0, done.stderr
    bolt, weave = read_rows(tmp_path / "out" / "resnet18")
    assert bolt["image_auroc"]
    assert not bolt["pixel_auroc"]
    assert weave["pixel_auroc"]
    assert "pixel ROCAUC: –" in done.stdout
    assert "there is no ground_truth folder" in done.stdout
    figures = tmp_path / "out" / "resnet18" / "figures"
    widths = [Image.open(next((figures / name).iterdir())).width for name in ("bolt", "weave")]
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("kept", "count"), [("good", "got 2 normal and 0 anomalous"), ("crack", "0 normal and 3")]
)
def test_metrics_that_need_both_kinds_are_left_empty_with_a_reason(
    run, experiment, tree, tmp_path, kept, count
):
    for folder in (tree / "bolt" / "test").iterdir():
        if folder.name != kept:
            shutil.rmtree(folder)
    done = run(*experiment, "--figures", "none")
    assert done.returncode == 0, done.stderr
    bolt, weave = read_rows(tmp_path / "out" / "resnet18")
    assert not bolt["image_auroc"]
    assert bool(bolt["pixel_auroc"]) == (kept == "crack")
    assert weave["image_auroc"]
    assert count in done.stdout
    notes = json.loads((tmp_path / "out" / "resnet18" / "metrics.json").read_text())["results"]
    assert count in notes[0]["notes"][0]


def test_without_labels_only_scores_are_given(run, experiment, tree, tmp_path):
    test = tree / "bolt" / "test"
    for path in (test / "good").iterdir():
        path.rename(test / path.name)
    for folder in ("good", "crack", "stain"):
        shutil.rmtree(test / folder)
    done = run(*experiment, "--class_name", "bolt")
    assert done.returncode == 0, done.stderr
    assert "image metrics need labels" in done.stdout
    folder = tmp_path / "out" / "resnet18"
    (row,) = read_rows(folder)
    assert not row["image_auroc"]
    assert not row["pixel_auroc"]
    with (folder / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert [(s["image"], s["defect_type"], s["label"]) for s in scores] == [
        ("000.png", "unlabelled", "-1"),
        ("001.png", "unlabelled", "-1"),
    ]
    assert all(float(s["score"]) > 0 for s in scores)
    assert (folder / "figures" / "bolt" / "unlabelled_000.png").exists()


def test_a_folder_of_own_images_that_are_not_square_is_run(run, tree, random_weights, tmp_path):
    folder = tmp_path / "my parts"
    shutil.copytree(tree / "weave" / "train" / "good", folder / "good")
    shutil.copytree(tree / "weave" / "test" / "crack", folder / "crack")
    shutil.copytree(tree / "weave" / "ground_truth", folder / "ground_truth")
    done = run(
        *("--data_path", folder, "--arch", "resnet18", "--weights", random_weights("resnet18")),
        *("--save_path", tmp_path / "out", "--resize", "0", "--crop", "0"),
    )
    assert done.returncode == 0, done.stderr
    results = tmp_path / "out" / "resnet18"
    (row,) = read_rows(results)
    assert (row["class_name"], row["n_train"], row["n_test"]) == ("my parts", "4", "4")
    assert row["image_auroc"]
    assert row["pixel_auroc"]
    names = sorted(path.name for path in (results / "figures" / "my parts").iterdir())
    assert names == ["crack_000.png", "crack_001.png", "crack_002.png", "good_002.png"]


@pytest.mark.parametrize("option", [("--resize", "240"), ("--crop", "256"), ("--n_features", "50")])
def test_sizes_change_the_scores(run, experiment, tmp_path, option):
    path = tmp_path / "out" / "resnet18" / "scores.csv"
    found = []
    for options in ((), option):
        done = run(*experiment, "--class_name", "bolt", "--figures", "none", *options)
        assert done.returncode == 0, done.stderr
        found.append(path.read_text())
    assert found[0] != found[1]


@pytest.mark.parametrize("count", ["0", "449"])
def test_channels_that_cannot_be_drawn_are_refused(refused, experiment, count):
    line = refused(*experiment, "--n_features", count)
    assert "--n_features" in line
    assert ("is not a whole number >= 1" if count == "0" else "give 1 to 448") in line


def read_scores(folder):
    with (folder / "scores.csv").open() as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_changes_scores_a_little_and_stays_with_the_model(
    run, refused, experiment, tree, random_weights, tmp_path, precision, tolerance
):
    folder, found = tmp_path / "out" / "resnet18", []
    for name in ("float32", precision):
        options = ("--class_name", "bolt", "--figures", "none", "--precision", name)
        done = run(*experiment, *options)
        assert done.returncode == 0, done.stderr
        found.append(read_scores(folder))
    whole, half = found
    assert 1e-6 < np.abs(half / whole - 1).max() < tolerance
    # bfloat16 rounds to 1 in 256, and other batches in another order
    path, weights = folder / "models/bolt.safetensors", random_weights("resnet18")
    detector = Detector.load(path, weights)
    assert detector.model.precision == detector.extractor.precision == precision
    score, _ = detector.score(Image.open(tree / "bolt/test/crack/000.png").convert("RGB"))
    assert score == pytest.approx(half[0], rel=1e-3)
    line = refused("export", "--model", path, "--weights", weights, "--onnx", "bolt.onnx")
    assert f"the model was fitted with --precision {precision}" in line


def test_scores_rank_the_images_as_the_metric_says(run, experiment, tmp_path):
    done = run(*experiment, "--class_name", "weave", "--figures", "none")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "resnet18"
    with (folder / "scores.csv").open() as file:
        scores = [(int(row["label"]), float(row["score"])) for row in csv.DictReader(file)]
    assert len(scores) == 8
    pairs = [a > b for label, a in scores if label for other, b in scores if not other]
    (row,) = read_rows(folder)
    assert float(row["image_auroc"]) == pytest.approx(sum(pairs) / len(pairs))


def test_a_bad_image_ends_the_run_but_not_the_finished_class(refused, experiment, tree, tmp_path):
    path = tree / "weave" / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    line = refused(*experiment, "--figures", "1")
    assert f"cannot read image {path}" in line
    folder = tmp_path / "out" / "resnet18"
    assert [row["class_name"] for row in read_rows(folder)] == ["bolt"]
    assert (folder / "roc_curve.png").exists()
    assert (folder / "metrics.json").exists()
    assert list((folder / "figures" / "bolt").iterdir())


def test_interrupt_ends_in_one_line(experiment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, MAIN, *map(str, experiment)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("image ROCAUC"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines() == ["interrupted; the classes finished so far are in the results"]


def test_numbers_equal_the_naive_method_on_the_same_tree(run, tree, random_weights, tmp_path):
    """Whole pipeline, image files to metrics.csv, against the slow copy."""
    from tests.naive_pipeline import Stopwatch, load_network, naive_run

    weights = random_weights("resnet18")
    done = run(
        *("--data_path", tree, "--class_name", "bolt", "--arch", "resnet18", "--weights", weights),
        *("--save_path", tmp_path / "out", "--figures", "none"),
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "out" / "resnet18")
    network, seconds = load_network("resnet18", weights), Stopwatch()
    naive = naive_run(tree / "bolt", "resnet18", network, tmp_path / "naive", seconds)
    assert float(row["image_auroc"]) == pytest.approx(naive.image, abs=1e-6)
    assert float(row["pixel_auroc"]) == pytest.approx(naive.pixel, abs=1e-6)
    assert len(list((tmp_path / "naive" / "bolt").iterdir())) == int(row["n_test"])


def test_help_is_there_at_once(tmp_path):
    began = time.perf_counter()
    done = start("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--data_path PATH, --data-path PATH" in done.stdout
    assert time.perf_counter() - began < 20
    assert list(tmp_path.iterdir()) == []


def test_importing_the_modules_does_nothing(tmp_path):
    names = [
        str(path.relative_to(MAIN.parent).with_suffix("")).replace("/", ".")
        for folder in ("datasets", "utils")
        for path in (MAIN.parent / folder).glob("*.py")
    ]
    assert len(names) > 8
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"import main, {', '.join(names)}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent), "MPLCONFIGDIR": str(tmp_path / "mpl")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "mpl"] == []


@pytest.mark.parametrize("given", [[], ["--demo", "--data_path", "data"]])
def test_exactly_one_of_data_path_and_demo_is_needed(refused, given):
    assert "give either --data_path PATH" in refused(*given)


def test_a_device_that_is_not_there_is_refused(refused, experiment, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    line = refused(*experiment, "--device", "cuda")
    assert "--device cuda is not on this machine; choose from auto, cpu" in line


def test_classes_of_mvtec_that_are_missing_are_named(refused, tree):
    line = refused("--data_path", tree, "--arch", "resnet18")
    assert "lacks bottle, cable, capsule" in line
    assert "it holds bolt, weave: choose from these with --class_name" in line


def test_a_failed_download_names_the_ways_out(refused, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    line = refused("--data_path", tree, "--class_name", "bolt", "--arch", "resnet18")
    assert "cannot download ResNet18_Weights.IMAGENET1K_V1" in line
    assert "--weights FILE" in line
    assert "--arch efficientnet_lite0" in line
