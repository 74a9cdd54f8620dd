"""Tables of what was measured, in Markdown."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tests.benchmark.jobs import (
    BACKBONE,
    FIRST_CLASS,
    NAIVE,
    PROCESSES,
    SCALED_ARCH,
    SCALED_N_TRAIN,
    STAGES,
    SUITE,
)
from tests.benchmark.measure import FAILURE, PROPORTIONAL, Row, read_rows
from utils.report.tables import DASH, Table, to_markdown
from utils.system.files import replacing

REFERENCE_N = 500  # memory is told relative to that with so many training images
# a stage of the suite, and those of the naive reference that do the same
STAGE_PAIRS = {
    "fit": ("network, training images", "embeddings, training images", "fit", "file"),
    "score": ("network, test images", "embeddings, test images", "distances", "maps"),
    "metrics": ("metrics",),
    "figures": ("figures",),
}
SCALED = {
    "N": "the number N of training images",
    "d": f"the number d of channels, {SCALED_N_TRAIN} training images",
    "image size": f"the side of the images in pixels, {SCALED_N_TRAIN} training images",
}
COMPARED = ("", "suite", "naive", "naive / suite", "suite, % of naive")
GIGABYTE = 10**9

Values = Mapping[int, float]  # by repeat
Rows = Sequence[Row]


class Point(NamedTuple):
    """Medians at a point of what is scaled."""

    seconds: float
    peak_bytes: float


def write_tables(folder: Path) -> None:
    """Write benchmark.md."""
    with replacing(folder / "benchmark.md") as path:
        path.write_text(make_tables(folder))


def make_tables(folder: Path) -> str:
    """All tables of the CSV files in a folder; under the last, what each was measured with."""
    rows = {part: read_rows(folder / f"{part}.csv") for part in TABLES}
    measured = [part for part in TABLES if rows[part]]
    tables = [to_markdown(table) for part in measured for table in TABLES[part](rows)]
    settings: dict[str, list[str]] = {}
    for part in measured:
        settings.setdefault(describe(folder / f"{part}.json"), []).append(part)
    notes = [f"{', '.join(parts)}: {text}" for text, parts in settings.items()]
    return "\n".join([*tables, "".join(f"- {note}\n" for note in notes)])


def describe(path: Path) -> str:
    """The command, the data, the machine and the date of a part."""
    return "; ".join(json.loads(path.read_text()).values()) + "."


def whole_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """The whole command of each network beside the naive reference."""
    return [_whole_table(arch, rows["whole"]) for arch in archs(rows["whole"])]


def _whole_table(arch: str, rows: Rows) -> Table:
    def pair(suite: str, *naive: str) -> tuple[Values, Values]:
        return total(rows, arch, SUITE, [suite]), total(rows, arch, NAIVE, naive or [suite])

    times = pair("seconds")
    lines = [compare("whole command, s", seconds, *times)]
    lines.append(compare("peak memory, GB", gigabytes, *pair("peak bytes")))
    for stage, naive in STAGE_PAIRS.items():
        both = pair(f"seconds {stage}", *(f"seconds {name}" for name in naive))
        lines.append(compare(f"{stage}, s", seconds, *both))
    for level in ("image ROCAUC", "pixel ROCAUC"):
        sides = [show(values, "{:.6f}".format) for values in pair(level)]
        lines.append([level, *sides, "", ""])
    note = (
        f"Medians of {len(times[0])} and {len(times[1])} runs, in turn; ratios are medians over "
        "pairs. Fit and score include loading the images and the network, the suite's fit also "
        "thresholds and the saved model."
    )
    chosen = [row for row in rows if row.arch == arch]
    title = f"{arch}: the whole command and the naive reference"
    return Table(title, COMPARED, lines, [note, *failures(chosen)])


def stages_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """The Gaussians alone, beside the naive reference's and the network's time."""
    lines = [line for arch in archs(rows["stages"]) for line in _stages_lines(arch, rows)]
    note = (
        "Images in memory; medians. Fit and score of the naive reference, taken from its whole "
        "command, are covariances, inverses and distances; outputs to maps adds its embeddings, "
        "enlarging and smoothing, which the suite's fit and score include."
    )
    return [
        Table("network and Gaussians alone", COMPARED, lines, [note, *failures(rows["stages"])])
    ]


def _stages_lines(arch: str, rows: Mapping[str, Rows]) -> list[list[str]]:
    def ours(*stages: str) -> Values:
        return total(rows["stages"], arch, STAGES, [f"seconds {stage}" for stage in stages])

    def theirs(*stages: str) -> Values:
        return total(rows["whole"], arch, NAIVE, [f"seconds {stage}" for stage in stages])

    network, both = ours("network"), ours("fit", "score")
    ends = ("embeddings, training images", "embeddings, test images", "maps")
    share = {repeat: 100 * both[repeat] / network[repeat] for repeat in both}
    return [
        compare(f"{arch}: network, s", seconds, network, {}),
        compare(f"{arch}: fit, s", seconds, ours("fit"), theirs("fit")),
        compare(f"{arch}: score, s", seconds, ours("score"), theirs("distances")),
        compare(f"{arch}: fit + score, s", seconds, both, theirs("fit", "distances")),
        compare(f"{arch}: outputs to maps, s", seconds, both, theirs("fit", "distances", *ends)),
        compare(f"{arch}: fit + score, % of network", "{:.1f}".format, share, {}),
    ]


def backbone_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """The network beside ONNX Runtime."""
    cells = []
    for arch in archs(rows["backbone"]):
        ours, theirs, ratio = (
            total(rows["backbone"], arch, BACKBONE, [name])
            for name in ("seconds network", "seconds ONNX Runtime", "ratio")
        )
        cells.append(
            [
                arch,
                show(ours, milliseconds),
                show(theirs, milliseconds),
                show(ratio, "{:.2f}".format),
            ]
        )
    columns = ["", "suite, ms per image", "ONNX Runtime, ms per image", "suite / ONNX Runtime"]
    note = (
        "The same layers, batch norm folded, on as many threads; batches of noise, 224×224, in "
        "turn; medians. The suite's time includes normalising and the choice of channels."
    )
    return [Table("network and ONNX Runtime", columns, cells, [note, *failures(rows["backbone"])])]


def scaling_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """Time and memory of the suite, and as far as it goes of the naive reference."""
    names = dict.fromkeys(row.variable for row in rows["scaling"])
    return [
        _scaling_table(name, [row for row in rows["scaling"] if row.variable == name])
        for name in names
    ]


def _scaling_table(variable: str, rows: Rows) -> Table:
    points = {method: scaled(rows, method) for method in (SUITE, NAIVE)}
    ours = points[SUITE]
    methods = [method for method in points if points[method] or method == SUITE]
    base = REFERENCE_N if REFERENCE_N in ours else min(ours, default=0)
    cells = [
        [
            str(at),
            *(seconds(points[m][at].seconds) if at in points[m] else DASH for m in methods),
            *(gigabytes(points[m][at].peak_bytes) if at in points[m] else DASH for m in methods),
            f"{ours[at].peak_bytes / ours[base].peak_bytes:.2f}" if at in ours else DASH,
        ]
        for at in dict.fromkeys(row.at for row in rows)
    ]
    units = [f"{method}, {unit}" for unit in ("s", "GB") for method in methods]
    columns = [variable, *units, f"suite's memory / that at {base}"]
    note = "Whole commands on images of noise, 16 of them to test; no figures, no saved models."
    line = line_notes(ours) if variable == "N" else []
    title = f"{SCALED_ARCH}: time and memory against {SCALED[variable]}"
    return Table(title, columns, cells, [note, *line, *failures(rows)])


def line_notes(points: Mapping[int, Point]) -> list[str]:
    """How straight the suite's times against N are."""
    if len(points) < 3:
        return []
    slope, start = fit_line(points)
    off = max(abs((start + slope * n) / point.seconds - 1) for n, point in points.items())
    return [
        f"Straight line through the suite's times: {start:.1f} s + {1000 * slope:.1f} ms per "
        f"image, off by at most {100 * off:.0f} %."
    ]


