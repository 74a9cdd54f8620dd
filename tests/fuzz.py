"""Feed randomly damaged files to the readers.

    python -m tests.fuzz --seconds 600
    python -m tests.fuzz --target images --input 12345

A reader may return a valid result, or raise an OSError or ValueError with a message. Anything else
is a find: another error, a warning, an invalid result, code that is run, the end of the process, or
more than SECONDS or MEMORY. A damaged file depends on its target, seed and number alone.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from tests.fuzz_targets import TARGETS, Target

# of processor time for a file of some kB; torch alone takes 5 to word what is wrong with a pickle
SECONDS = 20
STUCK = 240  # seconds by the clock
# bytes; an image of 89 megapixels, the most that Pillow takes without a warning, needs 12 a pixel
MEMORY = 2_000_000_000
# what no reader does, as events of Python's audit hooks; nor does it open a file to write
FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "socket.connect", "shutil.rmtree", "pickle.find_class"),
}
FORK = multiprocessing.get_context("fork")


class Forbidden(BaseException):
    """Raised by what no reader may do; no reader catches it."""


class Outcome(NamedTuple):
    """Numbers of inputs (all, read, refused), and the find that ended the fuzzing, or ""."""

    tried: int
    read: int
    refused: int
    find: str


def fuzz(name: str, seconds: float, most: int, seed: int, saved: Path) -> Outcome:
    """Try inputs one after the other in a fork, until one is a find.

    Args:
        name: a key of TARGETS.
        seconds: after which it stops in any case.
        most: the number of inputs after which it stops in any case.
        seed: of the inputs.
        saved: folder for the input that is a find.
    """
    counts = FORK.RawArray("q", 3)  # as the first three of Outcome
    with tempfile.TemporaryDirectory() as scratch:
        target = TARGETS[name](Path(scratch))
        reading, writing = FORK.Pipe(duplex=False)
        worker = FORK.Process(target=_work, args=(target, most, seed, counts, writing))
        worker.start()
        writing.close()
        worker.join(seconds)
        find = "" if worker.is_alive() else _explain(reading, worker.exitcode)
        worker.kill()
        worker.join()
        if find:
            find = f"input {counts[0]} with seed {seed}: {find}"
            saved.mkdir(parents=True, exist_ok=True)
            shutil.copy(target.path, saved / f"{name}-{seed}-{counts[0]}")
    return Outcome(*counts, find)


def _explain(reading: Connection, status: int) -> str:
    """What the worker sent before it ended, or how it ended."""
    try:
        return reading.recv()
    except EOFError:
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            return f"takes more than {SECONDS} s"
        return f"the process ended with status {status}"


def _work(target: Target, most: int, seed: int, counts: list[int], writing: Connection) -> None:
    """Try inputs until one is a find; send what it is, or an empty text after the last input."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints remarks on damaged images
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    while counts[0] < most:
        # the signal that comes when the time is over ends the process
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, STUCK)
        what, refused = try_input(target, seed, counts[0])
        if what:
            writing.send(what)
            return
        counts[0] += 1
        counts[2 if refused else 1] += 1
    writing.send("")


def try_input(target: Target, seed: int, number: int) -> tuple[str, bool]:
    """What is wrong with the outcome of an input, if anything, and whether it was refused."""
    target.path.parent.mkdir(exist_ok=True)
    target.path.write_bytes(target.make(_random(target, seed, number)))
    refused = False
    for read in target.readers:
        try:
            with _strict(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                read(target.path)
        except (OSError, ValueError) as error:
            refused = True
            if not str(error).strip():
                return f"{read.__name__}: {type(error).__name__} without a message", True
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            what = f"{read.__name__}: {type(error).__name__} {error} ({where})"[:500]
            return what.encode(errors="backslashreplace").decode(), True
    return "", refused


def _random(target: Target, seed: int, number: int) -> Random:
    return Random(f"{target.name} {seed} {number}")


_is_strict = False


@contextmanager
def _strict() -> Iterator[None]:
    """Make errors of warnings and of what no reader may do."""
    global _is_strict
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _is_strict = True
        try:
            yield
        finally:
            _is_strict = False


def audit(event: str, arguments: tuple) -> None:
    """The audit hook: raise Forbidden while a reader is at work."""
    if not _is_strict:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in FORBIDDEN or (writes and arguments[0] != os.devnull):
        raise Forbidden(f"{event} {arguments}")


def main() -> None:
    """Fuzz the targets one after the other; exit status 1 if there is a find."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, help="try only the input of this number")
    parser.add_argument("--saved", type=Path, default=Path(".fuzz"), help="folder for finds")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads would not survive the fork
    sys.addaudithook(audit)

    if args.input is not None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in args.target:
                print(name, *try_input(TARGETS[name](Path(scratch)), args.seed, args.input))
        return
    outcomes = {}
    for name in args.target:
        outcomes[name] = fuzz(name, args.seconds, args.inputs, args.seed, args.saved)
        print(f"{name}: {outcomes[name]}", flush=True)
    if args.json:
        content = {name: outcome._asdict() for name, outcome in outcomes.items()}
        args.json.write_text(json.dumps(content))
    sys.exit(any(outcome.find for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
