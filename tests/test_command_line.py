"""The command line: which command it asks for, and mistakes in one line."""

from dataclasses import fields

import pytest

import main
from tests.helpers import start
from utils.commands import command_line
from utils.commands.command_line import COMMANDS, parse_command_line
from utils.settings import Experiment


def run_experiment(settings):
    """Stands for the experiment."""


def parse(*words):
    return parse_command_line([*words], "the experiment", run_experiment)


def test_without_a_command_it_is_the_experiment():
    command = parse("--class_name", "bolt", "weave", "--crop", "64")
    assert (command.name, command.run) == ("main.py", run_experiment)
    assert (command.settings.class_name, command.settings.crop) == (["bolt", "weave"], 64)


def test_defaults_of_the_experiment_are_those_of_the_paper_and_upstream():
    settings = parse().settings
    expected = {"resize": 256, "crop": 224, "seed": 1024, "n_features": None, "batch_size": 32}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert (settings.dataset, settings.device, settings.precision) == ("auto", "auto", "float32")
    assert (settings.target_fpr, settings.figures) == (0.01, None)
    assert (settings.demo, settings.force) == (False, False)


def test_command_gets_its_own_options():
    command = parse("check", "--data_path", "data")
    assert command.name == "main.py check"
    assert command.run.__module__ == "utils.commands.check"
    assert str(command.settings.data_path) == "data"
    assert command.kept == "the classes so far are checked"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--see", "1"], "main.py: error: unrecognized arguments: --see 1"),
        (["tabels"], "main.py: error: unrecognized arguments: tabels"),
        (["check", "--x"], "main.py check: error: "),
    ],
)
def test_mistake_is_one_line(words, expected, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(expected)


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_of_several_processes_the_leader_prints_the_mistake(rank, lines, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "PATIENCE", 0)
    numbers = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    for name, number in numbers.items():  # as torchrun does
        monkeypatch.setenv(name, str(number))
    assert parse().run is run_experiment
    with pytest.raises(SystemExit) as end:
        parse("check", "--data_path", "data")
    assert end.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines
    assert all("torchrun is for the experiment; start this command with" in p for p in printed)


def test_option_is_also_spelled_with_hyphens():
    for flag in ("--batch_size", "--batch-size"):
        assert parse(flag, "7").settings.batch_size == 7


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        parse(name, "--help")
    assert end.value.code == 0
    assert f"    python main.py {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            [],
            [main.__doc__.strip(), *COMMANDS, *(f"--{field.name}" for field in fields(Experiment))],
        ),
        (["study"], ["--vary OPTION [VALUE ...]"]),
    ],
)
def test_help_shows_all_there_is_and_imports_nothing_that_takes_long(words, shown, tmp_path):
    done = start(*words, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert [text for text in shown if text not in done.stdout] == []
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    slow = {"torch", "torchvision", "scipy.ndimage", "skimage", "matplotlib.pyplot"}
    assert slow & imported == set()
    assert list(tmp_path.iterdir()) == []
