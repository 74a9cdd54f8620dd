"""Folders as people have them: the images in them at any depth, and what their names mean."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import category, normalize

from datasets.images import is_image
from datasets.notes import IGNORED, NESTED, RESULTS, Notes
from utils.system.errors import UserError

# by other programs; names that begin with a dot are hidden as well
JUNK = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
JUNK |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
MARKER = ".padim"  # a file in each folder of results of this suite
GOOD = {"good", "ok", "normal"}
MASKS = {"ground_truth", "groundtruth", "ground-truth", "gt", "mask", "masks", "label", "labels"}
MASKS |= {"annotation", "annotations", "seg", "segmentation", "segmentations"}


@contextmanager
def readable() -> Iterator[None]:
    """Raise a UserError for files and folders that cannot be read, as for lack of rights."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error}; make it readable, or take it away") from error


def mark_results(folder: Path) -> None:
    """Mark a folder as one of results: its images are not read as a data set's."""
    (folder / MARKER).touch()


def fold(name: str) -> str:
    """A name without what the eye cannot tell: case, Unicode form and invisible characters."""
    visible = (c for c in normalize("NFC", name).casefold() if category(c) != "Cf")
    return normalize("NFC", "".join(visible)).strip()


def find_name(wanted: str, names: Iterable[str]) -> str | None:
    """The name that is wanted as it is spelled among names: equal, or the only one folded so."""
    names = list(names)
    alike = [name for name in names if fold(name) == fold(wanted)]
    return wanted if wanted in names else alike[0] if len(alike) == 1 else None


def is_good(name: str, normal: str | None = None) -> bool:
    """Whether a folder holds good images: it is called normal, or without it a word for good."""
    if normal is None:
        return fold(name) in GOOD
    return normalize("NFC", name) == normalize("NFC", normal)


def holds_masks(name: str) -> bool:
    """Whether a folder of this name holds masks."""
    return fold(name) in MASKS


def scan(folder: Path, notes: Notes | None = None) -> tuple[list[str], list[Path]]:
    """The names of the folders in a folder, and its files, sorted, without hidden files and JUNK.

    A broken link counts as a file. What is no folder is empty; a folder of results of this suite
    is, too, which is noted.
    """
    if not folder.is_dir():
        return [], []
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    if any(entry.name == MARKER for entry in entries):
        if notes:
            notes.add(RESULTS, folder)
        return [], []
    entries = [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in JUNK]
    # DirEntry.is_dir raises an error for a link to itself
    folders = [entry.name for entry in entries if os.path.isdir(entry)]
    return folders, [folder / entry.name for entry in entries if not os.path.isdir(entry)]


def list_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without junk; none if it does not exist."""
    return scan(folder)[0]


def find_good(folder: Path, normal: str | None = None) -> str | None:
    """The name of the folder of good images in a folder; None if there is none."""
    found = [name for name in list_folders(folder) if is_good(name, normal)]
    if len(found) > 1:
        raise UserError(
            f"{folder} has several folders of good images by their names, {', '.join(found)}; "
            "say which it is with --normal NAME"
        )
    return found[0] if found else None


def list_images(folder: Path, notes: Notes | None = None) -> list[Path]:
    """The image files in a folder at any depth, sorted, without junk; none if it does not exist.

    Links are followed, but not to a folder that is read already. The notes get files that are no
    images, images in folders below, and folders of results.
    """
    parent = Path(os.path.realpath(Path(os.path.abspath(folder)).parent))  # also of "."
    return sorted(_walk(folder, {parent, *parent.parents}, notes or Notes()))


def _walk(folder: Path, seen: set[Path], notes: Notes, depth: int = 0) -> Iterator[Path]:
    real = Path(os.path.realpath(folder))
    if real in seen:  # a link to a folder above would never end
        return
    seen.add(real)
    folders, files = scan(folder, notes)
    for path in files:
        if is_image(path):
            if depth and not holds_masks(folder.name):
                notes.add(NESTED, path)
            yield path
        else:
            notes.add(IGNORED, path)
    for name in folders:
        yield from _walk(folder / name, seen, notes, depth + 1)
