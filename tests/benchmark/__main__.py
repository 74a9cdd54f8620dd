"""Time and memory of the suite on this machine, beside a naive reference of the method.

    python -m tests.benchmark
    python -m tests.benchmark --data_path mvtec_ad --class_name bottle --arch resnet18

Parts: whole (the whole command and tests/naive_pipeline.py in turn), alone (decoding, the network
and the Gaussians, and ONNX Runtime), stream (predict's answers to one path at a time), scaling
(more and more training images), processes (torchrun, on several classes), workers (threads that
decode images). Each part writes its raw numbers to
<part>.csv and what they were measured with to <part>.txt. benchmark.md has the tables of all parts
and scaling.png the figure. Without --data_path the demo set is measured. The suite runs on
--device, the naive reference and ONNX Runtime on the CPU. One command runs at a time: leave the
machine alone meanwhile.
"""

import argparse
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from psutil import virtual_memory
from tqdm import tqdm

from datasets.demo import make_demo
from tests.benchmark.jobs import JOBS, SCALED_ARCH, Setup, write_random_weights
from tests.benchmark.measure import FAILURE, Row, run_job, write_rows
from tests.benchmark.tables import write_tables
from utils.backbone import BACKBONES, DEMO_ARCH
from utils.settings import at_least
from utils.system.device import count_cores
from utils.system.files import make_folder

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "onnxruntime")


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts. Tables and figure are also written if this is interrupted."""
    words = sys.argv[1:] if words is None else words
    parser = make_parser()
    args = parser.parse_args(words)
    with TemporaryDirectory(prefix="padim_benchmark_") as temporary:
        try:
            folder = make_folder(args.save_path)
            setup = prepare(args, Path(temporary))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        settings = describe_settings(setup, words)
        failed = False
        try:
            for part in args.parts:
                (folder / f"{part}.txt").write_text(settings + "\n")
                failed |= run_part(part, setup, folder / f"{part}.csv")
        finally:
            write_tables(folder)
    print((folder / "benchmark.md").read_text())
    print(f"results in {folder}")
    sys.exit(failed)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, help: str, **settings) -> None:
        help += "" if settings.get("default") is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", help=help, **settings)

    def add_counts(name: str, help: str, default: list[int], least: int = 1) -> None:
        add(name, help, type=at_least(least), nargs="*", default=default, metavar="N")

    add("parts", "what to measure", nargs="+", choices=JOBS, default=list(JOBS))
    add("data_path", "folder in MVTec AD's layout, instead of the demo set", type=Path)
    add("class_name", "classes (default: all of the folder)", nargs="+", metavar="NAME")
    add(
        "arch",
        f"networks (default: {DEMO_ARCH} on the demo set, else {SCALED_ARCH})",
        nargs="+",
        choices=BACKBONES,
    )
    add(
        "weights",
        "state dicts of the first networks; the others get random weights, which take as long",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
    )
    add("device", "of the suite: cpu, or cuda", default="cpu", metavar="NAME")
    add("save_path", "for results", type=Path, default=Path("results/benchmark"))
    add("repeats", "runs of each command", type=at_least(1), default=3, metavar="N")
    add("naive_repeats", "of the naive reference", type=at_least(0), default=1, metavar="N")
    add_counts("n_train", "numbers of training images", [500, 1000, 5000])
    add("naive_up_to", "the most for the naive reference", type=int, default=500, metavar="N")
    add_counts("processes", "numbers of processes", [1, 2])
    add_counts("workers", "numbers of decoding threads", [0, 1, 2], least=0)
    return parser


def prepare(args: argparse.Namespace, temporary: Path) -> Setup:
    """Find or make data and weights, and fill in the defaults of the arguments.

    Raises:
        OSError, ValueError: if the arguments do not fit the data.
    """
    args.arch = args.arch or [DEMO_ARCH if args.data_path is None else SCALED_ARCH]
    data_path = make_demo() if args.data_path is None else args.data_path.resolve()
    found = sorted(path.parent.parent.name for path in data_path.glob("*/train/good"))
    unknown = sorted(set(args.class_name or found) - set(found))
    if unknown or not found:
        raise ValueError(f"no class {unknown or ''} in {data_path}; choose from {found}")
    missing = [str(path) for path in args.weights if not path.is_file()]
    if missing or len(args.weights) > len(args.arch):
        raise ValueError(f"--weights takes a file for each of {args.arch}; missing: {missing}")
    weights = {a: path.resolve() for a, path in zip(args.arch, args.weights, strict=False)}
    needed = {*args.arch, *([SCALED_ARCH] if "scaling" in args.parts else [])}
    for arch in needed - weights.keys() - {DEMO_ARCH}:
        weights[arch] = temporary / f"{arch}.pth"
        write_random_weights(arch, weights[arch])
    # the weights of the demo's network are installed
    return Setup(args, data_path, args.class_name or found, {DEMO_ARCH: None} | weights, temporary)


def run_part(part: str, setup: Setup, path: Path) -> bool:
    """Measure a part; after each run all numbers so far are in path. Returns whether one failed."""
    repeats = range(setup.args.repeats)
    jobs = [(repeat, job) for repeat in repeats for job in JOBS[part](setup, repeat)]
    rows: list[Row] = []
    for repeat, job in tqdm(jobs, part, unit="run"):
        rows += run_job(job, repeat)
        write_rows(path, rows)
    return any(row.quantity == FAILURE for row in rows)


def describe_settings(setup: Setup, words: Sequence[str]) -> str:
    """The command, the data, the machine and the date."""
    train, test = (
        sum(len(list((setup.data_path / name).glob(pattern))) for name in setup.class_names)
        for pattern in ("train/good/*.png", "test/*/*.png")
    )
    random = [
        arch for arch, path in setup.weights.items() if path and setup.temporary in path.parents
    ]
    parts = [
        shlex.join(["python", "-m", "tests.benchmark", *words]),
        f"{', '.join(setup.class_names)}: {train} + {test} images",
        f"random weights of {', '.join(random) or 'no network'}",
        describe_machine(),
        date.today().isoformat(),
    ]
    return "; ".join(parts) + "."


def describe_machine() -> str:
    """Processor, number of cores, load, memory and versions."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{model[1] if model else platform.machine()}, {count_cores()} cores, "
        f"load {os.getloadavg()[0]:.1f} before, {virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    main()
