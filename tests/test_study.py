"""One option after the other: the command on a small tree, and its table."""

import pytest

from tests.helpers import read_csv
from utils.metrics import METRICS


@pytest.fixture
def study(run, experiment):
    """Vary an option of a small run."""
    return lambda *vary, more=(): run("study", "--vary", *vary, *experiment, *more)


def read_rows(path):
    """The cells of the table in a Markdown file by the row's title, and its other lines."""
    lines = path.read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    others = [line for line in lines if line and not line.startswith("|")]
    return {title: row for title, *row in cells}, others


def test_values_of_an_option_are_run_and_compared(study, tmp_path):
    done = study("neighbourhood", 1, 3)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out/studies/neighbourhood_resnet18"
    rows, (title, note) = read_rows(folder / "tables.md")
    assert title == "**resnet18 on data: --neighbourhood**"
    assert note.startswith("- python main.py study --vary neighbourhood 1 3")
    assert rows["class, neighbourhood"] == [*METRICS.values(), "seconds"]
    names = "mean of 2 classes", "bolt", "weave"
    assert [*rows][2:] == [f"{name}, {value}" for name in names for value in (1, 3)]
    for value in (1, 3):
        for result in read_csv(folder / f"{value}/resnet18/metrics.csv"):
            *found, seconds = rows[f"{result['class_name']}, {value}"]
            assert found == [f"{float(result[metric]):.3f}" for metric in METRICS]
            assert float(seconds) > 0
        assert not (folder / f"{value}/resnet18/models").exists()
    assert rows["bolt, 1"][:-1] != rows["bolt, 3"][:-1]
    mean = [sum(float(rows[f"{name}, 3"][i]) for name in names[1:]) / 2 for i in range(8)]
    assert [*map(float, rows["mean of 2 classes, 3"][:-1])] == pytest.approx(mean, abs=1e-3)


def test_seeds_have_a_mean_and_a_deviation_and_finished_ones_are_kept(study, tmp_path):
    one_class = ["--class_name", "bolt"]
    assert study("seed", 1, more=one_class).returncode == 0
    done = study("seed", 1, 2, more=one_class)
    assert "bolt is finished with these images and settings" in done.stdout
    rows, _ = read_rows(tmp_path / "out/studies/seed_resnet18/tables.md")
    assert [*rows][2:] == ["bolt, 1", "bolt, 2", "bolt, mean ± sd"]
    for first, second, spread in zip(*([*rows.values()][2:]), strict=True):
        mean, deviation = map(float, spread.split(" ± "))
        assert mean == pytest.approx((float(first) + float(second)) / 2, abs=2e-3)
        assert deviation == pytest.approx(abs(float(first) - float(second)) / 2**0.5, abs=2e-3)


@pytest.mark.parametrize(
    ("vary", "title"),
    [
        (["layers", "layer3", "layer2 layer3"], "resnet18 on data: --layers"),
        (["preset", "reproduction", "recommended"], "resnet18 on data: --preset"),
        (["arch", "resnet18"], "n_features all on data: --arch"),
    ],
)
def test_title_names_what_is_not_varied(study, tmp_path, vary, title):
    more = ["--class_name", "bolt", *(["--n_features", "all"] if vary[0] == "arch" else [])]
    done = study(*vary, more=more)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("out/studies/*/tables.md")
    rows, (found, _) = read_rows(path)
    assert found == f"**{title}**"
    assert [*rows][2:] == [f"bolt, {value}" for value in vary[1:]]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["colours", "1"], "--vary colours 1 is no option with values; choose from dataset, "),
        (["seed"], "--vary seed is no option with values; choose from "),
        (["exif", "1"], "--vary exif 1 is no option with values; choose from "),
        (["neighbourhood", "1", "2"], "argument --neighbourhood: '2' is not an odd whole number"),
        (["n_features", "9", "1793"], "--n_features 1793 cannot be drawn from the 1792 channels"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_anything_is_run(refused, tmp_path, vary, message):
    assert message in refused("study", "--data_path", tmp_path, "--vary", *vary)
