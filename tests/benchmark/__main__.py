"""Time and memory of the suite on this machine, beside a naive reference of the method.

    python -m tests.benchmark --data_path mvtec_ad --class_name bottle --arch resnet18
    python -m tests.benchmark --data_path mvtec_ad --arch resnet18 --parts processes

Parts: whole (the whole command and tests/naive_pipeline.py in turn), limit (decoding, the network,
the Gaussians and ONNX Runtime alone), stream (predict's answers to one path at a time) and
processes (torchrun, on several classes). Each writes <part>.md: a table of medians, with the
command, the machine and the date. One command runs at a time: leave the machine alone meanwhile.
"""

import argparse
import csv
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

from psutil import virtual_memory

from utils.backbone import BACKBONES
from utils.report.tables import Table, to_markdown
from utils.settings import at_least
from utils.system.device import count_cores
from utils.system.files import make_folder

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, str(ROOT / "main.py")]
FOLDER = "<folder>"  # in a command: a new folder for each run
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "onnxruntime")
# each stage of the suite, and the stages of the naive reference that do the same
STAGES = {
    "fit": ("network, training images", "embeddings, training images", "fit", "file"),
    "score": ("network, test images", "embeddings, test images", "distances", "maps"),
    "metrics": ("metrics",),
    "figures": ("figures",),
}
Numbers = dict[str, float]


