"""Bad inputs, each met by the real command: one line says what is wrong, and nothing is left.

Odd inputs that are legitimate are here too, with the plain ones that they must equal.
"""

import csv
import errno
import locale
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

from datasets.images import Preprocessing
from tests.bad_inputs import (
    COMMANDS,
    FOUND,
    FULL,
    ODD_IMAGES,
    REFUSED,
    UNSCORED,
    Place,
    exif,
    rename_all,
    rewrite_masks,
)
from tests.conftest import write_image
from tests.test_detector import good_images
from utils.detector import Detector

# a warning would be one more line on stderr
pytestmark = [pytest.mark.bad_input, pytest.mark.filterwarnings("error")]
ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534  # a user without rights


@pytest.fixture(scope="module")
def weights(random_weights, tmp_path_factory):
    """Only what is used, which is a quarter of the file."""
    state_dict = torch.load(random_weights("resnet18"), weights_only=True)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({k: v for k, v in state_dict.items() if k[:6] not in ("layer4", "fc.wei")}, path)
    return path


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bolt.safetensors"
    images = good_images(5, (64, 64))
    Detector.fit(images, "resnet18", weights, Preprocessing(64, 48)).save(path)
    return path


@pytest.fixture
def place(tmp_path, drawn_tree, weights, model, monkeypatch):
    place = Place(
        folder=tmp_path,
        data=tmp_path / "data",
        new=tmp_path / "new",
        weights=tmp_path / "weights.pth",
        model=tmp_path / "bolt.safetensors",
        results=tmp_path / "results",
        out=tmp_path / "out",
    )
    shutil.copytree(drawn_tree / "bolt", place.data / "bolt")
    write_image(place.new / "good.png", good_images(1, (64, 64))[0])
    place.weights.symlink_to(weights)
    shutil.copy(model, place.model)
    for name in ("README.md", "results/published.csv", "results/resnet18/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (place.results / "studies").mkdir()
    (place.results / "studies/layers.md").write_text("a table\n")
    monkeypatch.setattr("utils.report.tables.ROOT", tmp_path)
    # the archive of MVTec AD would not fit on every machine
    free = shutil.disk_usage(tmp_path)._replace(free=10**11)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    return place


def words(place, command, *options):
    return [place.fill_in(word) for word in (*COMMANDS[command], *options)]


def snapshot(folder):
    """All files below a folder, with their bytes where they are no links."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {path: path.is_file() and not path.is_symlink() and path.read_bytes() for path in paths}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(case, place, run):
    case.spoil(place)
    before = snapshot(place.folder)
    done = run(*words(place, case.command, *case.options))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in case.parts:
        assert place.fill_in(part) in done.stderr
    assert snapshot(place.folder) == before
    assert not (place.folder / "unpickled").exists()


@pytest.mark.parametrize("command", ["run", "predict", "check", "tables"])
def test_commands_of_the_catalogue_succeed_on_good_input(command, place, run):
    done = run(*words(place, command))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("spoil", "error"), UNSCORED.values(), ids=UNSCORED)
def test_image_that_cannot_be_scored_is_a_row_and_a_line(spoil, error, place, run):
    path = place.new / "bad.png"
    shutil.copy(place.new / "good.png", path)
    spoil(path)
    done = run(*words(place, "predict"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert error.replace("{path}", str(path)) in done.stderr
    with (place.out / "predictions.csv").open(newline="") as file:
        bad, good = csv.DictReader(file)
    assert bad["error"] == done.stderr.strip()
    assert (bad["score"], good["error"]) == ("", "")
    assert float(good["score"]) > 0
    assert [path.name for path in snapshot(place.out / "overlays")] == ["good.png"]


@pytest.mark.parametrize(("spoil", "line"), FOUND.values(), ids=FOUND)
def test_check_finds_what_a_run_refuses_or_miscounts(spoil, line, place, run):
    spoil(place)
    done = run(*words(place, "check"))
    assert (done.returncode, done.stderr) == (1, "")
    problem, summary = done.stdout.splitlines()
    assert place.fill_in(line) in problem
    assert summary == "1 classes checked, 1 problems"


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_image_scores_as_the_plain_one(name, place, run):
    (place.new / "good.png").unlink()
    plain = ODD_IMAGES[name](place.new)
    write_image(place.new / "plain.png", plain)
    done = run(*words(place, "predict"))
    assert (done.returncode, done.stderr) == (0, "")
    odd, same = read_scores(place.out / "predictions.csv")
    assert odd == pytest.approx(same, rel=1e-5)
    # a neighbouring grey value would be seen
    write_image(place.new / "plain.png", plain // 2 + 20)
    run(*words(place, "predict"))
    assert read_scores(place.out / "predictions.csv")[1] != pytest.approx(odd, rel=1e-5)


def read_scores(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


def read_metrics(place):
    """The metrics of a run, and its scores by label."""
    with (place.out / "resnet18/metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    scores = read_scores(place.out / "resnet18/scores.csv")
    return [float(row[name]) for name in ("image_auroc", "pixel_auroc", "aupro")] + sorted(scores)


def test_images_with_a_turned_tag_keep_to_their_masks(place, drawn_tree, run):
    """The tag is ignored, as upstream and torchvision do, for masks have none."""
    shutil.rmtree(place.data / "bolt")
    shutil.copytree(drawn_tree / "weave", place.data / "bolt")  # not square
    assert run(*words(place, "run")).returncode == 0
    plain = read_metrics(place)
    for path in place.data.rglob("*.png"):
        if "ground_truth" not in path.parts:
            exif(path)
    done = run(*words(place, "run"))
    assert (done.returncode, done.stderr) == (0, "")
    assert read_metrics(place) == plain


@pytest.mark.parametrize("change", [rewrite_masks, rename_all], ids=lambda change: change.__name__)
def test_odd_masks_names_and_folders_change_no_number(change, place, run):
    assert run(*words(place, "run")).returncode == 0
    plain = read_metrics(place)
    change(place)
    done = run(*words(place, "run", "--figures", "all"))
    assert (done.returncode, done.stderr) == (0, "")
    assert read_metrics(place) == pytest.approx(plain, rel=1e-5)
    assert len(list((place.out / "resnet18/figures/bolt").iterdir())) == 8


@contextmanager
def full_disk(folder, size):
    """A disk of so many bytes at folder."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "full", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs root and mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files(size):
    """No file can be larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("case", FULL.values(), ids=FULL)
def test_full_disk_ends_in_one_line_and_leaves_no_partial_file(case, place, run):
    shutil.rmtree(place.data / "bolt/ground_truth")  # a curve of pixels would fill the record
    limit = full_disk(place.out, case.size) if case.is_disk else small_files(case.size)
    with limit:
        done = run(*words(place, case.command, *case.options))
        left = {str(path.relative_to(place.out)) for path in snapshot(place.out)}
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"cannot write {place.out / case.failed}: " in done.stderr
    assert os.strerror(errno.ENOSPC if case.is_disk else errno.EFBIG) in done.stderr
    assert left == set(case.left)


def test_finished_class_outlives_a_full_disk(place, drawn_tree, run):
    shutil.copytree(drawn_tree / "weave", place.data / "weave")
    both = ("--class_name", "bolt", "weave")
    with full_disk(place.out, "4m"):
        assert run(*words(place, "run")).returncode == 0
        before = snapshot(place.out)
        filler = place.out / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(4 << 20))
        done = run(*words(place, "run", *both))
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        filler.unlink()
        assert snapshot(place.out) == before
        done = run(*words(place, "run", *both))
        assert done.returncode == 0, done.stderr
        assert "bolt is finished" in done.stdout


def test_read_only_disk_is_refused(place, run):
    with full_disk(place.out, "1m"):
        remount = ["mount", "-o", "remount,ro", str(place.out)]
        subprocess.run(remount, check=True, capture_output=True)
        for command in ("run", "predict", "study", "download", "export"):
            done = run(*words(place, command))
            assert done.returncode == 2
            assert f"cannot write in {place.out}" in done.stderr
            assert "Read-only file system; choose another --" in done.stderr


def start(arguments, **settings):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *arguments],
        **({"capture_output": True, "text": True, "timeout": 120} | settings),
    )


def test_bare_environment_changes_no_number(place, run):
    """No home, no standard input, C locale, an odd time zone."""
    assert run(*words(place, "run")).returncode == 0
    plain = read_metrics(place)
    shutil.rmtree(place.out)
    done = start(
        words(place, "run"),
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "X/Y"},
        cwd=place.folder,
        preexec_fn=lambda: os.close(0),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_metrics(place) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("level", ["1", "2"])
def test_without_asserts_and_docstrings_a_mistake_is_still_refused(place, level):
    """On a command that imports little: Python compiles all of it for this level."""
    environment = os.environ | {"PYTHONOPTIMIZE": level}
    done = start(words(place, "check", "--class_name", "botle"), env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "unknown class 'botle' in" in done.stderr


def test_another_locale_changes_no_number(place, run, monkeypatch):
    """A decimal comma, and an encoding that lacks the tables' dash."""
    shutil.rmtree(place.data / "bolt/ground_truth")
    assert run(*words(place, "run", "--force")).returncode == 0
    plain = snapshot(place.out)
    name = "de_DE.ISO-8859-1"
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(place.folder / name)]
    if shutil.which("localedef") is None or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("localedef cannot make a German locale here")
    monkeypatch.setenv("LOCPATH", str(place.folder))
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, name)
    try:
        assert locale.getencoding() == "ISO-8859-1"
        done = run(*words(place, "run", "--force"))
    finally:
        monkeypatch.undo()
        locale.setlocale(locale.LC_ALL, before)
    assert done.returncode == 0, done.stderr
    scores = place.out / "resnet18/scores.csv"
    assert scores.read_bytes() == plain[scores]
    assert "| – |" in (place.out / "resnet18/tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("redirection", "status", "line"),
    [
        (">&-", 0, None),
        ("<&-", 0, None),
        (">/dev/full", 2, "cannot write to standard output: No space left on device; send it"),
        (">pipe", 2, "cannot write to standard output: Broken pipe; send it elsewhere"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(place, redirection, status, line):
    """What is printed is held back until the end, unless Python is told otherwise."""
    (place.data / "bolt/new").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    os.mkfifo(place.folder / "pipe")
    command = [sys.executable, ROOT / "main.py", *words(place, "check")]
    script = f'"$@" {redirection}'
    if redirection == ">pipe":
        script = "trap '' PIPE; exec 3<>pipe 4>pipe 3<&-; \"$@\" >&4"
    done = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, command)],
        **{"capture_output": True, "text": True, "timeout": 60},
        cwd=place.folder,
        env=environment,
    )
    if line is None:
        assert (done.returncode, done.stderr) == (1, "")  # the problem that check finds
    else:
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert line in done.stderr


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("out", "cannot write in {out}/resnet18: Permission denied; choose another --save_path"),
        ("data/bolt/train/good", "Permission denied: '{data}/bolt/train/good"),
        (
            "data/bolt/train/good/001.png",
            "cannot read image {data}/bolt/train/good/001.png: Permission denied; replace the",
        ),
    ],
)
def test_without_permission_the_path_is_named(place, run, name, line):
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        theirs = place._replace(data=Path(folder, "data"), out=Path(folder, "out"))
        shutil.copytree(place.data, theirs.data)
        theirs.out.mkdir()
        Path(folder, name).chmod(0o700)
        import_module("utils.report.finished")  # as long as it can be read
        os.seteuid(NOBODY)
        try:
            done = run(*words(theirs, "run", "--resize", "0", "--crop", "0"))
        finally:
            os.seteuid(0)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert theirs.fill_in(line) in done.stderr


def test_image_with_a_name_that_is_no_text_is_refused_in_one_line(place):
    (place.data / "bolt/train/good" / os.fsdecode(b"\xff.png")).touch()
    done = start(words(place, "run", "--resize", "0", "--crop", "0"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "good/\\udcff.png: not an image; replace" in done.stderr
