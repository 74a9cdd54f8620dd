"""Files that appear under their name only when they are complete, and output that is lost."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from zlib import crc32

import psutil
from safetensors import SafetensorError

# of the machine, in the names of temporary files: others may write to the same folder
MACHINE = f"{crc32(platform.node().encode()):08x}"
TEMPORARY = re.compile(rf"\..*\.{MACHINE}-(?P<process>\d{{1,9}})(\.[^.]*)?", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to path when the block ends without error.

    It is hidden, and keeps path's suffix, from which many writers take the format. What runs that
    were killed have left of theirs in the folder is removed.

    Raises:
        OSError: if path cannot be written; the message names it.
    """
    temporary = path.with_name(f".{path.stem}.{MACHINE}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write {path}: {reason}; make room, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # its folder need not be there
            temporary.unlink()


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove, once for each folder, temporary files of this machine's processes that have ended."""
    for path in folder.iterdir():
        name = TEMPORARY.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name["process"])):
            with suppress(OSError):  # another user's: it is in nobody's way
                path.unlink()


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
