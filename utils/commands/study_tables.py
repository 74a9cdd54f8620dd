"""Tables and plots of the studies' rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from utils.report.results import METRICS
from utils.report.tables import COMPARED, DASH, Table
from utils.system.files import replacing

MEGABYTE, MILLISECOND = 10**6, 1e-3

Row = dict[str, Any]
Cell = Callable[[Sequence[Row]], str]  # its text, of a method's rows: one for each seed
Columns = Mapping[str, Cell]  # by title


def number(*names: str, unit: float = 1, decimals: int = 3) -> Cell:
    """A cell with the sum of these values of a row: mean ± sd over seeds, a dash if undefined."""

    def cell(of_seeds: Sequence[Row]) -> str:
        values = [[row[name] for name in names] for row in of_seeds]
        if any(None in of_row for of_row in values):
            return DASH
        sums = [sum(of_row) / unit for of_row in values]
        spread = f" ± {stdev(sums):.{decimals}f}" if len(sums) > 1 else ""
        return f"{fmean(sums):.{decimals}f}{spread}"

    return cell


def form(of_seeds: Sequence[Row]) -> str:
    """A cell with the form of the Gaussians; a dash if it differs between the classes of a mean."""
    return of_seeds[0]["form"] or DASH


milliseconds = partial(number, unit=MILLISECOND, decimals=1)
megabytes = partial(number, unit=MEGABYTE, decimals=1)
dimensions = number("n_features", decimals=0)

# columns of tables, after the method and its dimensions
ALL_METRICS: Columns = {title: number(metric) for metric, title in METRICS.items()}
ACCURACY: Columns = {METRICS[metric]: number(metric) for metric in COMPARED}
COST: Columns = {
    "training images": number("n_train", decimals=0),
    "form": form,
    "network, ms": milliseconds("network_seconds"),
    "map, ms": milliseconds("map_seconds"),
    "image, ms": milliseconds("network_seconds", "map_seconds"),
    "network, MB": megabytes("network_bytes"),
    "Gaussians, MB": megabytes("gaussians_bytes"),
    "model, MB": megabytes("network_bytes", "gaussians_bytes"),
}
SHRINKAGE: Columns = {
    "shrinkage": number("shrinkage"),
    "eps": number("eps", decimals=5),
    **ACCURACY,
}
ALIGNMENT: Columns = {
    "image ROCAUC, max": number("image_auroc"),
    "image ROCAUC, top": number("image_auroc_top"),
    METRICS["aupro"]: number("aupro"),
    "search, ms": milliseconds("search_seconds"),
}


def make_table(title: str, rows: Sequence[Row], columns: Columns, notes: Sequence[str]) -> Table:
    """A table with a row for each class and method, and for the mean of several classes."""
    cells = []
    for group, methods in group_rows(rows).items():
        for method, of_seeds in methods.items():
            name = [f"{group}, {method}", dimensions(of_seeds[:1])]
            cells.append([*name, *(cell(of_seeds) for cell in columns.values())])
    return Table(title, ["class, method", "dimensions", *columns], cells, notes)


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
    """The means over rows; None where a value is undefined, or a text is not the same in all."""
    means = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if None in values or isinstance(values[0], str):
            means[name] = values[0] if len(set(values)) == 1 else None
        else:
            means[name] = fmean(values)
    return means


def plot_studies(path: Path, rows: Mapping[str, Sequence[Row]], title: str) -> None:
    """Draw the metrics of studies, by name: a row per method, a dot per class and for the mean."""
    from matplotlib.figure import Figure

    studies = {name: group_rows(of_study) for name, of_study in rows.items()}
    if not studies:
        return
    counts = [len(next(iter(study.values()))) for study in studies.values()]  # of methods
    figure = Figure((15, 1.8 + 0.9 * len(counts) + 0.36 * sum(counts)), layout="constrained")
    # a metric has the same scale in all studies, so that they can be compared
    grid = figure.subplots(
        *(len(studies), len(COMPARED)), sharex="col", squeeze=False, height_ratios=counts
    )
    for line, (name, study) in zip(grid, studies.items(), strict=True):
        for axes, metric in zip(line, COMPARED, strict=True):
            for number, (group, methods) in enumerate(study.items()):
                values = [[row[metric] for row in of_seeds] for of_seeds in methods.values()]
                means = {y: fmean(v) for y, v in enumerate(values) if None not in v}
                marker = "s" if number >= 10 else "o"  # ten colours, each with two shapes
                axes.plot(list(means.values()), list(means), marker, label=group)
            axes.set_yticks(range(len(methods)), list(methods) if axes is line[0] else [])
            axes.set(ylim=(len(methods) - 0.5, -0.5), title=f"{name}: {METRICS[metric]}")
            axes.tick_params(labelbottom=True)
            axes.grid(color="0.9")
    figure.suptitle(f"{title}. Means over seeds. Axes are cut.")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
