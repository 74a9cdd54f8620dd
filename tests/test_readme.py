"""What the documents say can be done: their commands parse, and the files they name are there."""

import re
import shlex
from pathlib import Path

import pytest

import main
from tests.benchmark import __main__ as benchmark
from utils.commands.command_line import parse_command_line

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f"{folder}README.md" for folder in ("", "datasets/", "utils/", "results/", "tests/")]
PAGES = [ROOT / name for name in NAMES]
README = PAGES[0].read_text()
COMMANDS = [
    command
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    for command in line.split(" && ")
]


def parse(command: str) -> None:
    words = shlex.split(command)
    parse_command_line(words[words.index("main.py") + 1 :], "", main.run_experiment)


@pytest.mark.parametrize("command", [c for c in COMMANDS if " main.py " in c])
def test_every_command_parses(command):
    parse(command)


def test_commands_of_the_program_and_of_the_benchmark_parse():
    commands = re.findall(r"^    (python main.py .*)$", main.__doc__, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        parse(command)
    commands = re.findall(r"^    python -m tests.benchmark(.*)$", benchmark.__doc__, re.MULTILINE)
    assert commands
    for command in commands:
        benchmark.make_parser().parse_args(shlex.split(command))
    assert any(command.startswith("torchrun --nproc_per_node=2 main.py") for command in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_named_file_is_there(page):
    text = page.read_text()
    paths = [page.parent / name for name in re.findall(r"\]\(((?!http|#)[^)#]+)\)", text)]
    assert paths
    paths += [ROOT / name for name in re.findall(r"-r (\S+)", text)]
    assert [path for path in paths if not path.exists()] == []


def test_every_image_is_shown():
    shown = set(re.findall(r"!\[[^\]]*\]\((imgs/[^)]+)\)", README))
    assert shown
    assert shown == {path.relative_to(ROOT).as_posix() for path in (ROOT / "imgs").iterdir()}
