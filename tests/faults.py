"""Runs of main.py for the tests: in this process, or in one that is killed or cannot write.

Importing torch takes seconds and the tests need dozens of runs. So these are forked from a server
that has imported everything. This process cannot be forked once it has computed with several
threads: OpenMP hangs then.
"""

import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

import main

ROOT = Path(__file__).resolve().parent.parent


def run_main(*words: object) -> None:
    """Run the command line in this process."""
    with patch.object(sys, "argv", ["main.py", *map(str, words)]):
        main.main()


class Ended(NamedTuple):
    """How a run ended: its exit status (negative for a signal), stderr and duration."""

    status: int
    stderr: str
    seconds: float


def fork_server() -> ForkServerContext:
    """What starts processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    modules = ("utils.evaluation", "utils.padim", "utils.report.report", "torch.distributed")
    context.set_forkserver_preload([__name__, "tests.helpers", *modules])
    return context


def run_forked(
    words: Sequence[object], kill_after: float | None = None, refuse_after: float | None = None
) -> Ended:
    """Run the command line in a process of its own.

    Args:
        words: of the command line.
        kill_after: seconds after which the process is killed.
        refuse_after: seconds after which no file that it writes may grow.
    """
    context = fork_server()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_become_main, args=(words, writing))
    began = time.perf_counter()
    process.start()
    writing.close()
    time.sleep(kill_after or refuse_after or 0)
    if kill_after is not None:
        process.kill()
    elif refuse_after is not None:
        # Python ignores the signal that this sends, and gets an error instead
        with suppress(ProcessLookupError):  # it may have ended
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    with open(reading.fileno(), closefd=False) as file:
        stderr = file.read()
    process.join()
    return Ended(process.exitcode, stderr, time.perf_counter() - began)


def _become_main(words: Sequence[object], stderr: Any) -> None:
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    with open(os.devnull, "w") as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        run_main(*words)


def draw_moments(n: int, end: float, seed: str) -> list[float]:
    """Random numbers from 0 to end, one in each of n equal parts."""
    rng = random.Random(seed)
    return [(i + rng.random()) / n * end for i in range(n)]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of this many bytes at folder, which is created."""
    folder.mkdir()
    mount(folder, f"size={size}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, options: str) -> None:
    """Mount a disk in memory, or change it with the option remount; skip the test if forbidden."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small disk")
