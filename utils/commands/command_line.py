"""The command line: the experiment's options, and the other commands."""

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, NoReturn

from utils.settings import DEMO_PRESET, PRESETS, Experiment
from utils.system.processes import Processes
from utils.system.program import MISTAKE

# modules of utils.commands with Settings and run(settings), and what is left of one that ends early
COMMANDS = {
    "check": "the classes so far are checked",
    "download": "the same command goes on",
    "export": "no file is written",
    "predict": "the rows so far are written",
    "study": "the values finished so far are in the results",
}
PATIENCE = 10  # seconds; torchrun ends all processes when the first has ended


class Command(NamedTuple):
    """What a command line asks for: a function and its settings, as run_program takes them."""

    name: str
    run: Callable[[Any], None]
    settings: Any
    kept: str = ""


def parse_command_line(
    words: list[str], description: str, run_experiment: Callable[[Experiment], Path]
) -> Command:
    """The command that the words ask for; without the name of one it is the experiment.

    A mistake ends with status MISTAKE after one line on stderr.

    Args:
        words: of the command line, without the program's name.
        description: of the experiment, for --help.
        run_experiment: takes the experiment's settings, returns the folder of the results.
    """
    if not words or words[0] not in COMMANDS:
        epilog = f"other commands: {', '.join(COMMANDS)} (main.py COMMAND --help)"
        parser = OneLineParser("main.py", description, Experiment, epilog)
        kept = "the classes finished so far are in the results"
        return Command(parser.prog, run_experiment, parser.parse(words), kept)
    command = import_module(f"utils.commands.{words[0]}")
    parser = OneLineParser(f"main.py {words[0]}", command.__doc__, command.Settings)
    if Processes.from_environment().size > 1:
        parser.error("torchrun is for the experiment; start this command with python")
    run = command.run
    if words[0] == "study":
        how = {"words": words[1:], "parse": parser.parse, "run_experiment": run_experiment}
        run = partial(run, **how)
    return Command(parser.prog, run, parser.parse(words[1:]), COMMANDS[words[0]])


class OneLineParser(argparse.ArgumentParser):
    """A parser of the fields of a settings class that reports a mistake in a single line.

    Args:
        name: of the program.
        description: for --help, kept as it is laid out.
        settings: a dataclass whose fields are made by utils.settings.option.
        epilog: after the options.
    """

    def __init__(
        self, name: str, description: str | None, settings: type, epilog: str = ""
    ) -> None:
        super().__init__(
            prog=name,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.settings = settings
        for field in fields(settings):
            self._add(field)

    def parse(self, words: list[str]) -> Any:
        """The settings that the words ask for; what is not given is that of the preset."""
        given = vars(self.parse_args(words))
        if "demo" in given:
            given.setdefault("preset", DEMO_PRESET)
        preset = PRESETS[given["preset"]] if "preset" in given else {}
        names = {field.name for field in fields(self.settings)}
        return self.settings(**{k: v for k, v in preset.items() if k in names} | given)

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit with status MISTAKE."""
        # all processes of a run have the same arguments: the leader alone prints the mistake
        if not Processes.from_environment().leads:
            sleep(PATIENCE)
            self.exit(MISTAKE)
        self.exit(MISTAKE, f"{self.prog}: error: {' '.join(message.split())}\n")

    def _add(self, field: Field) -> None:
        """Add a field as --name, also spelled with hyphens, or by its place."""
        how, name = field.metadata, field.name
        default = field.default if field.default is not MISSING else field.default_factory()
        keywords = {"help": how["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if default is False:
            keywords["action"] = "store_true"
        else:
            if default is not None and "(default" not in how["help"]:
                keywords["help"] += f" (default: {default})"
            keywords |= {"type": how["parse"], "metavar": how["metavar"], "choices": how["choices"]}
            keywords["nargs"] = "+" if how["several"] else None
        if how["positional"]:
            self.add_argument(name, **keywords)
        else:
            flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
            self.add_argument(*flags, required=how["required"], **keywords)
