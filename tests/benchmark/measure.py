"""Runs a command in a process of its own, and measures its time and memory.

The system counts the memory of a process from that of the process that started it. So nothing that
the benchmark itself imports may need much memory: no torch.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from threading import Timer
from time import perf_counter
from typing import NamedTuple

from utils.system.files import write_csv

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "<folder>"  # in a command: a new folder for each run
TIMEOUT = 3600  # seconds for a command
FAILURE = "failure"  # the quantity whose value is why a command failed


class Job(NamedTuple):
    """A command to measure.

    Attributes:
        arch: the network.
        method: "suite", "naive" or "alone".
        command: the words of the command.
        variable: what is varied from run to run, if anything.
        at: the value of the variable.
    """

    arch: str
    method: str
    command: Sequence[str]
    variable: str = ""
    at: int | str = ""


class Row(NamedTuple):
    """One number of one run: a row of <part>.csv."""

    arch: str
    method: str
    variable: str
    at: int | str
    repeat: int
    quantity: str
    value: float | str


def run_job(job: Job, repeat: int, timeout: float = TIMEOUT) -> list[Row]:
    """Run a job's command; if it fails, the only row says why."""
    with tempfile.TemporaryDirectory(prefix="padim_benchmark_") as name:
        folder = Path(name)
        command = [name if word == FOLDER else word for word in job.command]
        numbers, status = measure(command, folder, timeout)
        if status == 0:
            numbers |= read_output(folder)
        else:
            stderr = (folder / "stderr").read_text(errors="replace")
            print(stderr, file=sys.stderr)
            numbers = {FAILURE: describe_end(status, stderr)}
    head = (job.arch, job.method, job.variable, job.at, repeat)
    return [Row(*head, *pair) for pair in numbers.items()]


def measure(
    command: Sequence[str], folder: Path, timeout: float
) -> tuple[dict[str, float | str], int]:
    """Wall seconds, peak bytes of the largest process, and the exit status.

    What the command prints is in the files stdout and stderr of the folder. After timeout seconds
    the command is killed.
    """
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, process_group=0)
        timer = Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            # the usage of the command and of all processes that it has waited for
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    # bytes on macOS, KiB elsewhere
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": perf_counter() - start, "peak bytes": peak}, process.returncode


def describe_end(status: int, stderr: str) -> str:
    """Why a command failed: its exit status or signal, and its last line on stderr."""
    end = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
    return "; ".join([end, *stderr.strip().splitlines()[-1:]])


def read_output(folder: Path) -> dict[str, float | str]:
    """The numbers of a run: in the suite's metrics.csv, or in the last line of stdout as JSON."""
    paths = list(folder.glob("*/metrics.csv"))
    if paths:
        settings = json.loads(paths[0].with_suffix(".json").read_text())["settings"]
        gpu = settings["peak_memory_bytes"].get("cuda")
        return read_metrics(paths[0]) | ({} if gpu is None else {"GPU bytes": gpu})
    found = json.loads((folder / "stdout").read_text().splitlines()[-1])
    numbers = {f"seconds {stage}": value for stage, value in found["seconds"].items()}
    classes = found.get("rocauc", {}).values()
    for level in ("image", "pixel") if classes else ():
        numbers[f"{level} ROCAUC"] = fmean(one[level] for one in classes)
    return numbers


def read_metrics(path: Path) -> dict[str, float | str]:
    """The sums of the seconds of all classes, and their mean ROCAUC."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("seconds_")]
    numbers = {name.replace("_", " "): sum(float(row[name]) for row in rows) for name in names}
    for level in ("image", "pixel"):
        numbers[f"{level} ROCAUC"] = fmean(float(row[f"{level}_auroc"]) for row in rows)
    return numbers


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write measurements as CSV."""
    write_csv(path, Row._fields, rows)


def read_rows(path: Path) -> list[Row]:
    """Read measurements; without a file there are none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [Row(**row) for row in csv.DictReader(file)]
    return [
        row._replace(
            at=int(row.at) if row.at else "",
            repeat=int(row.repeat),
            value=row.value if row.quantity == FAILURE else float(row.value),
        )
        for row in rows
    ]