def fit_line(points: Mapping[int, Point]) -> tuple[float, float]:
    """Slope and start of the line through the times, least squares of relative errors."""
    times = np.array([point.seconds for point in points.values()])
    slope, start = np.polyfit(list(points), times, 1, w=1 / times)
    return float(slope), float(start)


def processes_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """Whole commands on one and on several processes, of all classes and of one."""
    note = (
        "Whole commands in turn, the cores shared out among the processes; medians. Shared: a page "
        "that n processes have, such as a library's, counts 1/n in each (Linux's PSS, looked at "
        "twice a second)."
    )
    memories = {"peak bytes": "largest process", PROPORTIONAL: "shared"}
    titles = {
        PROCESSES: "one process and several",
        FIRST_CLASS: "one process and several, on the first class alone",
    }
    variables = dict.fromkeys(row.variable for row in rows["processes"])
    return [
        _relative_table(
            *(titles[variable], "processes", 1, note),
            [row for row in rows["processes"] if row.variable == variable],
            memories,
        )
        for variable in variables
    ]


def workers_tables(rows: Mapping[str, Rows]) -> list[Table]:
    """The whole command with other numbers of threads that decode images."""
    note = "Whole commands in turn, with --num_workers; medians. The default is one per core."
    memories = {"peak bytes": "largest process"}
    title = "threads that decode images"
    return [_relative_table(title, "threads", 0, note, rows["workers"], memories)]


