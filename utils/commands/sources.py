"""The image files that predict is asked to score."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.folders import is_junk
from datasets.images import IMAGE_SUFFIXES
from datasets.mvtec import is_image
from utils.system.errors import UserError
from utils.system.files import make_unique

OVERLAYS, MASKS, MAPS = FOLDERS = "overlays", "masks", "maps"  # of the results


class Source(NamedTuple):
    """An image file, and the name, without suffix, of the files written about it."""

    path: Path
    name: str


def find_images(given: Sequence[Path], output: Path) -> list[Source]:
    """The given images and those in given folders, each once, folders in order of their paths.

    Args:
        given: files and folders. In folders, hidden files and folders and the results of an
            earlier run are left out. Links are followed, to each folder once.
        output: the folder for the results.

    Raises:
        OSError: if a path does not exist or a folder cannot be read.
        ValueError: if a file is no image or among the results, or there is no image at all.
    """
    results = find_results(output)
    sources, seen, taken = [], set(), set()
    for root in given:
        for path in _list_images(root, results):
            absolute = os.path.abspath(path)
            if absolute not in seen:
                seen.add(absolute)
                relative = path.relative_to(root) if path != root else Path(path.name)
                sources.append(Source(path, make_unique(str(relative.with_suffix("")), taken)))
    if not sources:
        raise UserError(
            f"no images in {', '.join(map(str, given))}; accepted are {', '.join(IMAGE_SUFFIXES)}"
        )
    return sources


def find_results(output: Path) -> set[Path]:
    """The folders that images are written to, which are not searched for images."""
    return {Path(os.path.realpath(output / name)) for name in FOLDERS}


def check_image(path: Path, results: set[Path]) -> None:
    """Refuse a path that is no image file, or one among the results.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: otherwise.
    """
    _refuse_results(path, results)
    if not os.path.lexists(path):
        raise UserError(f"no file or folder {path}; give images or folders of images")
    if not is_image(path):
        raise UserError(f"{path} is no image; accepted are {', '.join(IMAGE_SUFFIXES)}")


def _refuse_results(path: Path, results: set[Path]) -> None:
    real = Path(os.path.realpath(path))
    if results & {real, *real.parents}:
        raise UserError(f"{path} is among the results in --output; choose another --output")


def _list_images(root: Path, results: set[Path]) -> list[Path]:
    """The image root, or all images in the folder root."""
    if root.is_dir():
        _refuse_results(root, results)
        return sorted(_walk(root, results))
    check_image(root, results)
    return [root]


def _walk(root: Path, results: set[Path]) -> Iterator[Path]:
    """The images in a folder at any depth, but for hidden ones and results."""
    seen = set(results)
    for parent, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = Path(os.path.realpath(parent))
        if real in seen:  # a link to a folder above it would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        paths = (Path(parent, name) for name in names if not is_junk(name))
        yield from filter(is_image, paths)


def _refuse_folder(error: OSError) -> None:
    raise UserError(
        f"cannot read folder {error.filename}: {error.strerror}; make it readable or take it away"
    ) from error
