"""Check a data set before a run: every file, every pair of image and mask, the counts.

    python main.py check --data_path mvtec_ad
    python main.py check --data_path mvtec_ad --class_name bottle transistor

prints a line for each problem, with which a run would end, and the notes of a run, except those
that need the network: on near copies and false alarms. A note also says if the parts should be
aligned (--align). Exit status: 0 without problems, 1 with problems, 2 for a wrong argument.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.dataset import ImageDataset, choose_classes, find_problems, load_splits
from datasets.folders import list_folders, scan
from datasets.layouts import LAYOUTS, find_classes
from datasets.mvtec import COUNTS, Counts
from datasets.notes import Notes
from utils.settings import DataSettings
from utils.system.device import count_cores
from utils.system.errors import UserError

Settings = DataSettings

MOST_ALIGNED = 32  # training images that are tried
# correlation: bottle gains .02, pill .00, screw .52, transistor .11, the demo's photographs .05. Of
# four other sets, three gained .13 to .16 or .06 and got better, one .05 and did not
LEAST_GAIN = 0.1


def run(settings: DataSettings) -> None:
    """Print a line for each problem and note, and a summary; exit with status 1 on a problem."""
    data_path, names = settings.data_path, settings.class_name
    if data_path is None:
        raise UserError("give --data_path PATH, a folder of images")
    layout, found = find_classes(data_path, settings.dataset, settings.normal)
    if names:
        _, found = choose_classes(data_path, names, settings.dataset, settings.normal)
    n_problems = 0
    for class_name in found:
        prepared = settings.preprocessing, settings.invert_masks
        splits = load_splits(data_path, class_name, layout, *prepared)
        problems = dict.fromkeys(map(str, [*find_problems(*splits), *read_all(*splits)]))
        notes = splits[0].notes.sentences()
        if layout == LAYOUTS["mvtec"]:
            notes += compare_counts(data_path, *splits)
        notes += [] if problems else advise_alignment(splits[0])
        for line in [*problems, *(f"note: {note}" for note in notes)]:
            print(line, flush=True)
        n_problems += len(problems)
    # unless data_path is itself the only class
    if layout.by_name and not names and (data_path / found[0]).is_dir():
        for name in list_folders(data_path):
            if name not in found and scan(data_path / name) != ([], []):
                print(f"note: {data_path / name} is no class: no folder of good images")
    print(f"{len(found)} classes checked, {n_problems} problems", flush=True)
    if n_problems:
        sys.exit(1)


def read_all(*splits: ImageDataset) -> Iterator[UserError]:
    """Decode all images and masks of a class as a run does; yield what it would end with."""

    def read(item: tuple[ImageDataset, int]) -> UserError | None:
        dataset, index = item
        try:
            dataset[index]
        except UserError as problem:
            return problem
        return None

    items = [(dataset, index) for dataset in splits for index in range(len(dataset))]
    with ThreadPoolExecutor(count_cores()) as pool:
        found = pool.map(read, items)
        name = splits[0].class_name
        yield from filter(
            None, tqdm(found, name, len(items), unit="file", leave=False, disable=None)
        )
    with suppress(UserError):  # a file that cannot be read was reported
        splits[0].find_copies()


def advise_alignment(train: ImageDataset) -> list[str]:
    """A note, if the training images are more alike once they are aligned."""
    import torch  # takes 2 s

    from utils.alignment import RESEMBLING, learn_alignment

    whole = {"preprocessing": train.preprocessing.whole(), "notes": Notes()}
    chosen = replace(train.sample(MOST_ALIGNED), **whole)
    title = f"{train.class_name} alignment"
    images = [image for image, *_ in tqdm(chosen, title, unit="image", leave=False, disable=None)]
    if len({image.shape for image in images}) > 1:  # which --align refuses
        return []
    found = learn_alignment(map(torch.from_numpy, np.stack(images)[:, None]))
    if found.after < RESEMBLING or found.after - found.before < LEAST_GAIN:
        return []
    return [
        f"{train.class_name} may lie turned or shifted, which --align auto mends if it is a single "
        f"part: its training images correlate {found.before:.2f} with their median, "
        f"{found.after:.2f} once aligned"
    ]


def compare_counts(data_path: Path, train: ImageDataset, test: ImageDataset) -> list[str]:
    """A note, if a class of MVTec AD has other numbers of images than published."""
    n_defective = sum(sample.label != 0 for sample in test.samples)
    counts = Counts(len(train), len(test) - n_defective, n_defective)
    published = COUNTS.get(test.class_name, counts)
    if counts == published:
        return []
    place = data_path / test.class_name
    return [f"{place} holds {counts}; MVTec AD as published has {published}"]
