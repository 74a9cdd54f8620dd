"""Options and checks that the commands share."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.images import CROP, RESIZE
from datasets.layouts import AUTO, LAYOUTS
from utils import backbone
from utils.system.processes import World, count_cores

BATCH_SIZE = 32  # upstream
MAX_WORKERS = 8
PRECISIONS = ("float32", "bf16", "fp16")


def add_option(parser: argparse.ArgumentParser, name: str, help: str, **settings: Any) -> None:
    """Add --name, also spelled with hyphens."""
    flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*flags, help=help, **settings)


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Add what an experiment and a study have in common."""
    add_data_options(parser)
    add_option(
        parser,
        "save_path",
        "folder for the results (default: %(default)s)",
        type=Path,
        default=Path("results"),
        metavar="PATH",
    )
    add_option(
        parser,
        "seed",
        "of the draw of channels (default: %(default)s)",
        type=at_least(0),
        default=backbone.SEED,
        metavar="N",
    )
    add_network_options(parser, BATCH_SIZE)
    add_option(
        parser,
        "precision",
        "in which the network computes; all else is float32 (default: %(default)s)",
        choices=PRECISIONS,
        default=PRECISIONS[0],
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on which images there are and how they are prepared."""
    add_option(
        parser,
        "data_path",
        "folder that holds <class>/train/good/*.png and <class>/test/<defect type>/*.png, or "
        "good/*.png and <defect type>/*.png",
        type=Path,
        metavar="PATH",
    )
    add_option(
        parser,
        "dataset",
        "layout of the folder (default: auto, which is mvtec if that fits, else folder)",
        choices=(AUTO, *LAYOUTS),
        default=AUTO,
    )
    add_option(
        parser,
        "class_name",
        "classes to run (default: the 15 of MVTec AD; in other layouts and with --demo all)",
        nargs="+",
        metavar="NAME",
    )
    add_option(
        parser,
        "resize",
        "pixels of the images' shorter side; 0 keeps their size (default: %(default)s)",
        type=at_least(0),
        default=RESIZE,
        metavar="N",
    )
    add_option(
        parser,
        "crop",
        "side of the square cut from their centre; 0 cuts nothing (default: %(default)s)",
        type=at_least(0),
        default=CROP,
        metavar="N",
    )


def add_network_options(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add the options on how the network runs; batch_size is the default."""
    add_option(
        parser,
        "weights",
        "local state dict to take instead of the published ImageNet weights",
        type=Path,
        metavar="FILE",
    )
    add_option(
        parser,
        "batch_size",
        "images in a batch, of all processes together (default: %(default)s)",
        type=at_least(1),
        default=batch_size,
        metavar="N",
    )
    add_option(
        parser,
        "num_workers",
        f"threads that decode images (default: one per core, at most {MAX_WORKERS})",
        type=at_least(0),
        default=count_workers(),
        metavar="N",
    )
    add_option(
        parser,
        "device",
        "auto (CUDA where there is one), cpu, cuda or cuda:N (default: %(default)s)",
        default="auto",
    )


def at_least(smallest: int) -> Callable[[str], int]:
    """A parser of whole numbers from smallest on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {smallest}")
        return int(text)

    return parse


def count_workers() -> int:
    """Threads to decode with: a core each, of this process's share of the machine."""
    return min(max(count_cores() // World.from_environment().local_size, 1), MAX_WORKERS)


def make_folder(path: Path, option: str = "--save_path") -> Path:
    """The folder that an option names, made if need be, in which files can be written.

    Raises:
        OSError: if they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OSError(
            f"cannot write in {path}: {error.strerror}; choose another {option}"
        ) from error
