"""Check a folder in MVTec layout: every file, every pair of image and mask, the counts.

    python main.py check --data_path mvtec_ad
    python main.py check --data_path mvtec_ad --class_name bottle transistor

prints a line for each problem. Exit status: 0 without any, 1 with problems, 2 for a wrong argument.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datasets.dataset import LOSSY_SUFFIXES, choose_classes, load_splits
from datasets.images import IMAGE_SUFFIXES, open_image, open_mask, to_rgb
from datasets.layouts import find_classes
from datasets.mvtec import is_image
from utils.commands.options import add_option
from utils.system.processes import count_cores

LAYOUT = "mvtec"
FOLDERS = ("train", "test", "ground_truth")


class Counts(NamedTuple):
    """The images of a class: for training, good ones for testing, defective ones for testing."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} training, {self.good} good and {self.defective} defective test images"


# Bergmann et al., CVPR 2019, table 2: 3629 for training, 467 + 1258 for testing
COUNTS = {
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "carpet": Counts(280, 28, 89),
    "grid": Counts(264, 21, 57),
    "hazelnut": Counts(391, 40, 70),
    "leather": Counts(245, 32, 92),
    "metal_nut": Counts(220, 22, 93),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "tile": Counts(230, 33, 84),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "wood": Counts(247, 19, 60),
    "zipper": Counts(240, 32, 119),
}


class Remark(NamedTuple):
    """A line of the report; a note is no problem."""

    text: str
    is_note: bool = False


