"""A command as a process of its own: its wall time, its peak memory, what it says of itself."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from threading import Event, Thread, Timer
from time import perf_counter
from typing import NamedTuple

import psutil

from utils.system.files import replacing

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "<folder>"  # stands in a command for a folder that is new in every run
FAILURE = "failure"  # the quantity whose value says what went wrong
PROPORTIONAL = "proportional bytes"  # the quantity: a page of n processes counts 1/n in each
INTERVAL = 0.5  # seconds between looks at it


class Job(NamedTuple):
    """A command to measure; variable and at say what is varied, in what is scaled."""

    arch: str
    method: str
    command: Sequence[str]
    repeat: int = 0
    variable: str = ""
    at: int | str = ""
    environment: Mapping[str, str] = {}
    unavailable: str = ""  # why it cannot be run
    shares: bool = False  # whether it is several processes, which share pages of memory


class Row(NamedTuple):
    """One number of one run."""

    arch: str
    method: str
    variable: str
    at: int | str
    repeat: int
    quantity: str
    value: float | str


def run_job(job: Job, timeout: float) -> list[Row]:
    """Run a job's command; what went wrong, if anything, is one of the rows."""

    def rows(numbers: Mapping[str, float | str]) -> list[Row]:
        head = (job.arch, job.method, job.variable, job.at, job.repeat)
        return [Row(*head, *pair) for pair in numbers.items()]

    if job.unavailable:
        return rows({FAILURE: f"not available: {job.unavailable}"})
    with tempfile.TemporaryDirectory(prefix="padim_benchmark_") as name:
        folder = Path(name)
        command = [name if word == FOLDER else word for word in job.command]
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            numbers, status = measure(command, job.environment, timeout, out, err, job.shares)
        if status != 0:
            text = (folder / "stderr").read_text(errors="replace")
            print(text, file=sys.stderr)
            said = [line.strip() for line in text.split("\n") if line.strip()][-1:]
            return rows({FAILURE: " ".join([describe_status(status), *said])})
        try:
            found = read_output(folder)
        except (LookupError, ValueError) as error:
            return rows({FAILURE: f"it did not say what it did ({error!r})"})
        return rows(numbers | found)


def measure(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    out,
    err,
    shares: bool = False,
) -> tuple[dict[str, float], int]:
    """Wall seconds, peak bytes of the largest process, and exit status (negative: a signal).

    With shares, also its peak with shared pages counted in parts, where the system tells.

    The system counts the memory of a process from that of the one that started it: a caller that
    holds more than the command does would measure itself.
    """
    start = perf_counter()
    process = subprocess.Popen(
        command,
        stdout=out,
        stderr=err,
        env=os.environ | environment,
        cwd=ROOT,
        start_new_session=True,
    )
    timer = Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    peaks: dict[int, int] = {}
    ended = Event()
    watcher = Thread(target=watch, args=(process.pid, peaks, ended))
    if shares:
        watcher.start()
    try:
        # the command and all the processes that it has waited for, such as torchrun's
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        timer.cancel()
        ended.set()
        if shares:
            watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    # bytes on macOS, KiB elsewhere
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    numbers = {"seconds": perf_counter() - start, "peak bytes": peak}
    if peaks:
        numbers[PROPORTIONAL] = max(peaks.values())
    return numbers, process.returncode


def watch(pid: int, peaks: dict[int, int], ended: Event) -> None:
    """Keep the most proportional bytes that a process and its children have had, by process."""
    while not ended.wait(INTERVAL):
        with suppress(psutil.Error):
            first = psutil.Process(pid)
            for one in (first, *first.children(recursive=True)):
                with suppress(psutil.Error, AttributeError):  # it has ended; Linux alone tells
                    peaks[one.pid] = max(peaks.get(one.pid, 0), one.memory_full_info().pss)


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status};"
    return f"killed by {signal.Signals(-status).name} (out of time or memory?);"


def read_output(folder: Path) -> dict[str, float]:
    """What a run tells: the suite in metrics.csv, the others in their last line."""
    paths = list(folder.glob("*/metrics.csv"))
    if paths:
        return read_metrics(paths[0])
    found = json.loads((folder / "stdout").read_text().strip().splitlines()[-1])
    numbers = {f"seconds {stage}": value for stage, value in found.pop("seconds").items()}
    if "rocauc" in found:
        areas = list(found.pop("rocauc").values())
        numbers |= {f"{level} ROCAUC": fmean(a[level] for a in areas) for level in areas[0]}
    return numbers | found


def read_metrics(path: Path) -> dict[str, float]:
    """Of all classes in a metrics.csv: images, mean ROCAUC, sums of the seconds."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sums = {"training images": "n_train", "test images": "n_test"}
    sums |= {name.replace("_", " "): name for name in rows[0] if name.startswith("seconds_")}
    numbers = {label: sum(float(row[name]) for row in rows) for label, name in sums.items()}
    for level in ("image", "pixel"):
        values = [row[f"{level}_auroc"] for row in rows]
        if all(values):
            numbers[f"{level} ROCAUC"] = fmean(map(float, values))
    return numbers


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write all measurements of a part, raw."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Read measurements; there are none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: dict[str, str]) -> Row:
    value = row["value"] if row["quantity"] == FAILURE else float(row["value"])
    at = int(row["at"]) if row["at"] else ""
    return Row(**row | {"at": at, "repeat": int(row["repeat"]), "value": value})
