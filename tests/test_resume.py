"""Runs that find classes finished by an earlier one."""

import os
import shutil

import pytest

from tests.conftest import write_image
from tests.faults import outputs
from tests.test_main import start


def arguments(data_path, random_weights, save_path):
    """Of a run over two classes, with a figure and a model of each."""
    return [
        *("--data_path", data_path, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", save_path, "--figures", "1"),
    ]


@pytest.fixture(scope="module")
def finished(drawn_tree, random_weights, tmp_path_factory):
    """The folder of a finished run on drawn_tree."""
    folder = tmp_path_factory.mktemp("finished")
    done = start(*arguments(drawn_tree, random_weights, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(tree, random_weights, finished, tmp_path):
    """Arguments of the same run again; the copy of the tree has the times of the original."""
    shutil.copytree(finished, tmp_path / "out")
    return arguments(tree, random_weights, tmp_path / "out")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "resnet18"


def test_second_run_fits_nothing_and_changes_nothing(run, command, folder):
    before, numbers = outputs(folder), (folder / "metrics.csv").read_bytes()
    page = (folder / "index.html").read_text().count("<img")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    for class_name in ("bolt", "weave"):
        assert f"{class_name} is finished with these images and settings" in done.stdout
    assert "ROCAUC: " not in done.stdout
    assert outputs(folder) == before
    assert (folder / "metrics.csv").read_bytes() == numbers
    assert (folder / "index.html").read_text().count("<img") == page


def test_run_goes_on_behind_the_finished_class(run, command, folder, tree):
    undisturbed = outputs(folder)
    shutil.rmtree(folder)
    # an image of the second class cannot be read: the first one is finished
    path = tree / "weave/test/good/001.png"
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:100])
    assert run(*command).returncode == 2
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = run(*command)
    assert "bolt is finished" in done.stdout
    assert "weave is finished" not in done.stdout
    assert outputs(folder) == undisturbed


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", "7"],
        ["--seeds", "2"],
        ["--crop", "192"],
        ["--resize", "240"],
        ["--figures", "2"],
        ["--target_fpr", "0.2"],
        ["--save_dtype", "float16"],
        ["--save_models", "none"],
        ["--force"],
    ],
)
def test_other_settings_fit_again(run, command, options):
    command = [*command, "--class_name", "bolt"]
    assert "finished" not in run(*command, *options).stdout


def test_changed_image_fits_its_class_again(run, command, tree, folder):
    path = tree / "weave/train/good/000.png"
    os.utime(path, ns=(1, 1))
    done = run(*command)
    assert "bolt is finished" in done.stdout
    assert "weave is finished" not in done.stdout


def test_other_weights_fit_again(run, command, random_weights, tmp_path):
    import torch

    state_dict = torch.load(random_weights("resnet18"), weights_only=True)
    state_dict["conv1.weight"] += 0.01
    torch.save(state_dict, tmp_path / "other.pth")
    assert "finished" not in run(*command, "--weights", tmp_path / "other.pth").stdout


@pytest.mark.parametrize("name", ["models/bolt.safetensors", "figures/bolt/crack_000.png"])
def test_class_of_which_a_file_is_gone_is_fitted_again(run, command, folder, name):
    (folder / name).unlink()
    done = run(*command)
    assert "bolt is finished" not in done.stdout
    assert "weave is finished" in done.stdout
    assert (folder / name).is_file()


def change(record):
    """Another score, everything else as it was."""
    return record.replace(b'\\"good\\", 0, ', b'\\"good\\", 0, 1', 1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "damage",
    [
        *(lambda record: b"", lambda record: b"{}", lambda record: record[:-9]),
        *(lambda record: b"\xff\xfe", lambda record: b"[" * 100_000, change),
        lambda record: b'{"fingerprint": 3}',  # of other settings, which is no damage
    ],
    ids=["empty", "nothing", "truncated", "no text", "nested", "a score", "other settings"],
)
def test_damaged_record_is_said_and_its_class_fitted_again(run, command, folder, damage, request):
    before = outputs(folder)
    path = folder / "classes/bolt.json"
    record = path.read_bytes()
    assert damage(record) != record
    path.write_bytes(damage(record))
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "weave is finished" in done.stdout
    said = "classes/bolt.json is damaged" in done.stdout
    assert said == ("other settings" not in request.node.name)
    assert outputs(folder) == before


def test_class_that_other_settings_began_to_replace_is_not_taken_for_finished(
    run, command, folder, monkeypatch
):
    command = [*command, "--class_name", "bolt"]

    def fail(*_):
        raise OSError("disk full")

    # the model of the other settings is written, their figures are not
    monkeypatch.setattr("utils.report.describe_class", fail)
    model = (folder / "models/bolt.safetensors").read_bytes()
    assert run(*command, "--seed", "7").returncode == 2
    assert (folder / "models/bolt.safetensors").read_bytes() != model
    monkeypatch.undo()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "finished" not in done.stdout
    assert (folder / "models/bolt.safetensors").read_bytes() == model


def test_new_image_is_part_of_the_fingerprint(run, command, tree):
    import numpy as np

    command = [*command, "--class_name", "bolt"]
    write_image(tree / "bolt/train/good/999.png", np.zeros((48, 48, 3), dtype=np.uint8))
    assert "finished" not in run(*command).stdout