class Content(NamedTuple):
    """What a file holds; why it cannot be read, if it cannot.

    Attributes:
        sha256: of the file's bytes.
        size: width and height in pixels.
        values: of its pixels in RGB, for a mask.
    """

    error: str | None = None
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    values: tuple[int, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_option(
        parser,
        "data_path",
        "folder that holds <class>/train/good/*.png and <class>/test/<defect type>/*.png",
        type=Path,
        required=True,
        metavar="PATH",
    )
    add_option(
        parser,
        "class_name",
        "classes to check (default: all that are there)",
        nargs="+",
        metavar="NAME",
    )


def run(args: argparse.Namespace) -> None:
    """Print a line for each problem and a summary; exit with status 1 if there is a problem.

    Raises:
        FileNotFoundError: if data_path holds no class.
        ValueError: if a class is not there.
    """
    if args.class_name:
        _, class_names = choose_classes(args.data_path, args.class_name, LAYOUT)
        remarks = []
    else:
        _, class_names = find_classes(args.data_path, LAYOUT)
        remarks = list(_unexpected(args.data_path, class_names, "is no class: no train/good"))
    _print(remarks)
    for class_name in class_names:
        found = list(check_class(args.data_path, class_name))
        _print(found)
        remarks += found

    n_problems = sum(not remark.is_note for remark in remarks)
    print(f"{len(class_names)} classes checked, {n_problems} problems", flush=True)
    if n_problems:
        sys.exit(1)


def _print(remarks: Sequence[Remark]) -> None:
    for remark in remarks:
        print(f"note: {remark.text}" if remark.is_note else remark.text)


def check_class(data_path: Path, class_name: str) -> Iterator[Remark]:
    """Read all files of a class; what is wrong with its folders, images and masks."""
    folder = data_path / class_name
    images = _list_images(folder)
    masks = sorted(path for path in folder.glob("ground_truth/*/*") if is_image(path))
    contents = _read_all(images, masks, class_name)

    yield from _check_folders(folder, images)
    yield from (Remark(content.error) for content in contents.values() if content.error)
    yield from _check_names([*images, *masks])
    if (folder / "ground_truth").is_dir():
        yield from _check_masks(folder, images, masks, contents)
    yield from _check_duplicates(images, contents)
    yield from _check_counts(folder, images)


def _list_images(folder: Path) -> list[Path]:
    """The images of train and test; those in test itself only where it has no folders."""
    paths = [*folder.glob("train/good/*"), *folder.glob("test/*/*")]
    if not _folders(folder / "test"):
        paths += folder.glob("test/*")
    return sorted(path for path in paths if is_image(path))


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, which need not be there; without hidden ones."""
    return sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))


def _read_all(
    images: Sequence[Path], masks: Sequence[Path], class_name: str
) -> Mapping[Path, Content]:
    paths = [*images, *masks]
    are_masks = [False] * len(images) + [True] * len(masks)
    with ThreadPoolExecutor(count_cores()) as pool:
        contents = pool.map(_read, paths, are_masks)
        bar = tqdm(contents, class_name, len(paths), unit="file", leave=False, disable=None)
        return dict(zip(paths, bar, strict=True))


def _read(path: Path, is_mask: bool) -> Content:
    """Decode a file as the loader does."""
    try:
        image = open_mask(path) if is_mask else to_rgb(open_image(path), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        return Content(error=str(error))
    if not is_mask:
        return Content(None, digest, image.size)
    # 3 x 256 bins, one after the other
    values = {i % 256 for i, count in enumerate(image.histogram()) if count}
    return Content(None, digest, image.size, tuple(sorted(values)))


def _unexpected(folder: Path, names: Sequence[str], why: str) -> Iterator[Remark]:
    """The folders in a folder that have other names."""
    for path in _folders(folder):
        if path.name not in names:
            yield Remark(f"unexpected folder {path}: it {why}")


def _check_folders(folder: Path, images: Sequence[Path]) -> Iterator[Remark]:
    tested = [path.name for path in _folders(folder / "test")]
    unread = "is not read; move its images or take it away"
    yield from _unexpected(folder, FOLDERS, unread)
    yield from _unexpected(folder / "train", ["good"], unread)
    defect_types = [name for name in tested if name != "good"]
    yield from _unexpected(folder / "ground_truth", defect_types, "belongs to no defect in test")
    for parent in folder.glob("*/*"):
        if parent.parent.name in FOLDERS:
            yield from _unexpected(parent, [], unread)

    n_train = sum(path.is_relative_to(folder / "train") for path in images)
    if n_train < 2:
        yield Remark(f"{n_train} images in {folder / 'train' / 'good'}; a fit needs at least 2")
    if n_train == len(images):
        yield Remark(f"no images in {folder / 'test'}; expected <defect type>/*.png")

    for path in sorted(folder.glob("*/**/*")):
        hidden = path.name.startswith(".")
        if path.is_file() and not hidden and path.suffix.lower() not in IMAGE_SUFFIXES:
            yield Remark(f"{path} is ignored: {path.suffix or 'no suffix'} is no image", True)
    beside_folders = [*folder.glob("train/*"), *folder.glob("ground_truth/*")]
    beside_folders += folder.glob("test/*") if tested else []
    for path in sorted(filter(is_image, beside_folders)):
        yield Remark(f"{path} is not read: move it into a folder beside it")


def _check_names(paths: Sequence[Path]) -> Iterator[Remark]:
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.with_suffix(""), path)
        if other != path:
            yield Remark(f"{other} and {path} differ only in their suffix: rename one")


def _check_masks(
    folder: Path,
    images: Sequence[Path],
    masks: Sequence[Path],
    contents: Mapping[Path, Content],
) -> Iterator[Remark]:
    by_name = {mask.with_suffix(""): mask for mask in masks}
    for image in images:
        if _is_defective(folder, image):
            expected = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask"
            mask = by_name.pop(expected, None)
            if mask is None:
                yield Remark(f"mask missing for {image}: expected {expected}.png")
            elif not contents[mask].error:
                yield from _check_mask(image, mask, contents)
    for mask in by_name.values():
        yield Remark(f"mask {mask} belongs to no image in {folder / 'test' / mask.parent.name}")


def _is_defective(folder: Path, image: Path) -> bool:
    return image.parent.parent == folder / "test" and image.parent.name != "good"


def _check_mask(image: Path, mask: Path, contents: Mapping[Path, Content]) -> Iterator[Remark]:
    size, of_image = contents[mask].size, contents[image].size
    if size != of_image and not contents[image].error:
        yield Remark(
            f"mask {mask} is {size[0]}x{size[1]} pixels but its image {image} is "
            f"{of_image[0]}x{of_image[1]}; they must be equal"
        )
    values = contents[mask].values
    if mask.suffix.lower() in LOSSY_SUFFIXES:
        yield Remark(f"mask {mask} is a JPEG, which blurs its edges: save it as PNG")
    if values == (0,):
        yield Remark(f"mask {mask} marks no pixel although {image} lies among the defects")
    elif len(set(values) - {0}) > 1:
        yield Remark(
            f"mask {mask} has {len(values)} different values; expected 0 and 255 "
            "(whatever is above 0 counts as defect)"
        )


def _check_duplicates(images: Sequence[Path], contents: Mapping[Path, Content]) -> Iterator[Remark]:
    trained = {
        contents[path].sha256: path
        for path in images
        if path.parent.parent.name == "train" and not contents[path].error
    }
    for path in images:
        other = trained.get(contents[path].sha256)
        if other is not None and path.parent.parent.name != "train":
            yield Remark(f"{path} is the same file as {other}: a test image must not be trained on")


def _check_counts(folder: Path, images: Sequence[Path]) -> Iterator[Remark]:
    """Whether a class of MVTec AD has as many images as published."""
    n_train = sum(path.is_relative_to(folder / "train") for path in images)
    n_defective = sum(_is_defective(folder, path) for path in images)
    counts = Counts(n_train, len(images) - n_train - n_defective, n_defective)
    published = COUNTS.get(folder.name, counts)
    if counts != published:
        yield Remark(f"{folder} holds {counts}; MVTec AD as published has {published}", True)


def describe_difference(data_path: Path, class_name: str, counts: Counts) -> str | None:
    """Why a class is not the complete one of these counts; None if it is. Decodes no image."""
    try:
        train, test = load_splits(data_path, class_name)
    except (OSError, ValueError) as error:
        return str(error)
    n_defective = sum(sample.label == 1 for sample in test.samples)
    found = Counts(len(train), len(test) - n_defective, n_defective)
    if found != counts:
        return f"it holds {found} instead of {counts}"
    return None if test.has_masks else "it has no masks"
