"""What is intact but may mean something else is noted or refused, by a run and by check alike."""

import pytest

from datasets.dataset import load_all
from tests.bad_inputs import matches, spoil
from tests.helpers import call
from tests.oddities import NOTED, REFUSED, TAKEN, build
from utils.commands.command_line import parse_command_line


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # takes most of the time; test_check.py is about it
    monkeypatch.setattr("utils.commands.check.advise_alignment", lambda _: [])
    build()


def read_options(name):
    """The options before the colon of a case's name."""
    return name.partition(":")[0].split() if ":" in name else []


def take(*options):
    """Read a class as a run does: training and test images, how many masks, and the notes."""
    settings = parse_command_line(["--data_path", "data", *options], "", None).settings
    ((train, test),) = load_all(settings)
    items = [data[i] for data in (train, test) for i in range(len(data))]
    n_masks = sum(bool(mask.any()) for _, _, mask in items)
    assert n_masks in (0, sum(label for _, label, _ in items))
    assert len(set(test.names)) == len(test)
    train.find_copies()
    return (len(train), len(test), n_masks), test.notes.sentences()


def check(*options):
    """The lines of check, and its exit status."""
    done = call("check", "--data_path", "data", *options)
    return (done.stdout + done.stderr).splitlines(), done.returncode


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_usual_is_taken_without_a_note(name):
    counts, *change = TAKEN[name]
    spoil(*change)
    options = read_options(name)
    assert take(*options) == (counts, [])
    assert check(*options) == (["1 classes checked, 0 problems"], 0)


@pytest.mark.parametrize("name", NOTED)
def test_what_may_be_meant_otherwise_is_noted(name):
    note, *change = NOTED[name]
    spoil(*change)
    options = read_options(name)
    _, notes = take(*options)
    assert sum(matches(note, sentence) for sentence in notes) == 1, notes
    lines, code = check(*options)
    assert lines[:-1] == [f"note: {sentence}" for sentence in notes]
    assert code == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused(name):
    message, *change = REFUSED[name]
    spoil(*change)
    options = read_options(name)
    with pytest.raises((OSError, ValueError)) as error:
        take(*options)
    assert matches(message, str(error.value)), error.value
    lines, code = check(*options)
    assert any(str(error.value) in line for line in lines), lines
    assert code in (1, 2)
