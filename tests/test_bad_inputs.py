"""Bad inputs end in one line that says what is wrong; odd but legitimate ones change no number.

The cases of the catalogue, bad_inputs.py, run in this process, on small images.
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.bad_inputs import (
    MASK,
    REFUSED,
    ROOT,
    SMALL_FILES,
    VALUES,
    matches,
    spoil,
    words,
    write,
)
from tests.faults import run_main
from tests.helpers import good_images, write_image
from tests.tolerances import SCORES

# a warning would be one more line on stderr
pytestmark = [pytest.mark.bad_input, pytest.mark.filterwarnings("error")]
NOBODY = 65534  # a user without rights


@pytest.fixture(scope="module")
def weights(random_weights, tmp_path_factory):
    """The part of the state dict that is used, a quarter of the file."""
    state_dict = torch.load(random_weights("resnet18"), weights_only=True)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({k: v for k, v in state_dict.items() if k[:6] not in ("layer4", "fc.wei")}, path)
    return path


@pytest.fixture(scope="module")
def model(drawn_tree, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    data = ["--data_path", drawn_tree, "--save_path", folder, "--weights", weights]
    run_main(*words("run"), *data, "--save_models", "all")
    return folder / "resnet18/models/bolt.safetensors"


@pytest.fixture
def place(tmp_path, drawn_tree, weights, model, monkeypatch):
    """A working folder with good input for all commands."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_tree / "bolt", "data/bolt")
    (pixels,) = good_images(1, (64, 64))
    write_image(Path("new/good.png"), pixels)
    Path("weights.pth").symlink_to(weights)
    shutil.copy(model, "bolt.safetensors")
    for pattern in ("README.md", "results/README.md", "results/**/*.csv", "results/**/*.json"):
        for path in ROOT.glob(pattern):
            write(path.relative_to(ROOT), path.read_bytes())
    monkeypatch.setattr("utils.report.tables.ROOT", tmp_path)
    # not every machine has room for the archive of MVTec AD
    free = shutil.disk_usage(tmp_path)._replace(free=10**11)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)


def snapshot(folder="."):
    """The bytes of all files below a folder, by path relative to it."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in paths}


def assert_refused(done, message):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert matches(message, done.stderr), done.stderr


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_and_leaves_no_file(case, place, run):
    command, message, *steps = case
    spoil(*steps)
    before = snapshot()
    assert_refused(run(*words(command)), message)
    assert snapshot() == before
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(("command", "message", "options"), VALUES)
def test_values_that_options_cannot_have_are_refused(command, message, options, refused):
    for option in options.split():
        line = refused(*words(f"{command} {option}"))
        assert matches(f"argument {option.partition('=')[0]}…{message}", line), line


@pytest.mark.parametrize("command", ["run", "predict", "check"])
def test_commands_of_the_catalogue_succeed_on_good_input(command, place, run):
    done = run(*words(command))
    assert (done.returncode, done.stderr) == (0, "")


def read_rows(path):
    with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def rename_all():
    """Give the test images odd names, and add files and folders that are no images."""
    folder = Path("data/bolt")
    names = ["{a}.b", "it's", 'say "x"', "-r", "new\nline", os.fsdecode(b"\xff"), "*?[a]", "größe"]
    for name, path in zip(names, sorted((folder / "test").rglob("*.png")), strict=True):
        mask = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask.exists():
            mask.rename(mask.with_name(f"{name}_mask.png"))
        path.rename(path.with_name(f"{name}.png"))
    for name in ("train/good/.hidden.png", "train/good/@eaDir/000.png", "test/good/notes.txt"):
        write(folder / name, b"no image")
    for name in ("test/good/folder.png", "test/.cache", "../empty"):
        (folder / name).mkdir()
    (folder / "test/loop").symlink_to("..")
    (folder / "test/good/loop").symlink_to(".")
    os.mkfifo(folder / "test/good/pipe.png")


def read_numbers(*metrics):
    """Metrics of a run and its sorted scores."""
    (row,) = read_rows("out/resnet18/metrics.csv")
    scores = [float(row["score"]) for row in read_rows("out/resnet18/scores.csv")]
    return [float(row[name]) for name in metrics] + sorted(scores)


def test_odd_names_change_no_number(place, drawn_tree, run):
    shutil.rmtree("data/bolt")
    shutil.copytree(drawn_tree / "weave", "data/bolt")  # not square
    assert run(*words("run")).returncode == 0
    metrics = ("image_auroc", "pixel_auroc", "aupro")
    plain = read_numbers(*metrics)
    rename_all()
    done = run(*words("run --figures=all"))
    assert (done.returncode, done.stderr) == (0, "")
    assert read_numbers(*metrics) == pytest.approx(plain, rel=1e-5)
    assert len(os.listdir("out/resnet18/figures/bolt")) == 8


@contextmanager
def small_files(size):
    """No file can be larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "command", "failed", "left"), SMALL_FILES)
def test_file_that_cannot_be_written_is_one_line_and_not_left(
    size, command, failed, left, place, run
):
    shutil.rmtree("data/bolt/ground_truth")  # a curve of pixels would fill the record
    with small_files(size):
        done = run(*words(command))
    assert set(snapshot("out")) == set(left), done
    assert_refused(done, f"cannot write out/{failed}: …; make room, or choose another folder")


def test_bare_environment_changes_no_number(place, run):
    """No home, no standard input, an odd time zone, and ASCII, which lacks the tables' dash."""
    shutil.rmtree("data/bolt/ground_truth")
    assert run(*words("run")).returncode == 0
    plain = read_numbers("image_auroc")
    shutil.rmtree("out")
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {"PATH": os.environ["PATH"], "TZ": "X/Y", **ascii}
    words_of_run = [sys.executable, ROOT / "main.py", *words("run")]
    quiet = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(words_of_run, env=environment, preexec_fn=lambda: os.close(0), **quiet)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_numbers("image_auroc") == pytest.approx(plain, rel=SCORES)
    assert "| – |" in Path("out/resnet18/tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ('"$@" >&-', 1),
        ('"$@" <&-', 1),
        ("mkfifo pipe; trap '' PIPE; exec 3<>pipe 4>pipe 3<&-; \"$@\" >&4", 141),
    ],
    ids=["closed output", "closed input", "broken pipe"],
)
def test_closed_streams_do_no_harm(script, status, place):
    """What is printed is held back until the end, unless PYTHONUNBUFFERED is set."""
    Path(MASK).unlink()
    command = [sys.executable, str(ROOT / "main.py"), *words("check")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    script = ["bash", "-c", script, "bash", *command]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env=environment)
    # 1 for the problem that check finds
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out", "cannot write in out/resnet18: Permission denied; choose another --save_path"),
        ("data/bolt/train/good", "Permission denied: 'data/bolt/train/good"),
        (
            "data/bolt/train/good/001.png",
            "cannot read image data/bolt/train/good/001.png: Permission denied; replace the",
        ),
    ],
)
def test_without_permission_the_path_is_named(name, message, place, run, monkeypatch):
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        # others may not enter pytest's own folders
        Path(folder).chmod(0o755)
        shutil.copytree("data", Path(folder, "data"))
        Path(folder, "out").mkdir()
        Path(folder, name).chmod(0o700)
        for path in (ROOT / "utils").rglob("*.py"):  # as long as they can be read
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        monkeypatch.chdir(folder)
        os.seteuid(NOBODY)
        try:
            done = run(*words("run --resize=0 --crop=0"))
        finally:
            os.seteuid(0)
    assert_refused(done, message)
