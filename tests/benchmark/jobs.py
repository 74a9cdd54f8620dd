"""The commands that each part of the benchmark measures, in the order in which they run."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmark.inputs import write_noise
from tests.benchmark.measure import FOLDER, ROOT, Job
from utils.system.processes import count_cores

SUITE, NAIVE, STAGES, BACKBONE = "suite", "naive", "stages", "backbone"
PROCESSES, FIRST_CLASS = "processes", "processes, first class"  # what is varied
SCALED_ARCH = "resnet18"
SCALED_N_TRAIN = 250  # where something else is scaled
SLOW = "wide_resnet50_2"  # a run of the naive reference takes minutes
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}  # as main.py sets it for itself
NO_FIGURES = ("--figures", "none")


class Setup(NamedTuple):
    """What is measured: arguments, a data set, its classes, weights, and room for more.

    settings say what it is measured with; they stand below the tables.
    """

    args: argparse.Namespace
    settings: Mapping[str, str]
    data_path: Path
    class_names: Sequence[str]
    weights: Mapping[str, Path | None]
    temporary: Path


def whole_jobs(setup: Setup) -> Iterator[Job]:
    """Whole commands, the suite's and the naive reference's in turn."""
    args = setup.args
    for arch in args.arch:
        naive_repeats = count_naive_repeats(args, arch)
        options = class_options(setup, arch)
        for repeat in range(max(args.repeats, naive_repeats)):
            if repeat < args.repeats:
                yield Job(arch, SUITE, suite(*options), repeat)
            if repeat < naive_repeats:
                yield Job(arch, NAIVE, naive(*options), repeat)


def stages_jobs(setup: Setup) -> Iterator[Job]:
    """The suite's network and Gaussians alone."""
    for arch in setup.args.arch:
        command = module("benchmark.stages", *class_options(setup, arch))
        for repeat in range(setup.args.stages_repeats):
            yield Job(arch, STAGES, command, repeat, environment=ENVIRONMENT)


def backbone_jobs(setup: Setup) -> Iterator[Job]:
    """The suite's network beside ONNX Runtime."""
    for arch in setup.args.arch:
        path = setup.temporary / f"{arch}.onnx"
        command = module("benchmark.backbone", *network(setup, arch), "--onnx", str(path))
        for repeat in range(setup.args.backbone_repeats):
            yield Job(arch, BACKBONE, command, repeat, environment=ENVIRONMENT)


def scaling_jobs(setup: Setup) -> Iterator[Job]:
    """The suite on images of noise: more of them, more channels, larger ones."""
    args = setup.args

    def options(n_train: int) -> list[str]:
        path = write_noise(setup.temporary / "noise", n_train)
        data = ["--data_path", str(path), "--class_name", "noise"]
        return [*data, *network(setup, SCALED_ARCH), *NO_FIGURES]

    def scaled_suite(repeat: int, variable: str, at: int, *options: str) -> Job:
        command = suite(*options, "--save_models", "none")
        return Job(SCALED_ARCH, SUITE, command, repeat, variable, at)

    for repeat in range(args.scaling_repeats):
        for n in args.n_train:
            yield scaled_suite(repeat, "N", n, *options(n))
            if n <= args.naive_up_to:
                yield Job(SCALED_ARCH, NAIVE, naive(*options(n)), repeat, "N", n)
        fixed = options(SCALED_N_TRAIN)
        for d in args.n_features:
            yield scaled_suite(repeat, "d", d, *fixed, "--n_features", str(d))
        for side in args.image_sizes:
            size = ("--resize", str(side), "--crop", str(side))
            yield scaled_suite(repeat, "image size", side, *fixed, *size)


def processes_jobs(setup: Setup) -> Iterator[Job]:
    """Whole commands on one and on several processes, in turn; the cores are shared out.

    Of all classes, and of the first alone: torchrun takes seconds to start, however long the run.
    """
    args = setup.args
    runs = {PROCESSES: setup.class_names, FIRST_CLASS: setup.class_names[:1]}
    if len(setup.class_names) == 1:
        del runs[FIRST_CLASS]
    for arch in args.arch:
        for repeat in range(args.processes_repeats):
            for variable, class_names in runs.items():
                options = class_options(setup._replace(class_names=class_names), arch)
                for count in args.processes:
                    yield _processes_job(arch, options, repeat, variable, count)


def _processes_job(
    arch: str, options: Sequence[str], repeat: int, variable: str, count: int
) -> Job:
    if count == 1:
        return Job(arch, SUITE, suite(*options), repeat, variable, count, shares=True)
    launcher = ("-m", "torch.distributed.run", f"--nproc_per_node={count}")
    return Job(
        *(arch, SUITE, suite(*options, launcher=launcher), repeat, variable, count),
        environment={"OMP_NUM_THREADS": str(max(count_cores() // count, 1))},
        shares=True,
        unavailable="" if is_distributed() else "main.py runs in one process here",
    )


def workers_jobs(setup: Setup) -> Iterator[Job]:
    """Whole commands with some numbers of threads that decode images, in turn."""
    args = setup.args
    for arch in args.arch:
        options = class_options(setup, arch)
        for repeat in range(args.workers_repeats):
            for count in args.workers:
                command = suite(*options, "--num_workers", str(count))
                yield Job(arch, SUITE, command, repeat, "threads", count)


JOBS = {
    "whole": whole_jobs,
    "stages": stages_jobs,
    "backbone": backbone_jobs,
    "scaling": scaling_jobs,
    "processes": processes_jobs,
    "workers": workers_jobs,
}


def count_naive_repeats(args: argparse.Namespace, arch: str) -> int:
    """Runs of the naive reference."""
    if args.naive_repeats is not None:
        return args.naive_repeats
    return min(args.repeats, 1) if arch == SLOW else args.repeats


def suite(*options: str, launcher: Sequence[str] = ()) -> list[str]:
    """main.py's command; on the CPU, as is all that it is compared with."""
    main = [sys.executable, *launcher, str(ROOT / "main.py")]
    return [*main, *options, "--device", "cpu", "--save_path", FOLDER]


def naive(*options: str) -> list[str]:
    """The naive reference's command."""
    return module("naive_pipeline", *options, "--save_path", FOLDER)


def module(name: str, *options: str) -> list[str]:
    """The command of a module of the tests."""
    return [sys.executable, "-m", f"tests.{name}", *options]


def class_options(setup: Setup, arch: str) -> list[str]:
    """The data and the network."""
    data = ["--data_path", str(setup.data_path), "--class_name", *setup.class_names]
    return [*data, *network(setup, arch)]


def network(setup: Setup, arch: str) -> list[str]:
    """The network and its weights, if they are not installed."""
    path = setup.weights[arch]
    return ["--arch", arch, *([] if path is None else ["--weights", str(path)])]


def is_distributed() -> bool:
    """Whether main.py shares its work out under torchrun."""
    paths = [ROOT / "main.py", *ROOT.glob("utils/*.py")]
    return any("init_process_group" in path.read_text() for path in paths)
