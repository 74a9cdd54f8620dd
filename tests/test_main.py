"""The experiment from image files to results, on a small synthetic set."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_limits

from datasets import demo
from tests.helpers import (
    MAIN,
    good_images,
    outputs,
    read_csv,
    read_rows,
    start,
    write_image,
)
from tests.naive_pipeline import Stopwatch, load_network, naive_run
from utils.evaluation import evaluate


def class_names(folder):
    return [row["class_name"] for row in read_rows(folder)]


def test_run_of_a_user_writes_all_results(experiment, tree, results_folder, tmp_path):
    done = start(*experiment, "--figures", "all", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = [".padim", "index.html", "metrics.csv", "metrics.json", "roc_curve.png"]
    files += ["scores.csv", "tables.md", "thresholds.csv"]
    for name in ("bolt", "weave"):
        files += [f"classes/{name}.json", f"models/{name}.safetensors"]
        images = list((tree / name / "test").rglob("*.png"))
        assert len(images) == 8
        files += [f"figures/{name}/{path.parent.name}_{path.stem}.jpg" for path in images]
    written = [str(p.relative_to(results_folder)) for p in results_folder.rglob("*") if p.is_file()]
    assert sorted(written) == sorted(files)
    rows = read_rows(results_folder)
    assert [(row["class_name"], row["n_train"], row["n_test"]) for row in rows] == [
        ("bolt", "5", "8"),
        ("weave", "5", "8"),
    ]
    assert all(float(row[f"seconds_{stage}"]) > 0 for row in rows for stage in ("fit", "score"))
    assert f"pixel ROCAUC: {float(rows[0]['pixel_auroc']):.3f}" in done.stdout
    assert "mean of 2 classes" in done.stdout
    assert f"results in {results_folder}" in done.stdout


def test_numbers_equal_those_of_the_naive_pipeline(run, tree, random_weights, tmp_path):
    weights = random_weights("resnet18")
    done = run(
        *("--data_path", tree, "--class_name", "weave", "--arch", "resnet18", "--weights", weights),
        *("--save_path", tmp_path / "out", "--figures", "none"),
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "resnet18"
    (row,) = read_rows(folder)
    network = load_network("resnet18", weights)
    arguments = tree / "weave", "resnet18", network, tmp_path / "naive", Stopwatch()
    with threadpool_limits(1):  # more threads than cores invert a hundred times as long
        naive = naive_run(*arguments, figures=False)
    assert float(row["image_auroc"]) == pytest.approx(naive.image, abs=1e-6)
    assert float(row["pixel_auroc"]) == pytest.approx(naive.pixel, abs=1e-6)
    # the scores beside the images' names are those of the metric
    scores = [(int(s["label"]), float(s["score"])) for s in read_csv(folder / "scores.csv")]
    pairs = [a > b for label, a in scores if label for other, b in scores if not other]
    assert len(pairs) == 12
    assert float(row["image_auroc"]) == pytest.approx(sum(pairs) / len(pairs))


def test_near_copies_are_noted_and_nothing_is_written_but_what_is_asked_for(
    run, experiment, results_folder, monkeypatch
):
    groups = [[0, 3], [1], [2], [4]]
    monkeypatch.setattr("utils.held_out.group_near_copies", lambda *_: groups)
    options = ("--class_name", "bolt", "--save-models", "none", "--figures", "2")
    done = run(*experiment, *options)
    assert done.returncode == 0, done.stderr
    line, *_ = [line for line in done.stdout.splitlines() if "nearly copies" in line]
    assert line.startswith("(training images that are nearly copies of another")
    assert ": 2, for example" in line
    assert "bolt/train/good/000.png; these are held out together" in line
    assert not (results_folder / "models").exists()
    # the first and the last test image
    figures = sorted(path.name for path in (results_folder / "figures/bolt").iterdir())
    assert figures == ["crack_000.jpg", "stain_002.jpg"]


def test_classes_without_masks_or_labels_are_scored_and_notes_are_everywhere(
    run, experiment, tree, results_folder
):
    shutil.rmtree(tree / "bolt/ground_truth")
    (tree / "bolt/train/good/0.heic").touch()
    test = tree / "weave/test"
    for path in (test / "good").iterdir():
        path.rename(test / path.name)
    for folder in ("good", "crack", "stain"):
        shutil.rmtree(test / folder)
    done = run(*experiment)
    assert done.returncode == 0, done.stderr
    bolt, weave = json.loads((results_folder / "metrics.json").read_text())["results"]
    assert bolt["metrics"]["image_auroc"]
    found = [*weave["metrics"].values(), bolt["metrics"]["pixel_auroc"]]
    assert found == [None] * len(found)
    assert "pixel ROCAUC: –" in done.stdout
    taken = "6 defective test images (crack 3, stain 3); 0 masks; 1 files ignored"
    begun = done.stdout.partition("ROCAUC")[0]
    assert taken in begun
    assert "(files among the images that are not read (.heic): " in begun
    assert "there is no ground_truth folder" in done.stdout
    scores = read_csv(results_folder / "scores.csv")[-2:]
    assert [(s["image"], s["defect_type"], s["label"]) for s in scores] == [
        ("000.png", "unlabelled", "-1"),
        ("001.png", "unlabelled", "-1"),
    ]
    assert all(float(s["score"]) > 0 for s in scores)
    assert (results_folder / "figures/weave/unlabelled_000.jpg").exists()
    pages = [(results_folder / name).read_text() for name in ("index.html", "tables.md")]
    for notes, words in (
        (bolt["notes"], "files among the images that are not read (.heic): "),
        (weave["notes"], "image metrics need labels"),
    ):
        assert sum(note.startswith(words) for note in notes) == 1
        assert f"({words}" in done.stdout
        assert all(words in page for page in pages)


def test_results_beside_images_that_are_not_square_are_no_images_of_the_next_run(
    run, tmp_path, random_weights
):
    for i, pixels in enumerate(good_images(6)):
        write_image(tmp_path / f"data/{'good' if i < 5 else 'bent'}/{i}.png", pixels)
    options = ["--arch", "resnet18", "--weights", random_weights("resnet18"), "--resize", "0"]
    options += ["--data_path", "data", "--save_path", "data", "--crop", "0"]
    assert run(*options).returncode == 0
    (row,) = read_rows(tmp_path / "data/resnet18")
    assert (row["class_name"], row["n_train"], row["n_test"]) == ("data", "4", "2")
    names = sorted(path.name for path in (tmp_path / "data/resnet18/figures/data").iterdir())
    assert names == ["bent_5.jpg", "good_2.jpg"]
    done = run(*options)
    assert "data is finished with these images and settings" in done.stdout
    assert "files ignored" not in done.stdout


@pytest.mark.filterwarnings("error")
def test_long_names_are_shortened(run, experiment, tree, results_folder):
    (tree / "bolt").rename(tree / ("b" * 240))
    name = tree / ("b" * 240) / "test/good/000.png"
    name.rename(name.with_stem("ä" * 124))
    done = run(*experiment, "--class_name", "b" * 240, "--figures", "all")
    assert done.returncode == 0, done.stderr
    assert len(list(results_folder.glob("figures/*/*.jpg"))) == 8
    assert len(list(results_folder.glob("models/*"))) == 1


def test_demo_has_its_data_its_network_and_a_folder_of_its_own(run, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "make_demo", lambda: tree)
    monkeypatch.setattr(demo, "TEXTURES", ("weave",))
    monkeypatch.setattr(demo, "OBJECTS", ("bolt",))
    done = run("--demo", "--figures", "none", "--resize", "72", "--crop", "64")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/demo/efficientnet_lite0"
    assert class_names(folder) == ["bolt", "weave"]
    assert "efficientnet_lite0, recommended on the demo set" in (folder / "tables.md").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--demo", "--data_path", "data"], "give either --data_path PATH"),
        (["--data_path", "data", "--n_features", "449"], "give 1 to 448"),
        (["--data_path", "data", "--class_name", "nut"], "nut"),
    ],
)
def test_mistake_is_refused_before_the_network_is_read(
    refused, tree, tmp_path, monkeypatch, options, expected
):
    monkeypatch.setattr("utils.backbone.load_network", lambda *_: pytest.fail("it is read"))
    assert expected in refused("--arch", "resnet18", *options)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("cause", ["bad image", "interrupt"])
def test_run_that_ends_in_its_second_class_reports_on_the_first(
    cause, run, experiment, tree, results_folder, monkeypatch
):
    def interrupt_weave(scored, has_masks, has_region):
        if (results_folder / "classes/bolt.json").exists():
            signal.raise_signal(signal.SIGINT)
        return evaluate(scored, has_masks, has_region)

    path = tree / "weave/test/good/001.png"
    if cause == "bad image":
        path.write_bytes(path.read_bytes()[:200])
        status, line = 2, f"main.py: error: cannot read image {path}: "
    else:
        monkeypatch.setattr("utils.evaluation.evaluate", interrupt_weave)
        status, line = 130, "interrupted; the classes finished so far are in the results\n"
    done = run(*experiment)
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert class_names(results_folder) == ["bolt"]
    found = outputs(results_folder)
    assert {"metrics.json", "tables.md", "roc_curve.png", "figures/bolt/crack_000.jpg"} <= {*found}
    page = "\n".join(found["index.html"])
    assert "figures/bolt/crack_000.jpg" in page
    assert "class-weave" not in page


def test_importing_the_modules_does_nothing(tmp_path):
    names = [
        str(path.relative_to(MAIN.parent).with_suffix("")).replace("/", ".")
        for folder in ("datasets", "utils")
        for path in (MAIN.parent / folder).rglob("*.py")
    ]
    assert len(names) > 30
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"import main, {', '.join(names)}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent), "MPLCONFIGDIR": str(tmp_path / "mpl")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"mpl"}
