"""How the program starts and ends: settings of its process, and errors as one line."""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, NoReturn

from utils.system.errors import UserError

BUG, MISTAKE = 1, 2  # exit statuses; after a signal it is 128 and its number
REPORT = "this is a bug of this program, not a mistake of yours: please report the lines above"
# what torch and Python say when there is no more memory or thread, on any system
FULL = ("out of memory", "not enough memory", "can't allocate memory", "can't start new thread")
OWN = ("datasets", "utils")  # packages


def prepare_process() -> None:
    """Set what concerns the whole process, before anything is imported that takes seconds."""
    # Threads that wait for work spin for microseconds, then sleep. The default, milliseconds, takes
    # the cores from the threads that decode images; without spinning, small matrices take 6 x as
    # long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # imports make a million objects, none of them garbage: looking for it takes most of a second
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # names that the terminal cannot show are spelled out
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup ignores it
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _: Any) -> NoReturn:
    """End as after an interrupt, on docker stop, kill or a closed terminal: results are written."""
    raise KeyboardInterrupt(number)


def run_program(name: str, run: Callable[[Any], None], settings: Any, kept: str = "") -> None:
    """Call run(settings), and end the process with a status if that fails.

    A UserError, or a lack of the machine, is one line and MISTAKE; a signal is one line. Anything
    else is a bug: its traceback and BUG. The line begins with the program's name, and ends with
    what a run that ends early has kept.
    """
    kept = kept and f"; {kept}"
    try:
        run(settings)
        print(end="", flush=True)  # a closed pipe is noticed here, not at exit
    except KeyboardInterrupt as stop:
        print(f"interrupted{kept}", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except UserError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(MISTAKE)
    except BrokenPipeError:  # the reader of standard output has ended, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if lack := explain_lack(error):
            print(f"{name}: error: {lack}{kept}", file=sys.stderr)
            sys.exit(MISTAKE)
        traceback.print_exc()
        print(f"{name}: {REPORT}", file=sys.stderr)
        sys.exit(BUG)
    finally:
        # at exit, looking for garbage among torch's modules would take a second
        gc.freeze()


def explain_lack(error: Exception) -> str | None:
    """One line on memory, threads or a package that the machine lacks; None for another error.

    Any line of code may meet one of these, so they are known by what the libraries say.
    """
    text = " ".join(str(error).split())[:120]
    if isinstance(error, MemoryError) or any(words in text for words in FULL):
        return (
            f"no more memory or threads ({text or 'MemoryError'}); lower --batch_size, "
            "--n_features, --crop or --num_workers, or start fewer processes"
        )
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] not in OWN:
        return f"a package cannot be imported ({text}); pip install -r requirements.txt"
    return None
