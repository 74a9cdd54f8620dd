"""Check a folder in MVTec AD's layout: every file, every pair of image and mask, the counts.

    python main.py check --data_path mvtec_ad
    python main.py check --data_path mvtec_ad --class_name bottle transistor

prints a line for each problem. Exit status: 0 without problems, 1 with problems, 2 for a wrong
argument.
"""

import argparse
import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datasets.dataset import LOSSY_SUFFIXES, choose_classes
from datasets.images import IMAGE_SUFFIXES, open_image, to_rgb
from datasets.layouts import find_classes
from datasets.mvtec import COUNTS, Counts, list_folders, list_images
from utils.commands.options import add_option
from utils.system.device import count_cores

LAYOUT = "mvtec"
FOLDERS = ("train", "test", "ground_truth")
UNREAD = "is not read; move its images or take it away"
NOTE = "note: "  # begins a line that is not a problem


class Files(NamedTuple):
    """The image files of a class.

    Attributes:
        folder: of the class.
        train: images of train/good.
        good: images of test/good, or of test itself if it has no folders.
        defective: images of the other folders of test.
        masks: images of the folders of ground_truth.
    """

    folder: Path
    train: list[Path]
    good: list[Path]
    defective: list[Path]
    masks: list[Path]


class Content(NamedTuple):
    """What a file contains, or the error that reading it raised.

    Attributes:
        error: message; None if the file can be read.
        sha256: of the file's bytes.
        size: width and height in pixels.
        values: the different pixel values of a mask, in any channel of RGB.
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
        FileNotFoundError: if data_path has no class.
        ValueError: if data_path lacks one of the classes.
    """
    if args.class_name:
        _, class_names = choose_classes(args.data_path, args.class_name, LAYOUT)
        lines = iter(())
    else:
        _, class_names = find_classes(args.data_path, LAYOUT)
        lines = _unexpected(args.data_path, class_names, "is no class: no train/good")
    of_classes = (check_class(args.data_path / class_name) for class_name in class_names)
    n_problems = 0
    for line in chain(lines, *of_classes):
        print(line, flush=True)
        n_problems += not line.startswith(NOTE)
    print(f"{len(class_names)} classes checked, {n_problems} problems", flush=True)
    if n_problems:
        sys.exit(1)


def check_class(folder: Path) -> Iterator[str]:
    """Read all files of a class; yield a line for each problem, and for what is worth a note."""
    files = _list_files(folder)
    contents = _read_all(files)
    yield from _check_folders(files)
    yield from _check_other_files(folder)
    yield from (content.error for content in contents.values() if content.error)
    yield from _check_names(contents)
    if (folder / "ground_truth").is_dir():
        yield from _check_masks(files, contents)
    yield from _check_duplicates(files, contents)
    yield from _check_counts(files)


def _list_files(folder: Path) -> Files:
    test = folder / "test"
    defect_types = _folders(test)
    good = [test / "good"] if defect_types else [test]
    return Files(
        folder,
        list_images(folder / "train" / "good"),
        _images(good),
        _images(path for path in defect_types if path.name != "good"),
        _images(_folders(folder / "ground_truth")),
    )


