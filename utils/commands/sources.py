"""The image files that predict is asked to score: in folders, or by paths from a stream."""

import os
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datasets.folders import list_images, readable
from datasets.images import IMAGE_SUFFIXES
from datasets.mvtec import is_image
from datasets.notes import Notes
from utils.system.errors import UserError
from utils.system.files import make_unique, printable

OVERLAYS, MASKS, MAPS = FOLDERS = "overlays", "masks", "maps"  # of the results
CHUNK = 65536  # bytes of a stream that are read at once; no system takes a longer path
UTF16 = (BOM_UTF16_LE, BOM_UTF16_BE)


class Source(NamedTuple):
    """An image file to score."""

    path: Path
    name: str  # of the files written about it, without their suffix
    given: str  # the path as it was given, for the row
    error: str = ""  # why it cannot be scored, if this is known


def describe(error: Exception) -> str:
    """The error in one line that can be printed."""
    return printable(" ".join(str(error).split()))


def find_images(given: Sequence[Path], output: Path, notes: Notes) -> list[Source]:
    """The given images and those in given folders, each once, folders in order of their paths.

    Links are followed, to each folder once. The notes get what is not read in folders.
    """
    sources, seen, taken = [], set(), set()
    for root in given:
        _refuse_results(root, output)
        with readable():
            paths = list_images(root, notes) if root.is_dir() else [_check_image(root)]
        for path in paths:
            absolute = os.path.abspath(path)
            if absolute not in seen:
                seen.add(absolute)
                relative = path.relative_to(root) if path != root else Path(path.name)
                name = make_unique(str(relative.with_suffix("")), taken)
                sources.append(Source(path, name, printable(path)))
    if not sources:
        accepted = f"accepted are {', '.join(IMAGE_SUFFIXES)}"
        found = "; ".join([accepted, *notes.sentences()])
        raise UserError(f"no images in {', '.join(map(str, given))}; {found}")
    return sources


def _check_image(path: Path) -> Path:
    """The path; refuse one that is no image file."""
    if not os.path.lexists(path):
        raise UserError(f"no file or folder {path}; give images or folders of images")
    if not is_image(path):
        raise UserError(f"{path} is no image; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return path


def _refuse_results(path: Path, output: Path | None) -> None:
    results = {os.path.realpath(output / name) for name in FOLDERS} if output else set()
    real = Path(os.path.realpath(path))
    if results & {str(real), *map(str, real.parents)}:
        raise UserError(f"{path} is among the results in --output; choose another --output")


def split_paths(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each path as soon as it is complete; they end with lines, or with NULs if one is first.

    A path that is longer than any system takes is cut.
    """
    separator, rest, first = None, b"", True
    while chunk := stream.read1(CHUNK):
        if first and (chunk[:2] in UTF16 or 0 in chunk[:2]):
            raise UserError("stdin is in UTF-16; save the list in UTF-8, a path a line")
        rest = rest[:CHUNK] + (chunk.removeprefix(BOM_UTF8) if first else chunk)
        separator, first = separator or re.search(b"[\n\0]", rest), False
        if separator:
            *paths, rest = rest.split(separator[0])
            yield from paths
    if rest:
        yield rest


def to_source(line: bytes, output: Path | None) -> Source:
    """The image that a line names; what is wrong with the path is the source's error."""
    # no path has a NUL, and no function takes one
    text = os.fsdecode(line.removesuffix(b"\r")).replace("\0", r"\x00")
    path, error = Path(text), ""
    try:
        if not text:
            raise UserError("the line is empty; give the path of an image")
        _refuse_results(path, output)
        _check_image(path)
    except UserError as problem:
        error = describe(problem)
    return Source(path, name_files(path), printable(text), error)


def name_files(path: Path) -> str:
    """A name of its own for the files about an image: its path from this folder, or from the root.

    The suffix is kept, as a.png and a.jpg may both come.
    """
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here if absolute.is_relative_to(here) else absolute.anchor))
