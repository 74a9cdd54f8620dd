"""The paper's own studies on any classes: layers, dimensions, draws, cost and rotation.

    python main.py study --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py study --study draws --seeds 10 --arch resnet18 --data_path mvtec_ad

Under results/studies/<arch>/ each study leaves its numbers (<study>.csv) and a table (<study>.md);
studies.png shows the metrics of all studies but cost.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from datasets.dataset import load_all
from datasets.images import DEFAULT, Preprocessing
from datasets.loading import load_batches
from utils import backbone
from utils.commands.options import (
    add_experiment_options,
    add_option,
    at_least,
    read_preprocessing,
)
from utils.report.results import METRICS
from utils.report.tables import COMPARED, DASH, Table, to_markdown, to_text
from utils.system.device import device_name
from utils.system.files import make_folder, replacing

if TYPE_CHECKING:
    from utils.commands.study_methods import ClassFeatures, Setup

SEEDS = 5  # paper, section V-C: versions of Rd-MVTec AD (and 10 draws of channels, section V-A)
FIGURE = "studies.png"
MEGABYTE = 10**6

Row = Mapping[str, Any]


class Study(NamedTuple):
    """A study's title, and notes on how its numbers are made."""

    title: str
    notes: Sequence[str]


STUDIES = {
    "layers": Study(
        "layers alone, their maps summed, their concatenation",
        [
            "As the paper's table I. Layer n: PaDiM on all channels of that layer, on its own "
            "grid; layers 1+2+3: the sum of these three anomaly maps; concatenation: one Gaussian "
            "per patch over all three layers; Rdn: over n random channels, as in the main run.",
        ],
    ),
    "dimensions": Study(
        "random channels and principal components",
        [
            "As the paper's table II. Rdn: n random channels, mean ± sd over the draws (the paper "
            "averages 10); PCAn: the first n principal components of the class's training "
            "embeddings, all patches of all images together (the paper does not say over what "
            "it takes them).",
        ],
    ),
    "draws": Study(
        "several draws of channels",
        [
            "Rdn: n random channels, as many as in the main run; mean ± sd over the draws. The "
            "first draw is the main run's.",
        ],
    ),
    "cost": Study(
        "time and memory of inference",
        [
            "As the paper's tables VII and VIII. Time: medians over single images, after warm-up, "
            "without reading the file; the map is distances, enlarging and smoothing. Memory: the "
            "tensors that inference needs, float32, 1 MB = 10⁶ bytes.",
            "The coarser layers' factor is kept once for all patches that share it; the finest "
            "layer's factor, given the coarser layers, is kept for each patch. Primal: factors of "
            "the covariance. Dual, where there are no more training images than coarser "
            "dimensions: of the inner products of the training embeddings. Both give the same "
            "distances.",
        ],
    ),
    "rotation": Study(
        "aligned and randomly rotated images",
        [
            "As the paper's table VI. Rotated: training and test images resized to 256, turned by "
            "up to 10 degrees (bicubic), cropped at random to 224, masks alike (nearest); "
            "mean ± sd over random versions of the images. The paper does not say what fills the "
            "corners; here the image is reflected. Aligned: the main run's centre crop.",
        ],
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options; all with underscores may be written with hyphens."""
    add_experiment_options(parser)
    add_option(
        parser,
        "study",
        "studies to make (default: all)",
        nargs="+",
        choices=STUDIES,
        default=list(STUDIES),
    )
    add_option(
        parser,
        "arch",
        "network (default: %(default)s, the one that the paper's tables I and II study)",
        choices=backbone.BACKBONES,
        default="resnet18",
    )
    add_option(
        parser,
        "seeds",
        "draws of channels (dimensions, draws) and versions of the images (rotation), with seeds "
        "counting up from --seed (default: %(default)s)",
        type=at_least(1),
        default=SEEDS,
        metavar="K",
    )


def run(args: argparse.Namespace) -> None:
    """Make the studies class by class, and write the rows so far after each class.

    Raises:
        OSError, ValueError: if an argument, the data, the weights or the folder is unusable.
    """
    if args.data_path is None:
        raise ValueError("give --data_path PATH, a folder of images")
    preprocessing = read_preprocessing(args)
    names = choose_studies(args, preprocessing)
    datasets = load_all(
        args.data_path,
        args.dataset,
        args.class_name,
        preprocessing,
        args.invert_masks,
        args.normal,
    )
    folder = make_folder(args.save_path / "studies" / args.arch)
    if not names:
        return

    from utils.commands.study_methods import ClassFeatures  # imports torch, which takes seconds

    setup = make_setup(args)
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for train, test in datasets:
        print(f"{test.class_name}: {len(train)} training images, {len(test)} test images")
        images = ClassFeatures(setup, train, test)
        for name in names:
            rows[name] += make_study(name, setup, images)
        for note in test.notes.sentences():
            print(f"({note})")
        del images  # free its memory before the next class is loaded
        tables = write_studies(folder, rows, args, describe_origin(args, setup))
    print("", *map(to_text, tables), f"results in {folder}", sep="\n\n")


def choose_studies(args: argparse.Namespace, preprocessing: Preprocessing) -> list[str]:
    """The studies to make, each once; draws only if the network draws channels by default.

    Raises:
        ValueError: if rotation is asked for at another size of the images than the paper's.
    """
    names = list(dict.fromkeys(args.study))
    if "rotation" in names and preprocessing[:2] != DEFAULT[:2]:
        raise ValueError(
            f"--study rotation is defined for --resize {DEFAULT.resize} --crop {DEFAULT.crop}; "
            "leave these out or choose other studies"
        )
    network = backbone.BACKBONES[args.arch]
    if "draws" in names and network.n_features == sum(network.layer_channels):
        print(f"no study of draws: {args.arch} uses all of its {network.n_features} channels")
        names.remove("draws")
    return names


def make_setup(args: argparse.Namespace) -> Setup:
    """The network and the seeds of all studies."""
    from utils.commands.study_methods import Setup
    from utils.features import load_extractor

    names = args.arch, args.weights, args.device, args.precision
    extractor = load_extractor(*names, neighbourhood=args.neighbourhood)
    print(f"{args.arch} on {device_name(extractor.device)}")
    return Setup(
        arch=args.arch,
        extractor=extractor,
        load=partial(load_batches, batch_size=args.batch_size, num_workers=args.num_workers),
        seeds=range(args.seed, args.seed + args.seeds),
    )


def make_study(name: str, setup: Setup, images: ClassFeatures) -> list[Row]:
    """The rows of a study of one class; prints the seconds that it took."""
    from utils.commands.study_methods import METHODS

    start = perf_counter()
    title = f"{images.test.class_name} {name}"
    rows = list(tqdm(METHODS[name](setup, images), title, unit="model", disable=None))
    print(f"{name}: {perf_counter() - start:.0f} s", flush=True)
    return rows


def describe_origin(args: argparse.Namespace, setup: Setup) -> str:
    """The command, weights, device, version and date that make the numbers."""
    command = shlex.join(["python", "main.py", *sys.argv[1:]])
    return (
        f"{command}; weights sha256 {setup.extractor.weights_sha256[:12]}…, "
        f"{device_name(setup.extractor.device)}, torch {version('torch')}, "
        f"{date.today().isoformat()}."
    )


def write_studies(
    folder: Path, rows: Mapping[str, Sequence[Row]], args: argparse.Namespace, origin: str
) -> list[Table]:
    """Write the files of all studies; return their tables.

    Args:
        folder: of the files.
        rows: by study.
        args: of the command.
        origin: what made the numbers, for the notes of the tables.
    """
    data = args.data_path.resolve().name
    tables = []
    for name, of_study in rows.items():
        write_csv(folder / f"{name}.csv", of_study)
        title = f"{args.arch} on {data}: {STUDIES[name].title}"
        make_table = cost_table if name == "cost" else accuracy_table
        tables.append(make_table(title, of_study, [*STUDIES[name].notes, origin]))
        with replacing(folder / f"{name}.md") as path:
            path.write_text(to_markdown(tables[-1]), encoding="utf-8", errors="backslashreplace")
    plot_studies(folder / FIGURE, rows, f"PaDiM, {args.arch}, {data}")
    return tables


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns, unrounded."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def accuracy_table(title: str, rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """The metrics of each class and method, and of the mean of several classes."""
    metrics = [metric for metric in METRICS if metric in rows[0]]
    cells = [
        [
            f"{class_name}, {method}",
            str(of_seeds[0]["n_features"]),
            *(format_spread([row[metric] for row in of_seeds]) for metric in metrics),
        ]
        for class_name, methods in group_rows(rows).items()
        for method, of_seeds in methods.items()
    ]
    columns = ["class, method", "dimensions", *(METRICS[metric] for metric in metrics)]
    return Table(title, columns, cells, notes)


def group_rows(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """By class and method the rows of all seeds; last the means over classes, if several."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["class_name"], {}).setdefault(row["method"], []).append(row)
    if len(groups) > 1:
        classes = list(groups.values())
        groups[f"mean of {len(groups)} classes"] = {
            method: list(map(mean_row, zip(*(c[method] for c in classes), strict=True)))
            for method in classes[0]
        }
    return groups


def mean_row(rows: Sequence[Row]) -> Row:
    """The first row with means over all rows for metrics; None where one lacks the metric."""
    means = dict(rows[0])
    for metric in METRICS.keys() & means.keys():
        values = [row[metric] for row in rows]
        means[metric] = None if None in values else fmean(values)
    return means


def format_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of several values; a dash if one is undefined."""
    if None in values:
        return DASH
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def cost_table(title: str, rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """Milliseconds and megabytes of each class and method."""
    columns = [
        *("class, method", "dimensions", "training images", "form"),
        *("network, ms", "map, ms", "image, ms", "network, MB", "Gaussians, MB", "model, MB"),
    ]
    cells = []
    for row in rows:
        seconds = [row["network_seconds"], row["map_seconds"]]
        sizes = [row["network_bytes"], row["gaussians_bytes"]]
        cells.append(
            [
                f"{row['class_name']}, {row['method']}",
                *(str(row[name]) for name in ("n_features", "n_train", "form")),
                *(f"{1000 * value:.1f}" for value in (*seconds, sum(seconds))),
                *(f"{value / MEGABYTE:.1f}" for value in (*sizes, sum(sizes))),
            ]
        )
    return Table(title, columns, cells, notes)


def plot_studies(path: Path, rows: Mapping[str, Sequence[Row]], title: str) -> None:
    """Draw the metrics of all studies but cost: a dot per class, the mean also in figures.

    Args:
        path: of the PNG file; without any such study none is written.
        rows: by study.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    studies = {name: group_rows(rows[name]) for name in rows if name != "cost"}
    if not studies:
        return
    groups = list(next(iter(studies.values())))
    counts = [len(study[groups[0]]) for study in studies.values()]  # of methods
    figure = Figure(figsize=(15, 1.8 + 0.9 * len(counts) + 0.36 * sum(counts)))
    figure.set_layout_engine("constrained")
    # a metric has the same scale in all studies, so that they can be compared
    grid = figure.subplots(
        *(len(studies), len(COMPARED)), sharex="col", squeeze=False, height_ratios=counts
    )
    for line, (name, study) in zip(grid, studies.items(), strict=True):
        for axes, metric in zip(line, COMPARED, strict=True):
            _plot_panel(axes, study, metric)
            labels = list(study[groups[0]]) if axes is line[0] else []
            axes.set_yticks(range(len(study[groups[0]])), labels)
            axes.set_title(f"{name}: {METRICS[metric]}", loc="left")
    figure.suptitle(
        f"{title}. Dots: mean over seeds; lines: their range; figures: {groups[-1]}. Axes are cut."
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _plot_panel(axes: Any, study: Mapping[str, Mapping[str, Sequence[Row]]], metric: str) -> None:
    """Draw a line per method, the first on top, with the last group in figures at the right."""
    for number, (group, methods) in enumerate(study.items()):
        last = number == len(study) - 1
        is_mean = last and number > 0
        # ten colours, each with two shapes
        marker = "D" if is_mean else "o" if number < 10 else "s"
        style = {"color": "black" if is_mean else f"C{number}", "marker": marker}
        values = [[row[metric] for row in of_seeds] for of_seeds in methods.values()]
        defined = {y: of_seeds for y, of_seeds in enumerate(values) if None not in of_seeds}
        axes.plot(list(map(fmean, defined.values())), list(defined), ls="", label=group, **style)
        for y, of_seeds in defined.items():
            axes.hlines(y, min(of_seeds), max(of_seeds), color=style["color"])
            if last:
                place = axes.get_yaxis_transform()
                axes.text(1.01, y, f"{fmean(of_seeds):.3f}", transform=place, va="center")
    axes.set(ylim=(len(methods) - 0.5, -0.5))
    axes.tick_params(left=False, labelbottom=True)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
