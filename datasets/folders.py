"""Folders as people have them: the images in them at any depth, and what their names mean."""

import os
from collections.abc import Iterator
from pathlib import Path

from datasets.images import is_image
from datasets.notes import BESIDE, IGNORED, NESTED, Notes
from utils.system.errors import UserError

# by other programs; names that begin with a dot are hidden as well
JUNK = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
JUNK |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
# a folder with one of these files holds results of this suite; a run begins with MARKER
MARKER = ".padim"
RESULTS = {MARKER, "metrics.json", "predictions.csv", "studies.png"}
GOOD = {"good", "ok", "normal"}
MASKS = {"ground_truth", "groundtruth", "ground-truth", "gt", "mask", "masks", "label", "labels"}
MASKS |= {"annotation", "annotations", "seg", "segmentation", "segmentations"}
MASK_ENDINGS = ("_mask", "", "_gt", "_label", "_seg")  # of a mask's stem, after the image's


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden or another program's own."""
    return name.startswith(".") or name.casefold() in JUNK


def is_good(name: str, normal: str | None = None) -> bool:
    """Whether a folder holds good images: it is called normal, or without it a word for good."""
    return name.casefold() in GOOD if normal is None else name == normal


def holds_masks(name: str) -> bool:
    """Whether a folder of this name holds masks."""
    return name.casefold() in MASKS


def scan(folder: Path) -> tuple[list[str], list[Path]]:
    """The names of the folders in a folder, and its files, sorted, without junk.

    A broken link counts as a file. A folder of results of this suite is empty.
    """
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    if any(entry.name in RESULTS for entry in entries):
        return [], []
    entries = [entry for entry in entries if not is_junk(entry.name)]
    # DirEntry.is_dir raises an error for a link to itself
    folders = [entry.name for entry in entries if os.path.isdir(entry)]
    return folders, [folder / entry.name for entry in entries if not os.path.isdir(entry)]


def list_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without junk.

    Raises:
        FileNotFoundError: if folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; a class needs training and test images")
    return scan(folder)[0]


def list_folders_with(data_path: Path, subfolder: str) -> list[str]:
    """The names of the folders in data_path that have such a subfolder, sorted."""
    return [name for name in list_folders(data_path) if (data_path / name / subfolder).is_dir()]


def find_good(folder: Path, normal: str | None = None) -> str | None:
    """The name of the folder of good images in a folder; None if there is none.

    Raises:
        ValueError: if there are several.
    """
    names = list_folders(folder) if folder.is_dir() else []
    found = [name for name in names if is_good(name, normal)]
    if len(found) > 1:
        raise UserError(
            f"{folder} has several folders of good images by their names, {', '.join(found)}; "
            "say which it is with --normal NAME"
        )
    return found[0] if found else None


def list_images(folder: Path, notes: Notes | None = None) -> list[Path]:
    """The image files in a folder at any depth, sorted, without junk; none if it does not exist.

    Links are followed, but not to a folder that is read already.

    Args:
        folder: to look in.
        notes: gets the files that are no images, and the images in folders below.
    """
    if not folder.is_dir():
        return []
    parent = Path(os.path.realpath(Path(os.path.abspath(folder)).parent))  # also of "."
    return sorted(_walk(folder, {parent, *parent.parents}, notes or Notes()))


def _walk(folder: Path, seen: set[Path], notes: Notes, depth: int = 0) -> Iterator[Path]:
    real = Path(os.path.realpath(folder))
    if real in seen:  # a link to a folder above would never end
        return
    seen.add(real)
    folders, files = scan(folder)
    for path in files:
        if is_image(path):
            if depth and not holds_masks(folder.name):
                notes.add(NESTED, path)
            yield path
        else:
            notes.add(IGNORED, path)
    for name in folders:
        yield from _walk(folder / name, seen, notes, depth + 1)


def split_masks(
    folder: Path, paths: list[Path], notes: Notes
) -> tuple[list[Path], dict[Path, list[Path]]]:
    """The images among the files of a folder, and the masks that lie beside them.

    A mask lies in a folder called as in MASKS, or its stem is that of an image with one of
    MASK_ENDINGS.

    Args:
        folder: that was listed.
        paths: the images and masks in it, at any depth.
        notes: gets the masks.

    Returns:
        The images, and the masks by the image's path without suffix.
    """

    def skip_masks(parent: Path) -> Path:
        """The folder without those of masks on its way."""
        return folder.joinpath(*(p for p in parent.relative_to(folder).parts if not holds_masks(p)))

    places = {parent: skip_masks(parent) for parent in {path.parent for path in paths}}
    endings = tuple(filter(None, MASK_ENDINGS))
    odd = {p for p in paths if places[p.parent] != p.parent or p.stem.endswith(endings)}
    stems = {path.with_suffix("") for path in paths} if odd else set()
    masks: dict[Path, list[Path]] = {}
    for path in sorted(odd):
        place = places[path.parent]
        bare = [path.stem.removesuffix(end) for end in endings if path.stem.endswith(end)]
        bare.append(path.stem)
        of_images = [place / stem for stem in bare if place / stem in stems]
        if place != path.parent or of_images[0] != path.with_suffix(""):
            notes.add(BESIDE, path)
            masks.setdefault((of_images or [place / path.stem])[0], []).append(path)
        else:
            odd.remove(path)
    return [path for path in paths if path not in odd], masks
