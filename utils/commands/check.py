"""Check a data set before a run: every file, every pair of image and mask, the counts.

    python main.py check --data_path mvtec_ad
    python main.py check --data_path mvtec_ad --class_name bottle transistor

prints a line for each problem, which a run would refuse, and the notes that it would print, but for
those that need the network, on near copies and false alarms. Exit status: 0 without problems, 1
with problems, 2 for a wrong argument.
"""

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
from utils.settings import DataSettings
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


Settings = DataSettings


def run(settings: DataSettings) -> None:
    """Print a line for each problem and note, and a summary; exit with status 1 on a problem.

    Raises:
        FileNotFoundError: if data_path has no class.
        ValueError: if data_path is not given, or lacks one of the classes.
    """
    settings.require_data()
    layout, found = find_classes(settings.data_path, settings.dataset, settings.normal)
    if settings.class_name:
        _, found = choose_classes(
            settings.data_path, settings.class_name, settings.dataset, settings.normal
        )
    n_problems = 0
    for class_name in found:
        problems, notes = check_class(settings, layout, class_name)
        for line in [*problems, *(f"note: {note}" for note in notes)]:
            print(line, flush=True)
        n_problems += len(problems)
    of_authors = [LAYOUTS[name] for name in LAYOUTS if name not in BY_NAME]
    if not settings.class_name and layout not in of_authors:
        for name in _other_folders(settings.data_path, found):
            print(f"note: {settings.data_path / name} is no class: no folder of good images")
    print(f"{len(found)} classes checked, {n_problems} problems", flush=True)
    if n_problems:
        sys.exit(1)


def check_class(
    settings: DataSettings, layout: Layout, class_name: str
) -> tuple[list[str], list[str]]:
    """Read all files of a class as a run does; return what a run would refuse, and its notes."""
    notes = Problems()
    preprocessing = settings.preprocessing
    names = settings.data_path, class_name, layout, preprocessing
    train, test = load_splits(*names, settings.invert_masks, notes)
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
        sentences.append(f"{settings.data_path / class_name} holds {counts}; {published}")
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
