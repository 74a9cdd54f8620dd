"""Tables of metrics: those of a run, and the same beside the published ones.

    python main.py tables

writes tables.md beside each metrics.json below results/, and all tables into README.md.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from datasets import demo, mvtec
from utils.report.results import METRICS, Run, damaged, read_run
from utils.system.files import replacing

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- written by: python main.py tables -->\n", "<!-- end of the tables -->\n"
COMPARED = ("image_auroc", "pixel_auroc", "aupro")
DASH = "–"  # a cell without a measurement
# what a reader of upstream's numbers must be told, by metric and arch
CAVEATS = {
    ("image_auroc", "resnet18"): (
        "Transistor: a user of upstream reported 0.887 on the data as downloaded in January 2021 "
        "(its issue #6); upstream's own code gives 0.918 on the images measured here.",
    ),
    ("pixel_auroc", "resnet18"): (
        "Transistor: a user of upstream reported 0.959 on the data as downloaded in January 2021 "
        "(its issue #6); upstream's own code gives 0.968 on the images measured here.",
        "Upstream's mean of textures, 0.953, is not the mean of its own five cells, 0.954.",
    ),
}

# from source ("upstream" or "paper"), arch, metric and class or mean, to the value
Published = Mapping[tuple[str, str, str, str], float]


class Table(NamedTuple):
    """Cells as they are shown; the first column names the row, notes stand below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


class Group(NamedTuple):
    """A row: one class, or the mean of some; key is its class_name in published.csv."""

    title: str
    key: str
    class_names: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options: none."""


def run(args: argparse.Namespace) -> None:
    """Write the tables of every run below results/, and the README's with all others there.

    Raises:
        ValueError: if a results file is damaged or the README has lost its markers.
    """
    found = {path: read_tables(path) for path in sorted((ROOT / "results").rglob("metrics.json"))}
    parts = [to_markdown(table) for tables in found.values() for table in tables]
    parts += read_written(ROOT)
    path = ROOT / "README.md"
    text = fill_in(read_text(path), "\n".join(parts))
    # all of it is in order: now it is written
    for of_run, tables in found.items():
        write_tables(of_run.parent, tables)
        print(of_run.with_name("tables.md"))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(path)


def read_tables(path: Path) -> list[Table]:
    """The tables of the run that left this metrics.json.

    Raises:
        OSError, ValueError: as read_run.
    """
    run = read_run(path)
    try:
        return run_tables(run)
    except (AttributeError, KeyError, TypeError) as error:  # its settings are not those of a run
        raise damaged(path, error) from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        ValueError: if it is not; the message names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: no text in UTF-8; restore it") from error


def read_written(root: Path) -> list[str]:
    """The tables that the studies and the benchmark have written themselves, and its figure."""
    results = root / "results"
    paths = [*sorted(results.glob("studies/**/[!.]*.md")), *results.glob("benchmark/benchmark.md")]
    figures = [
        f"![Time and memory as there is more of everything]({path.relative_to(root)})\n"
        for path in results.glob("benchmark/scaling.png")
    ]
    return [*(read_text(path) for path in paths), *figures]


def write_tables(folder: Path, tables: Sequence[Table]) -> None:
    """Write tables.md."""
    text = "\n".join(map(to_markdown, tables))
    # the name of the data need not be valid text
    with replacing(folder / "tables.md") as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def fill_in(text: str, content: str, start: str = START, end: str = END) -> str:
    """The README's text with content between two of its lines.

    Raises:
        ValueError: if they are not there.
    """
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise ValueError(f"README.md has lost the lines {start.strip()} and {end.strip()}")
    return f"{before}{start}\n{content}\n{end}{after}"


def run_tables(run: Run) -> list[Table]:
    """A run's own table and, if it has classes of MVTec AD, those beside published values."""
    tables = [metrics_table(run)]
    if {result.class_name for result in run.results} & set(mvtec.CLASS_NAMES):
        published = read_published(ROOT / "results" / "published.csv")
        arch = run.settings["arch"]
        there = {key[1:3] for key in published}
        tables += [
            comparison_table(run, metric, published)
            for metric in COMPARED
            if (arch, metric) in there
        ]
    return tables


