"""The commands that each part of the benchmark measures."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.benchmark.measure import FOLDER, ROOT, Job
from utils.backbone import BACKBONES

SUITE, NAIVE, ALONE = "suite", "naive", "alone"
IMAGES, PROCESSES, THREADS = "training images", "processes", "threads"  # what is varied
SCALED_ARCH = "resnet18"
SLOW = "wide_resnet50_2"  # a run of the naive reference takes minutes
N_NOISE, N_TEST = 32, 8  # different images of noise; good test images, and as many defects
TORCHRUN = ("-m", "torch.distributed.run")


class Setup(NamedTuple):
    """What is measured.

    Attributes:
        args: of the benchmark.
        data_path: in MVTec AD's layout.
        class_names: below data_path.
        weights: by network; None for those that are installed.
        temporary: a folder for more data.
    """

    args: argparse.Namespace
    data_path: Path
    class_names: Sequence[str]
    weights: dict[str, Path | None]
    temporary: Path


def whole_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The suite's whole command, and then the naive reference's."""
    for arch in setup.args.arch:
        options = data_options(setup, arch)
        yield Job(arch, SUITE, suite(setup, options))
        # the first run says enough where it takes minutes
        if repeat < setup.args.naive_repeats and (arch != SLOW or repeat == 0):
            yield Job(arch, NAIVE, module("naive_pipeline", *options, "--save_path", FOLDER))


def alone_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The suite's network and Gaussians alone, and ONNX Runtime."""
    for arch in setup.args.arch:
        device = ("--device", setup.args.device)
        yield Job(arch, ALONE, module("benchmark.alone", *data_options(setup, arch), *device))


def stream_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The stream's answers, and their parts alone."""
    for arch in setup.args.arch:
        yield Job(arch, ALONE, module("benchmark.stream", *data_options(setup, arch)))


def scaling_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The suite, and as far as asked for the naive reference, on more and more training images."""
    for n in setup.args.n_train:
        data = ("--data_path", str(write_noise(setup.temporary / "noise", n)))
        options = [*data, "--class_name", "noise", *network_options(setup, SCALED_ARCH)]
        options += ["--figures", "none"]
        yield Job(SCALED_ARCH, SUITE, suite(setup, [*options, "--save_models", "none"]), IMAGES, n)
        if n <= setup.args.naive_up_to:
            naive = module("naive_pipeline", *options, "--save_path", FOLDER)
            yield Job(SCALED_ARCH, NAIVE, naive, IMAGES, n)


def processes_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The suite's whole command in one process and in several, which share out the classes."""
    for arch in setup.args.arch:
        for count in setup.args.processes:
            launcher = (*TORCHRUN, f"--nproc_per_node={count}") if count > 1 else ()
            command = suite(setup, data_options(setup, arch), launcher)
            yield Job(arch, SUITE, command, PROCESSES, count)


def workers_jobs(setup: Setup, repeat: int) -> Iterator[Job]:
    """The suite's whole command with some numbers of threads that decode images."""
    for arch in setup.args.arch:
        for count in setup.args.workers:
            options = [*data_options(setup, arch), "--num_workers", str(count)]
            command = suite(setup, options)
            yield Job(arch, SUITE, command, THREADS, count)


JOBS = {
    "whole": whole_jobs,
    "alone": alone_jobs,
    "stream": stream_jobs,
    "scaling": scaling_jobs,
    "processes": processes_jobs,
    "workers": workers_jobs,
}


def suite(setup: Setup, options: Sequence[str], launcher: Sequence[str] = ()) -> list[str]:
    """main.py's command."""
    main = [sys.executable, *launcher, str(ROOT / "main.py")]
    return [*main, *options, "--device", setup.args.device, "--save_path", FOLDER]


def module(name: str, *options: str) -> list[str]:
    """The command of a module of the tests."""
    return [sys.executable, "-m", f"tests.{name}", *options]


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line of a module that takes data_options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--class_name", nargs="+", required=True)
    parser.add_argument("--arch", choices=BACKBONES, required=True)
    parser.add_argument("--weights", type=Path)
    return parser


def data_options(setup: Setup, arch: str) -> list[str]:
    """The data and the network."""
    data = ["--data_path", str(setup.data_path), "--class_name", *setup.class_names]
    return [*data, *network_options(setup, arch)]


def network_options(setup: Setup, arch: str) -> list[str]:
    """The network, and its weights if they are not installed."""
    path = setup.weights[arch]
    return ["--arch", arch, *([] if path is None else ["--weights", str(path)])]


def write_random_weights(arch: str, path: Path) -> None:
    """Write seeded random weights, with which a network takes as long as with real ones.

    A process of its own imports torch for that: see measure.py.
    """
    code = "import sys; from tests.helpers import write_random_weights as w; w(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, arch, str(path)], check=True, cwd=ROOT)


def write_noise(folder: Path, n_train: int) -> Path:
    """A data set of n_train training images, which are links to N_NOISE files."""
    data = folder / str(n_train)
    if data.exists():
        return data
    files = [folder / f"{i}.png" for i in range(N_NOISE)]
    if not files[0].exists():
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for path in files:
            # blocks of 8 x 8 pixels make small files
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(path)
    mask = Image.new("L", (256, 256))
    mask.paste(255, (64, 64, 128, 128))
    mask.save(folder / "mask.png")
    counts = {"train/good": n_train, "test/good": N_TEST, "test/bad": N_TEST}
    for split, count in counts.items():
        _link(data / "noise" / split, count, files, "")
    _link(data / "noise" / "ground_truth" / "bad", N_TEST, [folder / "mask.png"], "_mask")
    return data


def _link(target: Path, count: int, files: Sequence[Path], suffix: str) -> None:
    target.mkdir(parents=True)
    for i in range(count):
        os.link(files[i % len(files)], target / f"{i:05}{suffix}.png")
