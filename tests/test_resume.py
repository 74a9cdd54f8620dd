"""Runs that find classes finished by an earlier one."""

import os
import shutil

import numpy as np
import pytest
import torch

import main
from tests.conftest import write_image
from tests.faults import outputs
from tests.test_main import start
from utils.padim import PaDiM


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
        ["--n_features", "50"],
        ["--precision", "bf16"],
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
    monkeypatch.setattr("utils.report.report.describe_class", fail)
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


def fail_to_fit(folder, monkeypatch, error):
    """Let the second class be fitted again, which fails."""

    def fit(*_):
        raise error

    (folder / "classes/weave.json").unlink()
    monkeypatch.setattr(PaDiM, "fit", fit)


LACKS = {
    "python": (MemoryError(), "memory is full (no more is given); lower --batch_size"),
    "numpy": (
        np._core._exceptions._ArrayMemoryError((10**12,), np.dtype(float)),
        "memory is full (Unable to allocate 7.28 TiB",
    ),
    "torch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 400 bytes.\nError code 12"
        ),
        "memory is full ([enforce fail at",
    ),
    "torch on Windows": (
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
        "memory is full (DefaultCPUAllocator: not enough memory",
    ),
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
        "memory is full (CUDA out of memory.",
    ),
    "device": (
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        "the device failed (CUDA error: an illegal memory access",
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_a_lack_of_the_machine_ends_in_one_line(run, command, folder, monkeypatch, name):
    error, expected = LACKS[name]
    before = (folder / "classes/bolt.json").read_bytes()
    fail_to_fit(folder, monkeypatch, error)
    done = run(*command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"main.py: error: {expected}" in line
    assert "classes finished so far" in line
    assert (folder / "classes/bolt.json").read_bytes() == before


def test_a_bug_keeps_its_traceback(run, command, folder, monkeypatch):
    fail_to_fit(folder, monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(*command)


def test_torch_names_full_memory_as_is_looked_for():
    with pytest.raises(RuntimeError) as lack:
        torch.empty(10**14)
    assert "memory is full (" in main.explain(lack.value)