def main() -> None:
    """Measure the parts; each table is written when it is complete."""
    args = make_parser().parse_args()
    folder = make_folder(args.save_path)
    for part in args.parts:
        table = PARTS[part](args)
        table.notes.append(describe(sys.argv[1:]))
        (folder / f"{part}.md").write_text(to_markdown(table), encoding="utf-8")
        print(to_markdown(table), flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = data_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--save_path", type=Path, default=Path("results/benchmark"))
    return parser


def data_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that the modules of the benchmark share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--class_name", nargs="+", help="default: all of data_path")
    parser.add_argument("--arch", choices=BACKBONES, required=True)
    parser.add_argument("--weights", type=Path, help="state dict (default: published weights)")
    return parser


def measure_whole(args: argparse.Namespace) -> Table:
    """The suite's whole command and the naive reference's."""
    naive_command = [*module("naive_pipeline", args), "--save_path", FOLDER]
    suite, naive = repeat(args, suite_command(args), naive_command)
    rows = [["whole command, s", *compare(suite["seconds"], naive["seconds"])]]
    rows += [["peak memory, GB", *compare(suite["peak"] / 1e9, naive["peak"] / 1e9)]]
    for stage, names in STAGES.items():
        rows.append([f"{stage}, s", *compare(suite[stage], sum(naive[name] for name in names))])
    for name in ("image ROCAUC", "pixel ROCAUC"):
        rows.append([name, f"{suite[name]:.6f}", f"{naive[name]:.6f}", ""])
    note = (
        "Whole commands in turn. Fit and score include loading the images and the network; the "
        "suite's fit includes thresholds and the saved model."
    )
    title = f"{args.arch}: the whole command and the naive reference"
    return Table(title, ["", "suite", "naive", "naive / suite"], rows, [note])


def measure_limit(args: argparse.Namespace) -> Table:
    """Decoding and the bare network on all images, beside the whole command."""
    suite, alone = repeat(args, suite_command(args), module("benchmark.alone", args))
    whole, limit = suite["seconds"], alone["decoding"] + alone["network"]
    network, onnx = alone["per image, network"], alone["per image, ONNX Runtime"]
    rows = [
        ["decoding, s", f"{alone['decoding']:.2f}"],
        ["network, s", f"{alone['network']:.2f}"],
        ["whole command, s", f"{whole:.2f}"],
        ["whole command / (decoding + network)", f"{whole / limit:.2f}"],
        ["Gaussians: fit, s", f"{alone['fit']:.2f}"],
        ["Gaussians: score, s", f"{alone['score']:.2f}"],
        ["network, ms an image", f"{1000 * network:.1f}"],
        ["ONNX Runtime, ms an image", f"{1000 * onnx:.1f}"],
    ]
    note = (
        "Decoding on all cores, then the bare network on all images. The whole command also "
        "starts, fits, scores, evaluates and draws every figure. ONNX Runtime: the same layers."
    )
    return Table(f"{args.arch}: the whole command and its limit", ["", "median"], rows, [note])


def measure_stream(args: argparse.Namespace) -> Table:
    """The stream's answers about one image at a time, beside their parts alone."""
    (found,) = repeat(args, module("benchmark.stream", args))
    answer, alone = found["answer"], found["decoding, network and Gaussians"]
    rows = [[args.arch, f"{1000 * answer:.1f}", f"{1000 * alone:.1f}", f"{answer / alone:.2f}"]]
    columns = ["", "answer, ms", "decoding, network and Gaussians alone, ms", "answer / alone"]
    note = "One image at a time, without overlays, in turn; medians over the test images."
    return Table("predict from a stream", columns, rows, [note])


def measure_processes(args: argparse.Namespace) -> Table:
    """The suite's whole command in one process and in two."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", MAIN[1]]
    one = suite_command(args)
    found = repeat(args, one, [*launcher, *one[len(MAIN) :]])
    rows = [
        [str(n), f"{numbers['seconds']:.1f}", f"{numbers['peak'] / 1e9:.2f}"]
        for n, numbers in enumerate(found, start=1)
    ]
    note = "Whole commands; the processes share out the cores and the classes."
    columns = ["processes", "s", "GB, largest process"]
    return Table(f"{args.arch}: one process and two", columns, rows, [note])


PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {
    "whole": measure_whole,
    "limit": measure_limit,
    "stream": measure_stream,
    "processes": measure_processes,
}


def suite_command(args: argparse.Namespace) -> list[str]:
    """main.py's command on the CPU."""
    return [*MAIN, *data_options(args), "--device", "cpu", "--save_path", FOLDER]


def module(name: str, args: argparse.Namespace) -> list[str]:
    """The command of a module of the tests."""
    return [sys.executable, "-m", f"tests.{name}", *data_options(args)]


def data_options(args: argparse.Namespace) -> list[str]:
    """The data, the network and its weights."""
    found = sorted(path.parents[1].name for path in args.data_path.glob("*/train/good"))
    words = ["--data_path", str(args.data_path.resolve()), "--arch", args.arch]
    words += ["--class_name", *(args.class_name or found)]
    return words + (["--weights", str(args.weights.resolve())] if args.weights else [])


def repeat(args: argparse.Namespace, *commands: list[str]) -> list[Numbers]:
    """The medians of each command's numbers; the commands run in turn."""
    found = [defaultdict(list) for _ in commands]
    for _ in range(args.repeats):
        for numbers, command in zip(found, commands, strict=True):
            for name, value in measure(command).items():
                numbers[name].append(value)
    return [{name: median(values) for name, values in numbers.items()} for numbers in found]


def measure(command: Sequence[str]) -> Numbers:
    """Wall seconds, peak bytes of the largest process, and what the command itself reports."""
    with tempfile.TemporaryDirectory(prefix="padim_benchmark_") as folder:
        words = [folder if word == FOLDER else str(word) for word in command]
        start = perf_counter()
        with Path(folder, "stdout").open("w+") as stdout:
            process = subprocess.Popen(words, cwd=ROOT, stdout=stdout)
            # the usage of the command and of all processes that it has waited for
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            numbers = {"seconds": perf_counter() - start}
            if process.returncode:
                sys.exit(f"{shlex.join(words)} ended with status {process.returncode}")
            # bytes on macOS, KiB elsewhere
            numbers["peak"] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            stdout.seek(0)
            last = stdout.read().splitlines()[-1]
        return numbers | (read_metrics(Path(folder)) or json.loads(last))


def read_metrics(folder: Path) -> Numbers:
    """The sums of the seconds of all classes of a run, and their mean ROCAUC; else nothing."""
    rows: list[dict[str, str]] = []
    for path in folder.glob("*/metrics.csv"):
        rows += csv.DictReader(path.read_text().splitlines())
    if not rows:
        return {}
    numbers = {stage: sum(float(row[f"seconds_{stage}"]) for row in rows) for stage in STAGES}
    for level in ("image", "pixel"):
        numbers[f"{level} ROCAUC"] = fmean(float(row[f"{level}_auroc"]) for row in rows)
    return numbers


def compare(suite: float, naive: float) -> list[str]:
    """The cells of two numbers and of their ratio."""
    return [f"{suite:.2f}", f"{naive:.2f}", f"{naive / suite:.1f}"]


def describe(words: Sequence[str]) -> str:
    """The command, the machine and the date."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{shlex.join(['python', '-m', 'tests.benchmark', *words])}; "
        f"{model[1] if model else platform.machine()}, {count_cores()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the end, {virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}; {date.today().isoformat()}."
    )


if __name__ == "__main__":
    main()
