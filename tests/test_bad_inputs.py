"""Bad inputs, each met by the real command: one line says what is wrong, and nothing is left."""

import os
import shutil
from pathlib import Path

import pytest

from datasets.images import Preprocessing
from tests.bad_inputs import COMMANDS, REFUSED, Place
from tests.conftest import write_image
from tests.test_detector import good_images
from utils.detector import Detector

pytestmark = pytest.mark.bad_input
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(random_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bolt.safetensors"
    images = good_images(5, (64, 64))
    Detector.fit(images, "resnet18", random_weights("resnet18"), Preprocessing(64, 48)).save(path)
    return path


@pytest.fixture
def place(tmp_path, drawn_tree, random_weights, model, monkeypatch):
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
    place.weights.symlink_to(random_weights("resnet18"))
    shutil.copy(model, place.model)
    for name in ("README.md", "results/published.csv", "results/resnet18/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (place.results / "studies").mkdir()
    (place.results / "studies/layers.md").write_text("a table\n")
    monkeypatch.setattr("utils.tables.ROOT", tmp_path)
    # the archive of MVTec AD would not fit on every machine
    free = shutil.disk_usage(tmp_path)._replace(free=10**11)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    return place


def words(place, command, *options):
    return [place.fill_in(word) for word in (*COMMANDS[command], *options)]


def snapshot(folder):
    """All files below a folder, with their bytes."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {path: path.is_file() and path.read_bytes() for path in paths}


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


@pytest.mark.parametrize("command", ["run", "predict", "export", "check", "tables"])
def test_commands_of_the_catalogue_succeed_on_good_input(command, place, run):
    if command == "tables":
        shutil.rmtree(place.results / "studies")
    done = run(*words(place, command))
    assert done.returncode == 0, done.stderr
