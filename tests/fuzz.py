"""What the readers of files do with files that chance has damaged.

    python -m tests.fuzz --seconds 600
    python -m tests.fuzz --target images --input 12345

Every reader may give a valid result or raise an OSError or ValueError that says something. All
else is a find: another error, a warning, more than SECONDS or MEMORY, a result that is not valid,
code that was run, the end of the process. An input is made from its target, seed and number alone.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import count
from mmap import mmap
from pathlib import Path
from random import Random
from struct import Struct
from typing import NamedTuple

import psutil
import torch

from tests.fuzz_targets import TARGETS, Target

# of the processor that reading a file of some kB may take; torch alone takes 5 to word what is
# wrong with a pickle of 20 kB
SECONDS = 20
STUCK = 240  # by the clock, on a machine that has other work too
MOST = 100  # finds, after which a target is left
# bytes that it may take; an image of 89 megapixels, the most that Pillow takes without a warning,
# needs 12 a pixel while it is decoded, resized and made an array
MEMORY = 1_500_000_000
# what no reader does; "open" is for those that are opened to be written
FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "socket.connect", "shutil.rmtree", "pickle.find_class"),
}


class Find(NamedTuple):
    """An input with an outcome that is not allowed, and what that is."""

    target: str
    seed: int
    number: int
    what: str


class Forbidden(BaseException):
    """What no reader may do."""


class Counts(NamedTuple):
    """Of inputs that were tried, read and refused."""

    tried: int
    read: int
    refused: int


class Progress:
    """Numbers that a process and its forks share.

    They are the number of the input at work, the time and the process's seconds of the processor
    when it was begun, and how many inputs were read and refused.
    """

    LAYOUT = Struct("qddqq")

    def __init__(self) -> None:
        self._memory = mmap(-1, self.LAYOUT.size)
        self.read = self.refused = 0

    def write(self, number: int) -> None:
        """Say which input is next."""
        self._memory[:] = self.LAYOUT.pack(
            number, time.monotonic(), time.process_time(), self.read, self.refused
        )

    def look(self) -> tuple[int, float, float, int, int]:
        """The numbers."""
        return self.LAYOUT.unpack(self._memory[:])


def fuzz(name: str, seconds: float, seed: int, saved: Path) -> tuple[Counts, list[Find]]:
    """Try inputs for so long, each number once.

    Args:
        name: a key of TARGETS.
        seconds: to spend, if there are not MOST finds before.
        seed: of the inputs.
        saved: the folder for the inputs of finds; it is made when there is one.
    """
    progress, finds = Progress(), []
    end = time.monotonic() + seconds
    number = 0
    with tempfile.TemporaryDirectory() as scratch:
        target = TARGETS[name](Path(scratch))
        while time.monotonic() < end and len(finds) < MOST:
            progress.write(number)
            what = _watch(target, seed, number, progress, end)
            number, *_, progress.read, progress.refused = progress.look()
            if what:
                find = Find(name, seed, number, what)
                finds.append(find)
                print(f"{name} {number}: {what}", file=sys.stderr, flush=True)
                saved.mkdir(parents=True, exist_ok=True)
                content = target.make(_random(target, seed, number))
                (saved / f"{name}-{seed}-{number}").write_bytes(content)
                number += 1
    return Counts(number, progress.read, progress.refused), finds


def _watch(target: Target, seed: int, first: int, progress: Progress, end: float) -> str:
    """Let a fork try inputs from first on, until the time is over or one is a find."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _work(target, seed, first, progress, writing)
    os.close(writing)
    what, status, process = "", 0, psutil.Process(pid)
    while not os.waitpid(pid, os.WNOHANG)[0]:
        _, began, spent, *_ = progress.look()
        now = time.monotonic()
        if now - began > STUCK or sum(process.cpu_times()[:2]) - spent > SECONDS:
            what = f"takes more than {SECONDS} s"
        if what or now > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = -1
            break
        time.sleep(0.02)
    with os.fdopen(reading) as file:
        told = file.read()
    return what or told or ("" if status else "the process ended")


def _work(target: Target, seed: int, first: int, progress: Progress, writing: int) -> None:
    """Be the process that reads the inputs; it ends at the first find, which it tells."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's remarks on damaged images
        _limit_memory()
        most = _peak_memory() + MEMORY
        for number in count(first):
            progress.write(number)
            what, refused = try_input(target, seed, number)
            if not what and _peak_memory() > most:
                what = f"takes more than {MEMORY} bytes"
            if what:
                os.write(writing, what.encode(errors="replace")[:4000])
                break
            progress.refused += refused
            progress.read += not refused
    finally:
        os._exit(0)


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
                return f"{read.__name__}: {type(error).__name__} without a word", True
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return f"{read.__name__}: {type(error).__name__} {error} ({where})"[:500], True
    return "", refused


def _random(target: Target, seed: int, number: int) -> Random:
    return Random(f"{target.name} {seed} {number}")


@contextmanager
def _strict() -> Iterator[None]:
    """Warnings are errors, and so is whatever no reader does."""
    global _forbidding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _forbidding = True
        try:
            yield
        finally:
            _forbidding = False


_forbidding = False


def _audit(event: str, arguments: tuple) -> None:
    if not _forbidding:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in FORBIDDEN or (writes and arguments[0] != os.devnull):
        raise Forbidden(f"{event} {arguments}")


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_memory() -> None:
    """Far beyond what is allowed, so that this machine survives what is not."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + 4_000_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Fuzz the targets one after the other; exit status 1 if there is a find."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, help="try the input of this number alone, here")
    parser.add_argument("--saved", type=Path, default=Path(".fuzz"), help="folder for finds")
    parser.add_argument("--json", type=Path, help="also write counts and finds here")
    args = parser.parse_args()
    sys.addaudithook(_audit)
    torch.set_num_threads(1)  # threads would not survive the fork

    if args.input is not None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in args.target:
                print(name, *try_input(TARGETS[name](Path(scratch)), args.seed, args.input))
        return
    results, all_finds = {}, []
    for name in args.target:
        counts, finds = fuzz(name, args.seconds, args.seed, args.saved)
        print(
            f"{name}: {counts.tried} inputs, {counts.read} read, {counts.refused} refused, "
            f"{len(finds)} finds",
            flush=True,
        )
        results[name] = counts._asdict()
        all_finds += finds
    if args.json:
        content = {"targets": results, "finds": [find._asdict() for find in all_finds]}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(bool(all_finds))


if __name__ == "__main__":
    main()
