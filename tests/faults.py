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
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from unittest.mock import patch

import pytest

import main
from tests.helpers import Done, call


def run_main(*words: object) -> None:
    """Run the command line in this process."""
    with patch.object(sys, "argv", ["main.py", *map(str, words)]):
        main.main()


def fork(function: Callable, arguments: Sequence, **names: object) -> tuple[Process, Connection]:
    """A process of its own, with names in its environment, and a pipe.

    What function(*arguments) returns or raises there comes through the pipe.
    """
    context = multiprocessing.get_context("forkserver")
    modules = ("utils.evaluation", "utils.padim", "utils.report.report", "torch.distributed")
    context.set_forkserver_preload([__name__, *modules])
    reading, writing = context.Pipe(duplex=False)
    settings = writing, os.getcwd(), os.environ | {name: str(names[name]) for name in names}
    process = context.Process(target=_send, args=(*settings, function, arguments))
    process.start()
    writing.close()
    return process, reading


def _send(
    pipe: Connection, folder: str, environment: dict, function: Callable, arguments: Sequence
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    try:
        pipe.send(function(*arguments))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(error)


def run_forked(
    words: Sequence[object], kill_after: float | None = None, refuse_after: float | None = None
) -> Done:
    """Run the command line in a process of its own.

    Args:
        words: of the command line.
        kill_after: seconds after which the process is killed.
        refuse_after: seconds after which no file that it writes may grow.
    """
    process, pipe = fork(call, words)
    time.sleep(kill_after or refuse_after or 0)
    if kill_after is not None:
        process.kill()
    elif refuse_after is not None:
        # Python ignores the signal that this sends, and gets an error instead
        with suppress(ProcessLookupError):  # it may have ended
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    try:
        return pipe.recv()
    except EOFError:  # it was killed
        return Done(-signal.SIGKILL, "", "")
    finally:
        process.join()


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
