"""How the program starts and ends: settings of its process, and errors as one line."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from utils.system.errors import UserError
from utils.system.files import find_output_error
from utils.system.lacks import INTERRUPTED, MISTAKE, explain_lack

BUG = "this is a bug of this program, not a mistake of yours: please report the lines above"
BUG_STATUS = 1


def prepare_process() -> None:
    """Set what concerns the whole process, before anything is imported that takes seconds."""
    # Threads that wait for work spin for microseconds, then sleep. The default, milliseconds, takes
    # the cores from the threads that decode images; without spinning, small matrices take 6 x as
    # long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # imports make a million objects, none of them garbage: looking for it takes most of a second
    gc.set_threshold(100_000)
    if sys.stderr is None:  # it was closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the program)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # names that the terminal cannot show are spelled out
            stream.reconfigure(errors="backslashreplace")


def run_program(name: str, run: Callable[[Any], None], args: Any, kept: str = "") -> None:
    """Call run(args); a mistake or a lack that the user can mend ends in one line.

    Args:
        name: of the program, at the beginning of that line.
        run: raises UserError for whatever the user can mend.
        args: of run.
        kept: what a run that ends early leaves, for that line.

    Raises:
        SystemExit: with MISTAKE or INTERRUPTED, or with BUG_STATUS after a bug's traceback.
    """
    try:
        run(args)
        print(end="", flush=True)  # a full disk or a closed pipe is noticed here, not at exit
    except KeyboardInterrupt:
        print(f"interrupted{kept and f'; {kept}'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            traceback.print_exc()
            print(f"{name}: {BUG}", file=sys.stderr)
            sys.exit(BUG_STATUS)
        # what a mistake leaves is said by its own message
        rest = f"; {kept}" if kept and not isinstance(error, UserError) else ""
        print(f"{name}: error: {message}{rest}", file=sys.stderr)
        sys.exit(MISTAKE)
    finally:
        # at exit, looking for garbage among torch's modules would take a second
        gc.freeze()


def explain(error: Exception) -> str | None:
    """One line on what went wrong, if the user can mend it; None for a bug."""
    error = find_output_error(error) or error
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    return explain_lack(error)
