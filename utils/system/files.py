"""Files that appear under their name only when they are complete, and names that files can have."""

import csv
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from safetensors import SafetensorError

from utils.system.errors import UserError

OLD = 3600  # seconds: no file takes an hour to write
LONGEST_NAME = 200  # bytes; most file systems allow 255, of which suffixes take some


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to path when the block ends without error.

    It has path's name and lies in a hidden folder beside path, together with whatever a writer
    puts beside its file. What a killed process left there is removed once it is old: the process
    may be on another machine that shares the folder.
    """
    hidden = path.with_name(f".{shorten(path.name)}.part")
    try:
        _remove_leftovers(hidden)
        hidden.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=hidden, ignore_cleanup_errors=True) as folder:
            temporary = Path(folder, path.name)
            yield temporary
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write {path}: {reason}; make room, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # it may hold another process's file
            hidden.rmdir()


def _remove_leftovers(hidden: Path) -> None:
    """Remove what no process has changed for OLD seconds."""
    with suppress(FileNotFoundError):  # there is none, or another process has removed it
        for folder in hidden.iterdir():
            if time.time() - folder.stat().st_mtime > OLD:
                rmtree(folder, ignore_errors=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; file names that are not UTF-8 are written as their bytes."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def make_folder(path: Path, option: str = "--save_path") -> Path:
    """The folder that an option names, made if need be, in which files can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(
            f"cannot write in {path}: {error.strerror}; choose another {option}"
        ) from error


def shorten(name: str) -> str:
    """The name; if it is too long for a file's, its beginning and a hash of it."""
    content = os.fsencode(name)
    if len(content) <= LONGEST_NAME:
        return name
    # a character that is cut through is left out
    start = content[: LONGEST_NAME - 17].decode("utf-8", "ignore")
    return f"{start}_{hashlib.sha256(content).hexdigest()[:16]}"


def make_unique(name: str, taken: set[str]) -> str:
    """The name, with a number if it is among those taken, to which it is then added.

    Case is ignored, as some file systems do.
    """
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique.casefold())
    return unique


def printable(text: Path | str) -> str:
    """The text, with bytes of a file name that are not UTF-8 spelled out."""
    return str(text).encode("utf-8", "backslashreplace").decode()
