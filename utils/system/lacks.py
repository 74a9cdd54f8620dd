"""What the machine lacks, in one line. Nothing is imported that may itself be what is lacking."""

import os
import sys
from types import TracebackType

# what torch says when memory is full, on any system
MEMORY_IS_FULL = ("out of memory", "not enough memory", "can't allocate memory")
OWN = ("datasets", "utils")
MISTAKE, INTERRUPTED = 2, 130  # exit statuses


def explain_lack(error: BaseException) -> str | None:
    """One line on what the machine lacks; None if error is about something else."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in text for words in MEMORY_IS_FULL):
        return (
            f"memory is full ({text[:120] or 'no more is given'}); lower --batch_size, "
            "--n_features or --crop, or start fewer processes"
        )
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in OWN:
        while isinstance(error.__cause__ or error.__context__, ImportError):
            error = error.__cause__ or error.__context__
        text = " ".join(str(error).split())
        return (
            f"a package cannot be imported ({text[:120]}); pip install -r requirements.txt, or "
            "raise the limit on memory (ulimit -v)"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return (
            "no more threads can be started; raise the limit on processes (ulimit -u), or lower "
            "--num_workers and OMP_NUM_THREADS"
        )
    if type(error).__name__ == "AcceleratorError":  # torch is not imported only for its name
        return f"the device failed ({text[:120]}); repeat the command, or give --device cpu"
    return None


def report_lack(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A sys.excepthook for the program's start: a lack or an interrupt ends in one line."""
    lack = "interrupted" if kind is KeyboardInterrupt else explain_lack(error)
    if lack is None:
        sys.__excepthook__(kind, error, trace)
        return
    interrupted = kind is KeyboardInterrupt
    print(lack if interrupted else f"main.py: error: {lack}", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED if interrupted else MISTAKE)  # Python itself would exit with 1
