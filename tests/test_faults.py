"""Runs that are killed or cannot write at random moments; then the same command runs again.

PADIM_FAULTS gives the number of kills and of refusals to write of each kind.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter

import pytest
from PIL import Image

from datasets.folders import MARKER
from tests.faults import draw_moments, mount, run_forked, small_disk
from tests.helpers import experiment_options, outputs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs fork and prlimit")
N_KILLS, N_REFUSALS = (int(n) for n in os.environ.get("PADIM_FAULTS", "3,1").split(","))


@pytest.fixture(scope="module")
def words_in(drawn_tree, random_weights):
    """A function: a run over two classes into a folder, with figures and a model of each."""
    weights = random_weights("resnet18")
    options = ["--figures", "5", "--batch_size", "4"]
    return lambda folder: [*experiment_options(drawn_tree, weights, folder), *options]


@pytest.fixture(scope="module")
def undisturbed(words_in, tmp_path_factory):
    """The outputs of a run that nothing disturbs, and its duration in seconds."""
    run_forked(["--version"])  # the first takes longer, as it starts the server
    folder = tmp_path_factory.mktemp("undisturbed")
    began = perf_counter()
    done = run_forked(words_in(folder))
    seconds = perf_counter() - began
    assert (done.returncode, done.stderr) == (0, "")
    return outputs(folder / "resnet18"), seconds


def is_temporary(path):
    return any(part.startswith(".") and part != MARKER for part in path.parts)


def assert_refused(done, folder):
    """The run ended in one line that names a file, and took its temporary files away."""
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "cannot write" in done.stderr
    assert not list(filter(is_temporary, folder.rglob("*")))


def assert_goes_on(words, folder, expected):
    """Every file that has its final name is whole, and the same command ends as an undisturbed run.

    It keeps the finished classes.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    for path in (path for path in paths if not is_temporary(path)):
        name = str(path.relative_to(folder))
        if path.parent.name == "models" or "figures" in path.parts:
            assert path.read_bytes() == expected[name], name
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            assert path.read_text().endswith(("\n", "</html>")), name
    records = {path: path.stat().st_mtime_ns for path in folder.glob("classes/[!.]*")}
    done = run_forked(words)
    assert (done.returncode, done.stderr) == (0, "")
    found = {name: file for name, file in outputs(folder).items() if not is_temporary(Path(name))}
    assert found == expected
    assert all(path.stat().st_mtime_ns == changed for path, changed in records.items())


@pytest.mark.parametrize("i", range(N_KILLS))
def test_killed_run_goes_on_to_the_same_results(i, words_in, undisturbed, tmp_path):
    words, (expected, seconds) = words_in(tmp_path), undisturbed
    moment = draw_moments(N_KILLS, seconds, "kills")[i]
    assert run_forked(words, kill_after=moment).returncode in (-9, 0)
    assert_goes_on(words, tmp_path / "resnet18", expected)


@pytest.mark.parametrize("i", range(N_REFUSALS))
def test_run_that_may_no_longer_write_is_refused_and_goes_on(i, words_in, undisturbed, tmp_path):
    words, (expected, seconds) = words_in(tmp_path), undisturbed
    done = run_forked(words, refuse_after=draw_moments(N_REFUSALS, seconds, "refusals")[i])
    if done.returncode:  # it may have written everything before
        assert_refused(done, tmp_path / "resnet18")
    assert_goes_on(words, tmp_path / "resnet18", expected)


@pytest.mark.parametrize("i", range(N_REFUSALS))
def test_run_on_a_full_disk_is_refused_and_goes_on_on_a_larger_one(
    i, words_in, undisturbed, tmp_path
):
    words, folder, (expected, _) = words_in(tmp_path), tmp_path / "resnet18", undisturbed
    needed = sum(len(content) for content in expected.values() if isinstance(content, bytes))
    with small_disk(folder, int(draw_moments(N_REFUSALS, needed, "disks")[i])):
        assert_refused(run_forked(words), folder)
        mount(folder, "remount,size=1g")
        assert_goes_on(words, folder, expected)
