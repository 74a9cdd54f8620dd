"""Write the tables of results again.

    python main.py tables

writes tables.md beside each metrics.json below results/measured/, all of these tables into
results/README.md, and what is measured and published at a glance into README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from datasets import mvtec
from utils import backbone
from utils.report.results import METRICS, Run, damaged, read_run
from utils.report.tables import (
    COMPARED,
    ROOT,
    Published,
    Table,
    describe_model,
    format_value,
    mean_of,
    read_all_published,
    run_tables,
    to_markdown,
    write_tables,
)
from utils.system.errors import UserError
from utils.system.files import replacing

START, END = "<!-- written by: python main.py tables -->\n", "<!-- end of the tables -->\n"
GLANCE_START = "<!-- results at a glance, written by: python main.py tables -->\n"
FIGURES = {
    "studies.png": "Metrics of all studies",
    "size.png": "Size and time of smaller models against their accuracy",
    "scaling.png": "Time and memory of larger inputs",
}
GLANCE_END = "<!-- end of the results at a glance -->\n"


@dataclass(frozen=True)
class Settings:
    """The command has no options."""


def run(_: Settings) -> None:
    """Write all tables, after all files that they are made from were read.

    Raises:
        OSError: if a file is missing.
        ValueError: if a results file is damaged, or a README lacks the lines to write between.
    """
    results = ROOT / "results"
    tables = {path: read_tables(path) for path in sorted(results.glob("measured/**/metrics.json"))}
    readmes = {
        results / "README.md": fill_in(
            read_text(results / "README.md"), all_tables(results), name="results/README.md"
        ),
        ROOT / "README.md": fill_in(
            read_text(ROOT / "README.md"), glance(results), GLANCE_START, GLANCE_END
        ),
    }
    for path, of_run in tables.items():
        write_tables(path.parent, of_run)
        print(path.with_name("tables.md"))
    for path, text in readmes.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(path)


def all_tables(results: Path) -> str:
    """The tables of the measured runs, of the studies and of the benchmark, in Markdown.

    Raises:
        OSError, ValueError: as read_tables and read_text.
    """
    measured = results / "measured"
    parts = [
        to_markdown(table)
        for path in sorted(measured.rglob("metrics.json"))
        for table in read_tables(path)
    ]
    # studies, the benchmark and the test of near copies have written their own
    parts += [read_text(path) for path in sorted(measured.glob("studies/**/[!.]*.md"))]
    parts += map(partial(show_figure, results), sorted(measured.glob("studies/**/[!.]*.png")))
    parts += [read_text(path) for path in measured.glob("benchmark/benchmark.md")]
    parts += map(partial(show_figure, results), measured.glob("benchmark/scaling.png"))
    parts += [read_text(path) for path in sorted(measured.glob("near_copies_*.md"))]
    return "\n".join(parts)


def show_figure(results: Path, path: Path) -> str:
    """A figure in Markdown, as results/README.md shows it."""
    place = path.relative_to(results).as_posix()
    return f"![{FIGURES.get(path.name, path.stem)}]({place})\n"


def glance(results: Path) -> str:
    """A table of measured and published means over the same classes of MVTec AD, in Markdown.

    Published networks that were not measured here come last, with the means over all classes.

    Raises:
        OSError, ValueError: as read_run and read_all_published.
    """
    published = read_all_published()
    runs = [read_run(path) for path in sorted((results / "measured").rglob("metrics.json"))]
    rows = [row for run in runs for row in glance_rows(run, published)]
    measured = {run.settings["arch"] for run in runs}
    for arch in backbone.BACKBONES:
        if arch not in measured:
            rows += published_rows(arch, mvtec.CLASS_NAMES, published)
    columns = ["network, numbers", *(METRICS[metric] for metric in COMPARED), "mean over"]
    return to_markdown(
        Table("Means over classes of MVTec AD, published and measured here", columns, rows)
    )


def glance_rows(run: Run, published: Published) -> list[list[str]]:
    """The means of a run over its classes of MVTec AD, after the published ones if there are any.

    A published mean needs the value of every one of these classes.
    """
    arch = run.settings["arch"]
    measured = {result.class_name for result in run.results}
    names = [name for name in mvtec.CLASS_NAMES if name in measured]
    if not names:
        return []
    means = [mean_of(run, metric, names) for metric in COMPARED]
    model = describe_model(run.settings)
    measured_row = [f"{model}, measured here", *map(format_value, means), describe_classes(names)]
    # what is published was measured with the defaults
    rows = published_rows(arch, names, published) if model == arch else []
    return [*rows, measured_row]


def published_rows(arch: str, names: Sequence[str], published: Published) -> list[list[str]]:
    """Upstream's and the paper's means over these classes; no row without any value."""
    rows = []
    for source, by in (("upstream", "published by upstream"), ("paper", "published by the paper")):
        means = [_published_mean(published, source, arch, metric, names) for metric in COMPARED]
        if means != [None] * len(COMPARED):
            rows.append([f"{arch}, {by}", *map(format_value, means), describe_classes(names)])
    return rows


def describe_classes(names: Sequence[str]) -> str:
    """The names, or "all 15 classes"."""
    everything = len(names) == len(mvtec.CLASS_NAMES)
    return f"all {len(names)} classes" if everything else ", ".join(names)


def read_tables(path: Path) -> list[Table]:
    """The tables of the run that wrote this metrics.json.

    Raises:
        OSError, ValueError: as read_run and read_all_published.
    """
    run = read_run(path)
    try:
        return run_tables(run)
    except (AttributeError, KeyError, TypeError) as error:  # wrong settings
        raise damaged(path, error) from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8; the message names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: no text in UTF-8; restore it") from error


def fill_in(
    text: str, content: str, start: str = START, end: str = END, name: str = "README.md"
) -> str:
    """The text with content between the lines start and end, in place of what was there.

    Raises:
        ValueError: if these lines are missing; the message calls the file by name.
    """
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise UserError(f"{name} has lost the lines {start.strip()} and {end.strip()}")
    return f"{before}{start}\n{content}\n{end}{after}"


def _published_mean(
    published: Published, source: str, arch: str, metric: str, class_names: Sequence[str]
) -> float | None:
    """The mean of published values, or the published mean of all; None if there is neither."""
    values = [published.get((source, arch, metric, name)) for name in class_names]
    if None in values and len(values) == len(mvtec.CLASS_NAMES):
        return published.get((source, arch, metric, "mean_all"))
    return None if None in values else fmean(values)
