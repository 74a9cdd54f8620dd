"""How time and memory grow, drawn."""

from collections.abc import Sequence
from pathlib import Path

from tests.benchmark.jobs import NAIVE, SCALED_ARCH, SCALED_N_TRAIN, SUITE
from tests.benchmark.measure import Row, read_rows
from tests.benchmark.tables import GIGABYTE, archs, fit_line, scaled
from utils.system.files import replacing

# by what is varied: the column's title and its axis
COLUMNS = {
    "N": (f"training images ({SCALED_ARCH})", "training images N"),
    "d": (f"channels ({SCALED_ARCH}, N = {SCALED_N_TRAIN})", "channels d"),
    "image size": (
        f"image size ({SCALED_ARCH}, N = {SCALED_N_TRAIN})",
        "side of the images, pixels",
    ),
    "processes": ("processes", "processes, which share the cores"),
}
COLORS = {"resnet18": "C0", "wide_resnet50_2": "C1", "efficientnet_lite0": "C2"}
LINES = {SUITE: "o-", NAIVE: "s--"}


def plot_scaling(folder: Path) -> None:
    """Write scaling.png from scaling.csv and processes.csv; none if neither has a point."""
    from matplotlib.figure import Figure

    rows = [row for part in ("scaling", "processes") for row in read_rows(folder / f"{part}.csv")]
    if not any(row.quantity == "seconds" for row in rows):
        return
    figure = Figure(figsize=(15, 6.5))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(2, len(COLUMNS), sharex="col")
    for column, (variable, (title, label)) in zip(grid.T, COLUMNS.items(), strict=True):
        plot_column(column, [row for row in rows if row.variable == variable], variable)
        column[0].set_title(title, loc="left", fontsize="medium")
        column[1].set_xlabel(label)
    grid[0, 0].set_ylabel("whole command, seconds")
    grid[1, 0].set_ylabel("peak memory of a process, GB")
    with replacing(folder / "scaling.png") as path:
        figure.savefig(path, dpi=100)


def plot_column(axes: Sequence, rows: Sequence[Row], variable: str) -> None:
    """Seconds above, gigabytes below, a line for each network and method."""
    for arch in archs(rows):
        chosen = [row for row in rows if row.arch == arch]
        for method, line in LINES.items():
            points = dict(sorted(scaled(chosen, method).items()))
            color = COLORS[arch] if method == SUITE else "0.45"
            label = arch if variable == "processes" else method
            seconds = [point.seconds for point in points.values()]
            peaks = [point.peak_bytes / GIGABYTE for point in points.values()]
            if points:
                axes[0].plot(list(points), seconds, line, color=color, label=label)
                axes[1].plot(list(points), peaks, line, color=color, label=label)
            if variable == "N" and method == SUITE and len(points) > 2:
                plot_line(axes[0], *fit_line(points), max(points))
    at = sorted({row.at for row in rows})
    for ax in axes:
        ax.grid(color="0.9")
        ax.set_axisbelow(True)
        # points that differ little leave no margin of their own above them
        ax.set_ylim(0, 1.1 * max(ax.dataLim.y1, 0) or 1)
        if variable == "N":
            ax.set_xlim(left=0)
        else:
            ax.set_xticks(at)
        if variable == "processes" and at:
            ax.set_xlim(at[0] - 0.5, at[-1] + 0.5)
        if len(ax.lines) > 1:
            ax.legend(fontsize="small")
        if not ax.lines:
            place = {"transform": ax.transAxes, "ha": "center", "va": "center"}
            ax.text(0.5, 0.5, "not measured", color="0.5", **place)


def plot_line(ax, slope: float, start: float, end: float) -> None:
    """The straight line through the times."""
    label = f"{start:.1f} s + {1000 * slope:.1f} ms · N"
    ax.plot([0, end], [start, start + slope * end], ":", color="black", label=label)
