"""Files that appear under their name only when they are complete, and output that is lost."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree
from zlib import crc32

import psutil
from safetensors import SafetensorError

# of the machine, in the names of temporary folders: others may write beside them
MACHINE = f"{crc32(platform.node().encode()):08x}"
TEMPORARY = re.compile(rf"\..*\.{MACHINE}-(?P<process>\d{{1,9}})", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to path when the block ends without error.

    It has path's name, and lies in a hidden folder beside path, which takes what a writer makes
    beside its file. What runs that were killed have left of theirs is removed.

    Raises:
        OSError: if path cannot be written; the message names it.
    """
    hidden = path.with_name(f".{path.stem}.{MACHINE}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        hidden.mkdir(exist_ok=True)
        yield hidden / path.name
        (hidden / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write {path}: {reason}; make room, or choose another folder"
        ) from error
    finally:
        rmtree(hidden, ignore_errors=True)  # it need not be there


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove, once for each folder, what processes of this machine that have ended left in it."""
    for path in folder.iterdir():
        name = TEMPORARY.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name["process"])):
            rmtree(path, ignore_errors=True)  # another user's stays: it is in nobody's way


def find_output_error(error: Exception) -> OSError | None:
    """Why standard output cannot be written, if that is what ended the program with error.

    What the output still holds is dropped then: Python would try again at the end of the program,
    and fail with several lines.
    """
    found = error if isinstance(error, BrokenPipeError) else None
    try:
        print(end="", flush=True)
    except OSError as lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        found = lost
    return found and OSError(
        f"cannot write to standard output: {found.strerror}; send it elsewhere and repeat the "
        "command: what is finished is kept"
    )


def printable(text: Path | str) -> str:
    """The text, with bytes of a file name that are not UTF-8 spelled out."""
    return str(text).encode("utf-8", "backslashreplace").decode()
