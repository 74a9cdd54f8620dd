"""Time and memory of the whole suite beside a naive reference of the method, on this machine.

    python -m tests.benchmark
    python -m tests.benchmark --data_path mvtec_ad --class_name bottle --arch resnet18

Parts: whole (the command and the naive reference, see tests/naive_pipeline.py, in turn), stages
(the network and the Gaussians alone), backbone (the network beside ONNX Runtime), scaling (more
images, more channels, larger images), processes (torchrun), workers (threads that decode images).
Each leaves its raw measurements in <part>.csv, and what they were made with in <part>.json;
benchmark.md has tables of all, scaling.png shows how time and memory grow. Without --data_path the
demo set is measured. Everything runs on the CPU, one command at a time: leave the machine alone
meanwhile.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from datasets.demo import make_demo
from tests.benchmark import inputs
from tests.benchmark.jobs import JOBS, SCALED_ARCH, Setup
from tests.benchmark.measure import FAILURE, Row, run_job, write_rows
from tests.benchmark.plots import plot_scaling
from tests.benchmark.tables import describe_failure, write_tables
from utils.backbone import BACKBONES, DEMO_ARCH
from utils.commands.options import at_least, make_folder
from utils.system.files import replacing
from utils.system.processes import count_cores

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "onnxruntime")
TIMEOUT = 3600  # seconds


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts and write tables and figure, also of what an interrupted run has done."""
    words = sys.argv[1:] if words is None else words
    parser = make_parser()
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="padim_benchmark_") as temporary:
        try:
            folder = make_folder(args.save_path)
            setup = prepare(args, words, Path(temporary))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        failed, status = [], 0
        try:
            for part in args.parts:
                failed += run_part(part, setup, folder)
        except KeyboardInterrupt:
            print("interrupted; what was measured so far is kept", file=sys.stderr)
            status = 130
    write_tables(folder)
    plot_scaling(folder)
    print((folder / "benchmark.md").read_text())
    print(f"results in {folder}")
    for row in failed:
        print(describe_failure(row), file=sys.stderr)
    sys.exit(status or bool(failed))


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

    def add_repeats(name: str, help: str, default: int | None) -> None:
        add(name, help, type=at_least(0), default=default, metavar="N")

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
    add("save_path", "folder for the results", type=Path, default=Path("results/benchmark"))
    add_repeats("repeats", "runs of the suite's whole command", 3)
    add_repeats(
        "naive_repeats", "runs of the naive reference (default: as many, Wide-ResNet 1)", None
    )
    add_repeats("stages_repeats", "runs of the stages", 3)
    add_repeats("backbone_repeats", "runs of the comparison with ONNX Runtime", 1)
    add_repeats("scaling_repeats", "runs of each point", 1)
    add_repeats("processes_repeats", "runs of each number of processes", 2)
    add_counts("n_train", "numbers of training images", [125, 250, 500, 1000, 2500, 5000])
    add_repeats("naive_up_to", "largest of them for the naive reference", 500)
    add_counts("n_features", "numbers of channels", [50, 100, 200, 400])
    add_counts("image_sizes", "sides of the images", [128, 224, 320, 448])
    add_counts("processes", "numbers of processes", [1, 2])
    add_repeats("workers_repeats", "runs of each number of decoding threads", 1)
    add_counts("workers", "numbers of decoding threads", [0, 1, 2], least=0)
    add("timeout", "seconds after which a command is given up", type=at_least(1), default=TIMEOUT)
    return parser


def prepare(args: argparse.Namespace, words: Sequence[str], temporary: Path) -> Setup:
    """Find or make data and weights; checks the arguments and fills in their defaults.

    Raises:
        OSError, ValueError: if they will not do.
    """
    args.arch = args.arch or [DEMO_ARCH if args.data_path is None else SCALED_ARCH]
    data_path = make_demo() if args.data_path is None else args.data_path.resolve()
    there = inputs.class_names(data_path)
    names = args.class_name or there
    unknown = sorted(set(names) - set(there))
    if unknown:
        raise ValueError(f"no classes {unknown} in {data_path}; choose from {there}")
    missing = [str(path) for path in args.weights if not path.is_file()]
    if missing or len(args.weights) > len(args.arch):
        raise ValueError(f"--weights takes a file for each of {args.arch}; missing: {missing}")
    weights = {a: path.resolve() for a, path in zip(args.arch, args.weights, strict=False)}
    scaled = {SCALED_ARCH} if "scaling" in args.parts else set()
    random = sorted({*args.arch, *scaled} - weights.keys() - {DEMO_ARCH})
    for arch in random:
        weights[arch] = inputs.write_random_weights(arch, temporary / f"{arch}.pth")
    weights.setdefault(DEMO_ARCH, None)  # they are installed
    settings = {
        "command": shlex.join(["python", "-m", "tests.benchmark", *words]),
        "data": inputs.describe_images(data_path, names),
        "weights": f"random weights of {', '.join(random) or 'no network'}",
        "machine": describe_machine(),
        "date": date.today().isoformat(),
    }
    return Setup(args, settings, data_path, names, weights, temporary)


def run_part(part: str, setup: Setup, folder: Path) -> list[Row]:
    """Measure a part; what is done is in its file at any time. Returns what failed."""
    jobs = list(JOBS[part](setup))
    rows: list[Row] = []
    with replacing(folder / f"{part}.json") as path:
        path.write_text(json.dumps(setup.settings, indent=2) + "\n")
    write_rows(folder / f"{part}.csv", rows)
    progress = tqdm(jobs, part, unit="run")
    for job in progress:
        progress.set_postfix_str(f"{job.arch} {job.method} {job.variable} {job.at}".strip())
        rows += run_job(job, setup.args.timeout)
        write_rows(folder / f"{part}.csv", rows)
    return [row for row in rows if row.quantity == FAILURE]


def describe_machine() -> str:
    """Processor, cores that may be used, memory, versions, and how busy it is."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{name}, {count_cores()} cores, load {os.getloadavg()[0]:.1f} before, "
        f"{memory / 2**30:.0f} GiB, Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    main()
