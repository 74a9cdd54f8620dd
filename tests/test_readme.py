"""The README's commands parse, its options are the parser's, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest

from main import choose_command, make_parser
from tests.benchmark import __main__ as benchmark

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    command
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    for command in line.split(" && ")
]


def test_there_are_commands():
    assert len(COMMANDS) > 6


@pytest.mark.parametrize("command", [c for c in COMMANDS if " main.py " in c])
def test_every_command_parses(command):
    words = shlex.split(command)
    parser, _, words = choose_command(words[words.index("main.py") + 1 :])
    parser.parse_args(words)


def test_several_processes_are_started_by_torchrun():
    started = [command for command in COMMANDS if command.startswith("torchrun ")]
    assert started
    assert all(command.startswith("torchrun --nproc_per_node=") for command in started)


def test_every_command_of_the_benchmark_parses():
    commands = [c for c in COMMANDS if c.startswith("python -m tests.benchmark")]
    assert len(commands) == 2
    for command in commands:
        benchmark.make_parser().parse_args(shlex.split(command)[3:])


def test_the_programs_own_commands_parse():
    import main

    commands = re.findall(r"^    python main.py (.*)$", main.__doc__, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        make_parser().parse_args(shlex.split(command))


def test_every_option_is_in_the_readme():
    options = {a.option_strings[0] for a in make_parser()._actions} - {"-h"}
    assert len(options) > 10
    documented = set(re.findall(r"^\| `(--\w+)", README, re.MULTILINE))
    assert documented == options


def test_every_named_file_is_there():
    names = re.findall(r"\]\(((?!http|#)[^)]+)\)", README)
    assert len(names) > 8
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing


def test_requirement_files_are_there():
    files = re.findall(r"-r (\S+)", README)
    assert sorted(files) == ["requirements.txt", "tests/requirements.txt"]
    assert all((ROOT / name).is_file() for name in files)


def test_figures_come_from_a_command_that_is_shown():
    shown = set(re.findall(r"!\[[^\]]*\]\((imgs/[^)]+)\)", README))
    made = {command.split()[-1] for command in COMMANDS if command.startswith("cp ")}
    assert shown == made
    assert shown