def _relative_table(
    title: str, unit: str, base: int, note: str, rows: Rows, memories: Mapping[str, str]
) -> Table:
    """Time and memory of whole commands at each point, and relative to those at base.

    Args:
        title, note: of the table.
        unit: of the points.
        base: one of them.
        rows: measured.
        memories: what kinds of memory are called, by quantity.
    """
    writers = {"seconds": seconds} | dict.fromkeys(memories, gigabytes)
    cells = []
    for arch in archs(rows):
        chosen = [row for row in rows if row.arch == arch]
        points = medians(chosen, SUITE)
        for at in dict.fromkeys(row.at for row in chosen):
            ours, base_ours = points.get(at, {}), points.get(base, {})
            found = [write(ours[q]) if q in ours else DASH for q, write in writers.items()]
            shares = [
                f"{100 * ours[q] / base_ours[q]:.0f}" if q in ours and q in base_ours else DASH
                for q in writers
            ]
            cells.append([f"{arch}, {at}", *found, *shares])
    columns = [
        *(unit, "s", *(f"GB, {name}" for name in memories.values())),
        *(f"{what}, % of that at {base}" for what in ("time", *memories.values())),
    ]
    return Table(title, columns, cells, [note, *failures(rows)])


TABLES = {
    "whole": whole_tables,
    "stages": stages_tables,
    "backbone": backbone_tables,
    "scaling": scaling_tables,
    "processes": processes_tables,
    "workers": workers_tables,
}


def failures(rows: Rows) -> list[str]:
    """A note for each thing that could not be measured."""
    failed = [row for row in rows if row.quantity == FAILURE]
    return list(dict.fromkeys(map(describe_failure, failed)))


def describe_failure(row: Row) -> str:
    """What could not be measured, and why."""
    return f"{' '.join(f'{row.arch} {row.method} {row.variable} {row.at}'.split())}: {row.value}"


def archs(rows: Rows) -> list[str]:
    """The networks, in order."""
    return list(dict.fromkeys(row.arch for row in rows))


def total(rows: Rows, arch: str, method: str, quantities: Iterable[str]) -> Values:
    """The sum of some quantities by repeat, of the repeats that have all of them."""
    wanted = set(quantities)
    values: dict[int, dict[str, float]] = {}
    for row in rows:
        if (row.arch, row.method) == (arch, method) and row.quantity in wanted:
            values.setdefault(row.repeat, {})[row.quantity] = row.value
    return {repeat: sum(own.values()) for repeat, own in values.items() if len(own) == len(wanted)}


def medians(rows: Rows, method: str) -> dict[int, dict[str, float]]:
    """Of each quantity at each point that was measured."""
    values: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if row.method == method and row.quantity != FAILURE:
            values.setdefault(row.at, {}).setdefault(row.quantity, []).append(row.value)
    return {
        at: {quantity: median(one) for quantity, one in found.items()}
        for at, found in values.items()
    }


def scaled(rows: Rows, method: str) -> dict[int, Point]:
    """Time and memory at each point that was measured."""
    found = medians(rows, method)
    return {at: Point(one["seconds"], one["peak bytes"]) for at, one in found.items()}


def compare(label: str, write: Callable[[float], str], suite: Values, naive: Values) -> list[str]:
    """The cells of a comparison, with the median ratio of the repeats that both have."""
    ratios = [naive[repeat] / suite[repeat] for repeat in suite if repeat in naive]
    told = [f"{median(ratios):.1f}", f"{100 / median(ratios):.0f}"] if ratios else [DASH, DASH]
    return [label, show(suite, write), show(naive, write), *told]


def show(values: Values, write: Callable[[float], str]) -> str:
    """The median of the repeats."""
    return write(median(values.values())) if values else DASH


def seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def gigabytes(value: float) -> str:
    return f"{value / GIGABYTE:.2f}"


def milliseconds(value: float) -> str:
    return f"{1000 * value:.1f}"
