"""A second run in the folder of a finished one: what is fitted again, and what is kept."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from datasets.dataset import load_all
from main import fill_in, run_experiment
from tests.helpers import call, experiment_options, outputs, read_csv, write_image
from tests.records import make_record
from utils.commands.command_line import parse_command_line
from utils.padim import PaDiM
from utils.report.finished import write_record
from utils.report.run import RunReport
from utils.settings import Experiment, affecting_results


@pytest.fixture(scope="module")
def finished(drawn_tree, random_weights, tmp_path_factory):
    """The folder of a finished run on drawn_tree."""
    folder = tmp_path_factory.mktemp("finished")
    done = call(*experiment_options(drawn_tree, random_weights("resnet18"), folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(experiment, finished, tmp_path):
    """The options of that run in a copy of its folder. Copied images keep their times."""
    shutil.copytree(finished, tmp_path / "out")
    return experiment


@pytest.fixture
def begin(command):
    """A function that begins another run, with changed settings; the classes it has to fit."""
    settings = fill_in(parse_command_line(list(map(str, command)), "", run_experiment).settings)

    def begin(**changes):
        changed = replace(settings, **changes)
        return [test.class_name for _, test in RunReport(changed, load_all(changed)).unfinished]

    assert begin() == []  # from now on the folder is about the copied images
    return begin


def class_names(folder):
    path = folder / "metrics.csv"
    return [row["class_name"] for row in read_csv(path)] if path.exists() else []


@pytest.mark.usefixtures("begin")
def test_runs_of_single_classes_leave_a_report_of_all(run, command, results_folder):
    before = outputs(results_folder)
    (results_folder / "models/bolt.safetensors").unlink()
    done = run(*command, "--class_name", "bolt")
    assert done.returncode == 0, done.stderr
    assert "bolt is finished" not in done.stdout
    # the classes in their order again
    assert outputs(results_folder) == before


@pytest.mark.parametrize("changes", [{"seed": 7}, {"layers": ["layer1"]}, {"force": True}])
def test_other_settings_fit_again(begin, results_folder, changes):
    assert begin(**changes) == ["bolt", "weave"]
    assert class_names(results_folder) == []  # of those settings none is finished


def test_options_without_effect_on_results_fit_nothing_again(begin, tree, random_weights, tmp_path):
    names = {field.name for field in fields(Experiment)}
    assert names - affecting_results(Experiment()).keys() == {
        *("data_path", "class_name", "demo", "preset", "weights", "region", "save_path", "force"),
        "num_workers",
    }
    moved = tree.rename(tree.with_name("moved"))
    weights = shutil.copy(random_weights("resnet18"), tmp_path / "weights.pth")
    assert begin(data_path=moved, num_workers=0, weights=weights) == []
    state_dict = torch.load(weights, weights_only=True)
    state_dict["conv1.weight"] += 0.01
    torch.save(state_dict, weights)
    assert begin(data_path=moved, weights=weights) == ["bolt", "weave"]


@pytest.mark.parametrize(
    "name",
    [
        *("train/good/000.png", "ground_truth/crack/000_mask.png"),  # changed
        *("train/good/999.png", "train/good/0.heic"),  # new; the second is noted
    ],
)
def test_class_with_a_changed_or_new_file_is_fitted_again(begin, tree, results_folder, name):
    shutil.copy(tree / "weave/test/good/000.png", tree / "weave" / name)
    assert begin() == ["weave"]
    assert class_names(results_folder) == ["bolt"]  # also if the run is interrupted now


@pytest.mark.parametrize(
    "name", ["models/weave.safetensors", "figures/weave/crack_000.jpg", "classes/weave.json"]
)
def test_class_that_lacks_a_file_is_fitted_again(begin, results_folder, name):
    (results_folder / name).unlink()
    assert begin() == ["weave"]


def test_classes_of_other_data_are_not_in_the_report(begin, tree, results_folder):
    write_record(results_folder, make_record("nut", settings_sha256="of other data"))
    other = shutil.copytree(tree, tree.with_name("other"))
    write_image(other / "bolt/train/good/000.png", np.zeros((48, 48, 3), dtype=np.uint8))
    assert begin(data_path=other) == ["bolt"]
    assert class_names(results_folder) == ["weave"]


def test_a_model_is_what_the_options_ask_for(run, experiment, results_folder, random_weights):
    done = run(
        *(*experiment, "--class_name", "bolt", "--figures", "none", "--resize", "56"),
        *("--crop", "48", "--seed", "7", "--n_features", "40", "--layers", "layer2", "layer3"),
        *("--neighbourhood", "3", "--precision", "bf16", "--target_fpr", "0.3"),
        *("--pixel_fpr", "0.02", "--shrinkage", "0.1", "--save_dtype", "float16", "--exif"),
    )
    assert done.returncode == 0, done.stderr
    path = results_folder / "models/bolt.safetensors"
    model = PaDiM.load(path, random_weights("resnet18"), "cpu")
    assert model.preprocessing == (56, 48, True, 16, 0)
    channels = model.extractor.channels
    assert (channels.of_layers[0], len(channels)) == ((), 40)
    assert (model.extractor.neighbourhood, model.extractor.precision) == (3, "bf16")
    assert (model.thresholds.target_fpr, model.thresholds.pixel_fpr) == (0.3, 0.02)
    assert model.gaussians.shrinkage == 0.1
    assert path.stat().st_size < 1e6


def test_settings_say_how_to_repeat_the_run(finished, random_weights):
    settings = json.loads((finished / "resnet18/metrics.json").read_text())["settings"]
    assert settings["command"].startswith("python main.py --data_path /")
    assert settings["arguments"]["seed"] == 1024
    assert settings["arguments"]["weights"] == str(random_weights("resnet18"))
    assert settings["arch"] == "resnet18"
    # the list of upstream's channels
    assert settings["channels_sha256"].startswith("8baffeca")
    assert len(settings["weights_sha256"]) == 64
    assert settings["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert settings["device"] == f"cpu ({torch.get_num_threads()} threads)"
    assert settings["processes"] == 1
    assert settings["peak_memory_bytes"]["host"] > 1e8