def metrics_table(run: Run) -> Table:
    """Every metric of a run's classes and, where complete, of the means; with sd over seeds."""
    names = list(dict.fromkeys(result.class_name for result in run.results))
    groups = [Group(name, name, [name]) for name in names]
    for module in (mvtec, demo):
        groups += [g for g in _means(module) if set(names).issuperset(g.class_names)]
    if len(groups[-1].class_names) < len(names):
        groups.append(Group(f"mean of {len(names)} classes", "", names))
    rows = [
        [group.title, *(_format_spread(_over_seeds(run, group, metric)) for metric in METRICS)]
        for group in groups
    ]
    notes = [f"{r.class_name}: {note}" for r in run.results[: len(names)] for note in r.notes]
    return Table(_title(run), ["class", *METRICS.values()], rows, [describe_source(run), *notes])


def comparison_table(run: Run, metric: str, published: Published) -> Table:
    """A metric of MVTec AD's classes and means with the first seed, beside published values.

    A class without any value has no row.
    """
    arch = run.settings["arch"]
    rows = []
    for group in _mvtec_groups():
        ours = _over_seeds(run, group, metric)[0]
        upstream, paper = (
            published.get((source, arch, metric, group.key)) for source in ("upstream", "paper")
        )
        delta = None if ours is None or upstream is None else ours - upstream
        cells = [_format(ours), _format(upstream), _format(delta, sign=True), _format(paper)]
        if any(cell != DASH for cell in cells):
            rows.append([group.title, *cells])
    title = f"{arch}: {METRICS[metric]}, published and measured here"
    notes = [
        f"Ours: seed {run.results[0].seed} of the run above.",
        *CAVEATS.get((metric, arch), ()),
    ]
    return Table(title, ["class", "ours", "upstream", "Δ", "paper"], rows, notes)


def read_published(path: Path) -> Published:
    """The published values.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                (row["source"], row["arch"], row["metric"], row["class_name"]): _share(row["value"])
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore it") from error


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text} is not in [0, 1]")
    return value


def to_markdown(table: Table) -> str:
    """The table in Markdown, with its title and notes."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"**{table.title}**\n\n{body}\n\n{notes}"


def to_text(table: Table) -> str:
    """The table in aligned columns, with its title and notes."""
    lines = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([table.title, *body, *table.notes])


def _means(module) -> list[Group]:
    """The means of a data set, a module that has TEXTURES and OBJECTS."""
    return [
        Group("mean of textures", "mean_textures", module.TEXTURES),
        Group("mean of objects", "mean_objects", module.OBJECTS),
        Group("mean of all", "mean_all", [*module.TEXTURES, *module.OBJECTS]),
    ]


def _mvtec_groups() -> list[Group]:
    """Upstream's rows: textures and their mean, objects and theirs, all."""
    textures, objects, both = _means(mvtec)
    single = {name: Group(name, name, [name]) for name in mvtec.CLASS_NAMES}
    return [
        *(single[name] for name in mvtec.TEXTURES),
        textures,
        *(single[name] for name in mvtec.OBJECTS),
        objects,
        both,
    ]


def _over_seeds(run: Run, group: Group, metric: str) -> list[float | None]:
    """For each seed the mean over the group; None where a class or its metric is missing."""
    values = {(r.seed, r.class_name): r.metrics[metric] for r in run.results}
    seeds = dict.fromkeys(result.seed for result in run.results)
    over_classes = [[values.get((seed, name)) for name in group.class_names] for seed in seeds]
    return [None if None in of_seed else fmean(of_seed) for of_seed in over_classes]


def _format(value: float | None, sign: bool = False) -> str:
    if value is None:
        return DASH
    return f"{value:+.3f}".replace("-", "−") if sign else f"{value:.3f}"


def _format_spread(values: Sequence[float | None]) -> str:
    if len(values) == 1 or None in values:
        return _format(values[0])
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def _title(run: Run) -> str:
    seeds = len({result.seed for result in run.results})
    spread = f", mean ± sd of {seeds} draws of channels" if seeds > 1 else ""
    return f"{run.settings['arch']} on {run.settings['data']}{spread}"


def describe_source(run: Run) -> str:
    """The command, weights, device and date that made a run's numbers, and its peak memory."""
    settings = run.settings
    memory = settings["peak_memory_bytes"]["host"]
    return (
        f"{settings['command']}; weights sha256 {settings['weights_sha256'][:12]}…, "
        f"{settings['device']}, torch {settings['versions']['torch']}, {settings['date']}, "
        f"peak memory {DASH if memory is None else f'{memory / 1e9:.1f} GB'}."
    )
