"""Options that several commands share, and the types of their values."""

import argparse
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets.layouts import AUTO, LAYOUTS
from datasets.preprocessing import BIT_DEPTHS, DEFAULT, Preprocessing
from utils import backbone
from utils.system.device import count_cores
from utils.system.processes import Processes

MAX_WORKERS = 8


def add_option(parser: argparse.ArgumentParser, name: str, help: str, **settings: Any) -> None:
    """Add --name, also spelled with hyphens."""
    flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*flags, help=help, **settings)


def add_experiment_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the experiment and the studies share."""
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
    add_option(
        parser,
        "n_features",
        "channels to draw, or all (default: as many as upstream; all if it has not this network)",
        type=number_or_all,
        metavar="D|all",
    )
    add_option(
        parser,
        "layers",
        "layers of the network to draw channels from; the finest gives the patches (default: all)",
        nargs="+",
        choices=backbone.LAYERS,
        default=list(backbone.LAYERS),
    )
    add_option(
        parser,
        "neighbourhood",
        "average each layer's output over K x K positions, K odd (default: %(default)s)",
        type=odd,
        default=1,
        metavar="K",
    )
    add_network_options(parser, backbone.BATCH_SIZE)
    add_option(
        parser,
        "precision",
        "in which the network computes; all else is float32 (default: %(default)s)",
        choices=backbone.PRECISIONS,
        default="float32",
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
        "layout of the folder (default: auto, by the folders that are there)",
        choices=(AUTO, *LAYOUTS),
        default=AUTO,
    )
    add_option(
        parser,
        "class_name",
        "classes (default: the 15 of MVTec AD if any of them is there, else all)",
        nargs="+",
        metavar="NAME",
    )
    add_option(
        parser,
        "normal",
        "name of the folders of good images (default: good, ok or normal)",
        metavar="NAME",
    )
    add_option(
        parser,
        "resize",
        "pixels of the images' shorter side; 0 keeps their size (default: %(default)s)",
        type=at_least(0),
        default=DEFAULT.resize,
        metavar="N",
    )
    add_option(
        parser,
        "crop",
        "side of the square cut from their centre; 0 cuts nothing (default: %(default)s)",
        type=at_least(0),
        default=DEFAULT.crop,
        metavar="N",
    )
    add_option(
        parser,
        "exif",
        "turn images upright, as their EXIF orientation says",
        action="store_true",
    )
    add_option(
        parser,
        "bit_depth",
        "bits that are used of the 16 of grey images (default: %(default)s)",
        type=int,
        choices=BIT_DEPTHS,
        default=DEFAULT.bit_depth,
    )
    add_option(
        parser,
        "invert_masks",
        "take masks whose background is white",
        action="store_true",
    )


def read_preprocessing(args: argparse.Namespace) -> Preprocessing:
    """How images are prepared, by the options of add_data_options."""
    return Preprocessing(args.resize, args.crop, args.exif, args.bit_depth)


def read_data_options(args: argparse.Namespace) -> SimpleNamespace:
    """The options of add_data_options as load_all takes them."""
    return SimpleNamespace(**vars(args), preprocessing=read_preprocessing(args))


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
        "images in a batch (default: %(default)s)",
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


def count_workers() -> int:
    """Threads that decode images: one per core of this process's share of the machine."""
    return min(max(count_cores() // Processes.from_environment().local_size, 1), MAX_WORKERS)


def at_least(smallest: int) -> Callable[[str], int]:
    """A type of option: whole numbers from smallest on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {smallest}")
        return int(text)

    return parse


def odd(text: str) -> int:
    """A type of option: odd whole numbers."""
    if not text.isdecimal() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd whole number")
    return int(text)


def number_or_all(text: str) -> int | str:
    """A type of option: "all", or a whole number from 1 on."""
    return text if text == backbone.ALL else at_least(1)(text)


def finite(text: str) -> float:
    """A type of option: a number that is neither infinite nor NaN."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def rate(text: str) -> float:
    """A type of option: a number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def figure_count(text: str) -> int | None:
    """A type of option: "all" (None), "none" (0) or a number of figures."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    return at_least(0)(text)
