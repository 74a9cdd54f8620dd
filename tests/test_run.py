"""A second run in the folder of a finished one: what is fitted again, and what is kept."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tests.helpers import call, experiment_options, outputs, read_csv, write_image
from utils.report.figures import Figures
from utils.settings import Experiment, affecting_results
from utils.system.errors import UserError

FINISHED = "{} is finished with these images and settings (--force fits it again)"


@pytest.fixture(scope="module")
def finished(drawn_tree, random_weights, tmp_path_factory):
    """The folder of a finished run on drawn_tree."""
    folder = tmp_path_factory.mktemp("finished")
    options = experiment_options(drawn_tree, random_weights("resnet18"), folder)
    done = call(*options, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(experiment, finished, tmp_path):
    """The options of that run in a copy of its folder. Copied images keep their times."""
    shutil.copytree(finished, tmp_path / "out")
    return [*experiment, "--device", "cpu"]


def fitted(done):
    """The classes that a command has fitted, and not found finished."""
    assert done.returncode == 0, done.stderr
    return [name for name in ("bolt", "weave") if FINISHED.format(name) not in done.stdout]


def test_second_run_fits_nothing_and_changes_nothing(run, command, results_folder):
    before, rows = outputs(results_folder), (results_folder / "metrics.csv").read_bytes()
    done = run(*command)
    assert fitted(done) == []
    assert "ROCAUC: " not in done.stdout
    assert outputs(results_folder) == before
    # the seconds too
    assert (results_folder / "metrics.csv").read_bytes() == rows


def test_run_goes_on_with_the_class_that_is_not_finished(run, command, results_folder):
    before = outputs(results_folder)
    (results_folder / "classes/bolt.json").unlink()
    assert fitted(run(*command)) == ["bolt"]
    # the report has the classes in their order again
    assert outputs(results_folder) == before


def test_runs_of_single_classes_leave_a_report_of_all(run, command, results_folder, tmp_path):
    before = outputs(results_folder)
    moved = [*command, "--save_path", tmp_path / "array"]
    for name in ("weave", "bolt"):
        assert name in fitted(run(*moved, "--class_name", name))
    assert outputs(tmp_path / "array/resnet18") == before


def test_classes_of_other_settings_and_other_data_are_not_in_the_report(
    run, command, results_folder, tree
):
    done = run(*command, "--class_name", "weave", "--seed", "7")
    assert "settings of this report: models/bolt.safetensors.\n" in done.stdout
    assert class_names(results_folder) == ["weave"]
    other = shutil.copytree(tree, tree.with_name("other"))
    (other / "bolt").rename(other / "nut")
    run(*command, "--data_path", other, "--class_name", "nut")
    assert class_names(results_folder) == ["nut"]


def test_class_whose_images_have_changed_is_not_in_the_report_of_an_interrupted_run(
    run, command, results_folder, tree, monkeypatch
):
    for name in ("bolt", "weave"):
        os.utime(tree / name / "train/good/000.png", ns=(1, 1))
    monkeypatch.setattr("utils.report.report.draw_figures", interrupt_at_weave)
    assert run(*command).returncode == 130
    assert class_names(results_folder) == ["bolt"]


def interrupt_at_weave(folder, test, *_):
    if test.class_name == "weave":
        raise KeyboardInterrupt
    return Figures({}, ["image"], None, [])


def test_a_row_of_metrics_is_there_when_its_class_is_finished(
    run, command, results_folder, monkeypatch
):
    (results_folder / "classes/weave.json").unlink()
    seen = []

    def look(*_):
        seen.append(class_names(results_folder))
        return Figures({}, ["image"], None, [])

    monkeypatch.setattr("utils.report.report.draw_figures", look)
    run(*command)
    run(*command, "--force")
    assert seen == [["bolt"], [], ["bolt"]]


def class_names(folder):
    path = folder / "metrics.csv"
    return [row["class_name"] for row in read_csv(path)] if path.exists() else []


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--seed", "7"], "scores.csv"),
        (["--crop", "56"], "scores.csv"),
        (["--resize", "80"], "scores.csv"),
        (["--n_features", "all"], "scores.csv"),
        (["--layers", "layer2", "layer3"], "scores.csv"),
        (["--neighbourhood", "3"], "scores.csv"),
        (["--precision", "bf16"], "scores.csv"),
        (["--invert_masks"], "metrics.csv"),
        (["--target_fpr", "0.3"], "thresholds.csv"),
        (["--save_dtype", "float16"], "models/bolt.safetensors"),
        (["--save_models", "none"], None),
        (["--exif"], None),
        (["--bit_depth", "12"], None),
        (["--normal", "good"], None),
        (["--figures", "2"], "figures/bolt/stain_002.jpg"),
    ],
)
def test_other_settings_fit_again_and_change_the_results(
    run, command, results_folder, options, changed
):
    before = read_bolt(results_folder / changed) if changed else None
    done = run(*command, "--class_name", "bolt", *options)
    assert FINISHED.format("bolt") not in done.stdout
    assert not changed or read_bolt(results_folder / changed) != before


def read_bolt(path):
    """The rows of the first class in a CSV file, or the content of another file."""
    if path.suffix == ".csv":
        return [row for row in read_csv(path) if row["class_name"] == "bolt"]
    return path.read_bytes() if path.exists() else None


def test_force_fits_again_with_the_same_results(run, command, results_folder):
    before = outputs(results_folder)
    assert fitted(run(*command, "--force")) == ["bolt", "weave"]
    assert outputs(results_folder) == before


def test_options_without_effect_on_results_are_not_part_of_the_fingerprint(run, command, tree):
    moved = tree.rename(tree.with_name("moved"))
    assert fitted(run(*command, "--data_path", moved, "--num_workers", "0")) == []
    unaffecting = {"num_workers", "data_path", "save_path", "force"}
    assert unaffecting.isdisjoint(affecting_results(Experiment()))


def test_changed_and_new_images_fit_their_class_again(run, command, tree):
    os.utime(tree / "weave/train/good/000.png", ns=(1, 1))
    assert fitted(run(*command)) == ["weave"]
    write_image(tree / "bolt/train/good/999.png", np.zeros((48, 48, 3), dtype=np.uint8))
    assert fitted(run(*command)) == ["bolt"]
    (tree / "weave/train/good/0.heic").touch()  # the note on it belongs to the results
    assert fitted(run(*command)) == ["weave"]


def test_other_weights_fit_again_and_a_copy_of_the_same_does_not(
    run, command, random_weights, tmp_path
):
    path = tmp_path / "other.pth"
    shutil.copy(random_weights("resnet18"), path)
    assert fitted(run(*command, "--weights", path)) == []
    state_dict = torch.load(path, weights_only=True)
    state_dict["conv1.weight"] += 0.01
    torch.save(state_dict, path)
    assert fitted(run(*command, "--weights", path)) == ["bolt", "weave"]


def test_classes_that_lack_a_file_are_fitted_again(run, command, results_folder):
    before = outputs(results_folder)
    (results_folder / "models/bolt.safetensors").unlink()
    (results_folder / "figures/weave/crack_000.jpg").unlink()
    assert fitted(run(*command)) == ["bolt", "weave"]
    assert outputs(results_folder) == before


def test_class_that_another_run_began_to_replace_is_fitted_again(
    run, command, results_folder, monkeypatch
):
    before = outputs(results_folder)

    def fail(*_):
        raise UserError("disk full")

    # the other run has replaced the model but not the figures
    with monkeypatch.context() as patch:
        patch.setattr("utils.report.report.draw_figures", fail)
        assert run(*command, "--seed", "7").returncode == 2
    model = (results_folder / "models/bolt.safetensors").read_bytes()
    assert model != before["models/bolt.safetensors"]
    assert fitted(run(*command)) == ["bolt"]
    assert outputs(results_folder) == before


def test_settings_say_how_to_repeat_the_run(command, results_folder, random_weights):
    settings = json.loads((results_folder / "metrics.json").read_text())["settings"]
    assert settings["command"].startswith("python main.py --data_path /")
    assert settings["arguments"]["seed"] == 1024
    assert settings["arguments"]["weights"] == str(random_weights("resnet18"))
    assert settings["arch"] == "resnet18"
    # the list of upstream's channels
    assert settings["channels_sha256"].startswith("8baffeca")
    assert len(settings["weights_sha256"]) == 64
    assert settings["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert settings["device"] == "cpu (1 threads)"
    assert settings["processes"] == 1
    assert settings["peak_memory_bytes"]["host"] > 1e8
