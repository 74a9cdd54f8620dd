"""Check a data set before a run: every file, every pair of image and mask, the counts.

    python main.py check --data_path mvtec_ad
    python main.py check --data_path mvtec_ad --class_name bottle transistor

prints a line for each problem, which a run would refuse, and the notes that it would print, but for
those that need the network, on near copies and false alarms. Exit status: 0 without problems, 1
with problems, 2 for a wrong argument.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from datasets.dataset import ImageDataset, choose_classes, load_splits
from datasets.folders import list_folders, scan
from datasets.layouts import BY_NAME, LAYOUTS, Layout, find_classes
from datasets.mvtec import COUNTS, Counts
from datasets.notes import Notes
from utils.commands.options import add_data_options, read_preprocessing
from utils.system.device import count_cores
from utils.system.errors import UserError


class Problems(Notes):
    """Notes that collect what a run would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, None] = {}  # in order, each once

    def refuse(self, error: OSError | ValueError) -> None:
        """Keep the error's message."""
        self.problems[str(error)] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_data_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print a line for each problem and note, and a summary; exit with status 1 on a problem.

    Raises:
        FileNotFoundError: if data_path has no class.
        ValueError: if data_path is not given, or lacks one of the classes.
    """
    if args.data_path is None:
        raise UserError("give --data_path PATH, a folder of images")
    layout, found = find_classes(args.data_path, args.dataset, args.normal)
    if args.class_name:
        _, found = choose_classes(args.data_path, args.class_name, args.dataset, args.normal)
    n_problems = 0
    for class_name in found:
        problems, notes = check_class(args, layout, class_name)
        for line in [*problems, *(f"note: {note}" for note in notes)]:
            print(line, flush=True)
        n_problems += len(problems)
    of_authors = [LAYOUTS[name] for name in LAYOUTS if name not in BY_NAME]
    if not args.class_name and layout not in of_authors:
        for name in _other_folders(args.data_path, found):
            print(f"note: {args.data_path / name} is no class: no folder of good images")
    print(f"{len(found)} classes checked, {n_problems} problems", flush=True)
    if n_problems:
        sys.exit(1)


def check_class(
    args: argparse.Namespace, layout: Layout, class_name: str
) -> tuple[list[str], list[str]]:
    """Read all files of a class as a run does; return what a run would refuse, and its notes."""
    notes = Problems()
    preprocessing = read_preprocessing(args)
    names = args.data_path, class_name, layout, preprocessing
    train, test = load_splits(*names, args.invert_masks, notes)
    reads = [partial(_read, data, i) for data in (train, test) for i in range(len(data))]
    with ThreadPoolExecutor(count_cores()) as pool:
        errors = pool.map(lambda read: read(), reads)
        for error in tqdm(errors, class_name, len(reads), unit="file", leave=False, disable=None):
            if error is not None:
                notes.refuse(error)
    with suppress(OSError):  # a file that cannot be read was reported
        train.find_copies()
    sentences = notes.sentences()
    n_defective = sum(sample.label != 0 for sample in test.samples)
    counts = Counts(len(train), len(test) - n_defective, n_defective)
    if layout == LAYOUTS["mvtec"] and counts != COUNTS.get(class_name, counts):
        published = f"MVTec AD as published has {COUNTS[class_name]}"
        sentences.append(f"{args.data_path / class_name} holds {counts}; {published}")
    return list(notes.problems), sentences


def _read(dataset: ImageDataset, index: int) -> OSError | ValueError | None:
    """Decode an image and its masks; return the error with which a run would end."""
    try:
        dataset[index]
    except UserError as error:
        return error
    return None


def _other_folders(data_path: Path, class_names: Sequence[str]) -> list[str]:
    """The folders beside the classes that hold something and are none."""
    names = [name for name in list_folders(data_path) if name not in class_names]
    is_class = not any((data_path / name).is_dir() for name in class_names)
    return [] if is_class else [name for name in names if scan(data_path / name) != ([], [])]