def _images(folders: Iterator[Path] | Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in list_images(folder)]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder; none if it does not exist."""
    return [folder / name for name in list_folders(folder)] if folder.is_dir() else []


def _read_all(files: Files) -> Mapping[Path, Content]:
    """The contents of all images, sorted by path, then of all masks."""
    images = sorted([*files.train, *files.good, *files.defective])
    paths = [*images, *files.masks]
    are_masks = [False] * len(images) + [True] * len(files.masks)
    with ThreadPoolExecutor(count_cores()) as pool:
        contents = pool.map(_read, paths, are_masks)
        bar = tqdm(contents, files.folder.name, len(paths), unit="file", leave=False, disable=None)
        return dict(zip(paths, bar, strict=True))


def _read(path: Path, is_mask: bool) -> Content:
    """Decode a file as a run does."""
    try:
        image = to_rgb(open_image(path), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        return Content(error=str(error))
    if not is_mask:
        return Content(None, digest, image.size)
    # the histogram has 256 bins for each of the 3 channels
    values = {i % 256 for i, count in enumerate(image.histogram()) if count}
    return Content(None, digest, image.size, tuple(sorted(values)))


def _unexpected(folder: Path, names: Collection[str], why: str) -> Iterator[str]:
    """A line for each folder in a folder that does not have one of these names."""
    for path in _folders(folder):
        if path.name not in names:
            yield f"unexpected folder {path}: it {why}"


def _check_folders(files: Files) -> Iterator[str]:
    folder, test = files.folder, files.folder / "test"
    defect_types = [path.name for path in _folders(test) if path.name != "good"]
    yield from _unexpected(folder, FOLDERS, UNREAD)
    yield from _unexpected(folder / "train", ["good"], UNREAD)
    yield from _unexpected(folder / "ground_truth", defect_types, "belongs to no defect in test")
    for name in FOLDERS:
        for parent in _folders(folder / name):
            yield from _unexpected(parent, [], UNREAD)

    if len(files.train) < 2:
        yield (f"{len(files.train)} images in {folder / 'train' / 'good'}; a fit needs at least 2")
    if not files.good and not files.defective:
        yield f"no images in {test}; expected <defect type>/*.png"


def _check_other_files(folder: Path) -> Iterator[str]:
    """Files that a run ignores, and images that lie beside the folders that it reads."""
    for path in sorted(folder.glob("*/**/*")):
        hidden = path.name.startswith(".")
        if path.is_file() and not hidden and path.suffix.lower() not in IMAGE_SUFFIXES:
            yield f"{NOTE}{path} is ignored: {path.suffix or 'no suffix'} is no image"
    for name in FOLDERS:
        # images in test itself are read if it has no folders
        if name != "test" or _folders(folder / name):
            for path in list_images(folder / name):
                yield f"{path} is not read: move it into a folder beside it"


def _check_names(paths: Collection[Path]) -> Iterator[str]:
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.with_suffix(""), path)
        if other != path:
            yield f"{other} and {path} differ only in their suffix: rename one"


def _check_masks(files: Files, contents: Mapping[Path, Content]) -> Iterator[str]:
    masks = {mask.with_suffix(""): mask for mask in files.masks}
    for image in files.defective:
        expected = files.folder / "ground_truth" / image.parent.name / f"{image.stem}_mask"
        mask = masks.pop(expected, None)
        if mask is None:
            yield f"mask missing for {image}: expected {expected}.png"
        elif not contents[mask].error:
            yield from _check_mask(image, mask, contents)
    for mask in masks.values():
        test = files.folder / "test" / mask.parent.name
        yield f"mask {mask} belongs to no image in {test}"


def _check_mask(image: Path, mask: Path, contents: Mapping[Path, Content]) -> Iterator[str]:
    (width, height), image_size = contents[mask].size, contents[image].size
    if (width, height) != image_size and not contents[image].error:
        yield (
            f"mask {mask} is {width}x{height} pixels but its image {image} is "
            f"{image_size[0]}x{image_size[1]}; they must be equal"
        )
    values = contents[mask].values
    if mask.suffix.lower() in LOSSY_SUFFIXES:
        yield f"mask {mask} is a JPEG, which blurs its edges: save it as PNG"
    if values == (0,):
        yield f"mask {mask} marks no pixel although {image} lies among the defects"
    elif len(set(values) - {0}) > 1:
        yield (
            f"mask {mask} has {len(values)} different values; expected 0 and 255 "
            "(whatever is above 0 counts as defect)"
        )


def _check_duplicates(files: Files, contents: Mapping[Path, Content]) -> Iterator[str]:
    trained = {contents[path].sha256: path for path in files.train if not contents[path].error}
    for path in [*files.good, *files.defective]:
        other = trained.get(contents[path].sha256)
        if other is not None:
            yield f"{path} is the same file as {other}: a test image must not be trained on"


def _check_counts(files: Files) -> Iterator[str]:
    """Note if a class of MVTec AD does not have as many images as published."""
    counts = Counts(len(files.train), len(files.good), len(files.defective))
    published = COUNTS.get(files.folder.name, counts)
    if counts != published:
        yield f"{NOTE}{files.folder} holds {counts}; MVTec AD as published has {published}"
