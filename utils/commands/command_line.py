"""The command line: the experiment's options, and the other commands."""

import argparse
from collections.abc import Callable
from importlib import import_module
from time import sleep
from typing import NamedTuple, NoReturn

from utils import backbone
from utils.commands.options import (
    add_experiment_options,
    add_option,
    figure_count,
    rate,
)
from utils.system.processes import Processes
from utils.system.program import MISTAKE
from utils.thresholds import TARGET_FPR

# modules of utils.commands with add_arguments(parser) and run(args), and what is left of one that
# ends early
COMMANDS = {
    "check": "the classes so far are checked",
    "download": "the same command goes on",
    "export": "no file is written",
    "predict": "what is scored is in predictions.csv",
    "study": "the studies of the classes so far are in the results",
    "tables": "the same command writes the rest",
}
PATIENCE = 10  # seconds; torchrun ends all processes when the first has ended


class Command(NamedTuple):
    """What a command line asks for: a function and its arguments, as run_program takes them."""

    name: str
    run: Callable[[argparse.Namespace], None]
    args: argparse.Namespace
    kept: str = ""


def parse_command_line(
    words: list[str], description: str, run_experiment: Callable[[argparse.Namespace], None]
) -> Command:
    """The command that the words ask for; without the name of one it is the experiment.

    Args:
        words: of the command line, without the program's name.
        description: of the experiment, for --help.
        run_experiment: takes the experiment's arguments.

    Raises:
        SystemExit: with MISTAKE after one line on stderr, or with 0 after --help.
    """
    if not words or words[0] not in COMMANDS:
        parser = make_experiment_parser(description)
        kept = "the classes finished so far are in the results"
        return Command(parser.prog, run_experiment, parser.parse_args(words), kept)
    command = import_module(f"utils.commands.{words[0]}")
    parser = OneLineParser(f"main.py {words[0]}", command.__doc__)
    if Processes.from_environment().size > 1:
        parser.error("torchrun is for the experiment; start this command with python")
    command.add_arguments(parser)
    return Command(parser.prog, command.run, parser.parse_args(words[1:]), COMMANDS[words[0]])


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports a mistake in a single line.

    Args:
        name: of the program.
        description: for --help, kept as it is laid out.
        epilog: after the options.
    """

    def __init__(self, name: str, description: str | None, epilog: str = "") -> None:
        super().__init__(
            prog=name,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit with status MISTAKE."""
        # all processes of a run have the same arguments: the leader alone prints the mistake
        if not Processes.from_environment().leads:
            sleep(PATIENCE)
            self.exit(MISTAKE)
        self.exit(MISTAKE, f"{self.prog}: error: {' '.join(message.split())}\n")


def make_experiment_parser(description: str) -> OneLineParser:
    """The options of the experiment; all with underscores may be written with hyphens."""
    epilog = f"other commands: {', '.join(COMMANDS)} (main.py COMMAND --help)"
    parser = OneLineParser("main.py", description, epilog)
    add_experiment_options(parser)
    add_option(
        parser,
        "demo",
        "run on a small set that is made from photographs, instead of --data_path",
        action="store_true",
    )
    add_option(
        parser,
        "arch",
        f"network (default: {backbone.DEFAULT_ARCH}; with --demo {backbone.DEMO_ARCH})",
        choices=backbone.BACKBONES,
    )
    add_option(
        parser,
        "target_fpr",
        "rate of false alarms at which the thresholds are set (default: %(default)s)",
        type=rate,
        default=TARGET_FPR,
        metavar="X",
    )
    add_saving_options(parser)
    return parser


def add_saving_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on what the experiment saves and draws."""
    add_option(
        parser,
        "save_models",
        "which models to save; auto: those up to 500 MB (default: %(default)s)",
        choices=("auto", "all", "none"),
        default="auto",
    )
    add_option(
        parser,
        "save_dtype",
        "of the numbers in saved models (default: %(default)s)",
        choices=("float32", "float16"),
        default="float32",
    )
    add_option(parser, "force", "fit again what an earlier run has finished", action="store_true")
    add_option(
        parser,
        "figures",
        "localisation figures per class: all, none or a number (default: all)",
        type=figure_count,
        metavar="all|none|N",
    )
