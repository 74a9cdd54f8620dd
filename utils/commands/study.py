"""The paper's own studies on any classes: layers, dimensions, cost and rotation.

    python main.py study --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py study --study layers --arch resnet18 --data_path mvtec_ad --class_name bottle

Under results/studies/<arch>/ each study leaves its numbers (<study>.csv) and a table (<study>.md);
studies.png shows those of accuracy.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter
from typing import Any, NamedTuple

from datasets import dataset as splits
from datasets.images import DEFAULT, Preprocessing
from utils import backbone
from utils.commands.options import add_option, add_shared_options, at_least, make_folder
from utils.report.results import METRICS
from utils.report.tables import COMPARED, DASH, Table, to_markdown, to_text
from utils.system.files import replacing

SEEDS = 5  # paper, section V-C: versions of Rd-MVTec AD (and 10 draws of channels, section V-A)
FIGURE = "studies.png"
MEGABYTE = 10**6

Rows = Sequence[Mapping[str, Any]]


class Study(NamedTuple):
    """A study's title, and how its numbers came about."""

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
    "cost": Study(
        "time and memory of inference",
        [
            "As the paper's tables VII and VIII. Time: medians over single images, after warm-up, "
            "without reading the file; the map is distances, enlarging and smoothing. Memory: the "
            "tensors that inference needs, float32, 1 MB = 10⁶ bytes.",
            "The factor of the coarser layers is kept once for the patches that share them, that "
            "of the finest layer given these for each. Primal: of their covariance. Dual, for no "
            "more training images than coarser dimensions: of the training embeddings' inner "
            "products. Distances are the same.",
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
    """The command's options; every one with underscores is also taken with hyphens."""
    add_shared_options(parser)
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
        "draws of channels (dimensions) and versions of the images (rotation), with seeds "
        "counting up from --seed (default: %(default)s)",
        type=at_least(1),
        default=SEEDS,
        metavar="K",
    )


def run(args: argparse.Namespace) -> None:
    """Make the studies class by class and write what there is after each.

    Raises:
        OSError, ValueError: if an argument, the data, the weights or the folder will not do.
    """
    if args.data_path is None:
        raise ValueError("give --data_path PATH, a folder of images")
    preprocessing = Preprocessing(args.resize, args.crop)
    if "rotation" in args.study and preprocessing != DEFAULT:
        raise ValueError(
            f"--study rotation is defined for --resize {DEFAULT.resize} --crop {DEFAULT.crop}; "
            "leave these out or choose other studies"
        )
    datasets = splits.load_all(args.data_path, args.dataset, args.class_name, preprocessing)
    folder = make_folder(args.save_path / "studies" / args.arch)

    # these take seconds to import
    from tqdm import tqdm

    from datasets.loading import load_batches
    from utils.commands.study_methods import METHODS, ClassFeatures, Setup
    from utils.features import FeatureExtractor
    from utils.system import device as runtime

    def batches(dataset: Any):
        return load_batches(dataset, args.batch_size, args.num_workers)

    device = runtime.choose_device(args.device)
    network = backbone.load_network(args.arch, args.weights)
    seeds = range(args.seed, args.seed + args.seeds)
    setup = Setup(args.arch, FeatureExtractor(network, device, args.precision), batches, seeds)
    print(f"{args.arch} on {runtime.device_name(device)}")

    names = list(dict.fromkeys(args.study))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for train, test in datasets:
        print(f"{test.class_name}: {len(train)} training images, {len(test)} test images")
        images = ClassFeatures(setup, train, test)
        for name in names:
            progress = tqdm(desc=f"{test.class_name} {name}", unit="model", disable=None)
            start = perf_counter()
            with progress:
                for row in METHODS[name](setup, images):
                    rows[name].append(row)
                    progress.update()
            print(f"{name}: {perf_counter() - start:.0f} s", flush=True)
        del images
        settings = runtime.describe_run(
            # a study has no demo set
            dict(vars(args), demo=False),
            args.arch,
            network,
            backbone.draw_channels(args.arch, args.seed),
            device,
        )
        tables = [write_study(folder, name, rows[name], settings) for name in names]
        plot_studies(folder / FIGURE, rows, f"PaDiM, {args.arch}, {settings['data']}")

    print("", *map(to_text, tables), f"results in {folder}", sep="\n\n")


def write_study(folder: Path, name: str, rows: Rows, settings: Mapping[str, Any]) -> Table:
    """Write the study's CSV file, unrounded, and its table; returns the table."""
    with (
        replacing(folder / f"{name}.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    title = f"{settings['arch']} on {settings['data']}: {STUDIES[name].title}"
    notes = [*STUDIES[name].notes, describe_settings(settings)]
    make_table = cost_table if name == "cost" else accuracy_table
    table = make_table(title, rows, notes)
    with replacing(folder / f"{name}.md") as path:
        path.write_text(to_markdown(table), encoding="utf-8", errors="backslashreplace")
    return table


def describe_settings(settings: Mapping[str, Any]) -> str:
    """The command, weights, device, version and date that made the numbers."""
    return (
        f"{settings['command']}; weights sha256 {settings['weights_sha256'][:12]}…, "
        f"{settings['device']}, torch {settings['versions']['torch']}, {settings['date']}."
    )


def accuracy_table(title: str, rows: Rows, notes: Sequence[str]) -> Table:
    """A row of metrics for each class and method, and for the mean of several classes."""
    values = group_values(rows)
    dimensions = {row["method"]: str(row["n_features"]) for row in rows}
    cells = [
        [
            f"{class_name}, {method}",
            dimensions[method],
            *(_format(of_method[metric]) for metric in COMPARED),
        ]
        for class_name, methods in values.items()
        for method, of_method in methods.items()
    ]
    columns = ["class, method", "dimensions", *(METRICS[metric] for metric in COMPARED)]
    return Table(title, columns, cells, notes)


def group_values(rows: Rows) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """By class, method and metric the values of all seeds; of several classes the mean, too.

    A seed's mean is None where a class lacks the metric.
    """
    values: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for row in rows:
        of_class = values.setdefault(row["class_name"], {})
        of_method = of_class.setdefault(row["method"], {metric: [] for metric in COMPARED})
        for metric in COMPARED:
            of_method[metric].append(row[metric])
    if len(values) > 1:
        classes = list(values.values())
        values[f"mean of {len(values)} classes"] = {
            method: {
                metric: [
                    None if None in of_seed else fmean(of_seed)
                    for of_seed in zip(*(c[method][metric] for c in classes), strict=True)
                ]
                for metric in COMPARED
            }
            for method in classes[0]
        }
    return values


def cost_table(title: str, rows: Rows, notes: Sequence[str]) -> Table:
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


def plot_studies(path: Path, rows: Mapping[str, Rows], title: str) -> None:
    """Write the metrics of the studies of accuracy: a dot per class, the mean also in figures.

    Args:
        path: of the PNG file; without any such study none is written.
        rows: by study.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    studies = {name: group_values(rows[name]) for name in rows if name != "cost"}
    if not studies:
        return
    methods = [list(next(iter(values.values()))) for values in studies.values()]
    counts = list(map(len, methods))
    figure = Figure(figsize=(15, 1.8 + 0.9 * len(counts) + 0.36 * sum(counts)))
    figure.set_layout_engine("constrained")
    # the same scale in all studies, so that they can be compared
    grid = figure.subplots(
        *(len(studies), len(COMPARED)), sharex="col", squeeze=False, height_ratios=counts
    )
    for line, name, labels in zip(grid, studies, methods, strict=True):
        for axes, metric in zip(line, COMPARED, strict=True):
            _plot_panel(axes, studies[name], metric)
            axes.set(ylim=(len(labels) - 0.5, -0.5))
            axes.set_yticks(range(len(labels)), labels if axes is line[0] else [])
            axes.set_title(f"{name}: {METRICS[metric]}", loc="left")
            axes.tick_params(left=False, labelbottom=True)
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
    shown = list(next(iter(studies.values())))[-1]
    figure.suptitle(
        f"{title}. Dots: mean over seeds; lines: their range; figures: {shown}. Axes are cut."
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _plot_panel(
    axes: Any, values: Mapping[str, Mapping[str, Mapping[str, list]]], metric: str
) -> None:
    """A line per method, the first on top; those of the last group in figures at the right."""
    for number, (group, methods) in enumerate(values.items()):
        mean = 0 < number == len(values) - 1
        # ten colours, each with two shapes
        marker = "D" if mean else "o" if number < 10 else "s"
        style = {"color": "black" if mean else f"C{number}", "marker": marker}
        found = {y: of_method[metric] for y, of_method in enumerate(methods.values())}
        found = {y: of_seeds for y, of_seeds in found.items() if None not in of_seeds}
        axes.plot(list(map(fmean, found.values())), list(found), ls="", label=group, **style)
        for y, of_seeds in found.items():
            axes.hlines(y, min(of_seeds), max(of_seeds), color=style["color"])
            if number == len(values) - 1:
                place = axes.get_yaxis_transform()
                axes.text(1.01, y, f"{fmean(of_seeds):.3f}", transform=place, va="center")


def _format(of_seeds: Sequence[float | None]) -> str:
    if None in of_seeds:
        return DASH
    spread = f" ± {stdev(of_seeds):.3f}" if len(of_seeds) > 1 else ""
    return f"{fmean(of_seeds):.3f}{spread}"
