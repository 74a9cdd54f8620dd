"""Files that appear under their name only when they are complete, and output that is lost."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to path when the block ends without error.

    It keeps path's suffix, from which many writers take the format.

    Raises:
        OSError: if path cannot be written; the message names it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
