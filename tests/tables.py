"""Write the tables of the READMEs again: python -m tests.tables

This writes tables.md beside each metrics.json below results/measured/, all of these tables into
results/README.md, and what is measured and published at a glance, and the table of options, into
README.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from statistics import fmean

from datasets import mvtec
from utils import backbone
from utils.report.results import METRICS, Run, read_run
from utils.report.tables import (
    COMPARED,
    PATCHCORE,
    PATCHCORE_ARCH,
    RECOMMENDED,
    ROOT,
    Published,
    Table,
    describe_method,
    format_value,
    mean_of,
    of_mvtec,
    read_all_published,
    run_tables,
    to_markdown,
    write_tables,
)
from utils.settings import Experiment
from utils.system.files import replacing

# the lines between which a README's part is written
START = "<!-- {}, written by: python -m tests.tables -->\n"
END = "<!-- end of the {} -->\n"
# names of rows of published values, by source
AUTHORS = {"upstream": "{}, published by upstream", "paper": "{}, published by the paper"}
OTHERS = {PATCHCORE: f"{PATCHCORE} with {{}}, published by its authors"}
MOST_CHOICES = 8  # that the table of options names
# below results/measured, in the order of results/README.md
WRITTEN = (
    "studies/**/[!.]*.md",
    *("benchmark/*.md", "near_copies_*.md", "alignment_*.md"),
)


def write_all() -> None:
    """Write all tables, after all files that they are made from were read."""
    results = ROOT / "results"
    runs = read_runs(results)
    readme = {"results at a glance": glance(results), "options": tabulate_options()}
    readmes = {
        results / "README.md": fill_in("results/README.md", {"tables": all_tables(results)}),
        ROOT / "README.md": fill_in("README.md", readme),
    }
    for path, measured in runs.items():
        write_tables(path.parent, run_tables(measured))
        print(path.with_name("tables.md"))
    for path, text in readmes.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(path)


def read_runs(results: Path) -> dict[Path, Run]:
    """The measured runs, by the path of their metrics.json."""
    return {path: read_run(path) for path in sorted(results.glob("measured/**/metrics.json"))}


def all_tables(results: Path) -> str:
    """The tables of the measured runs, of the studies and of the benchmark, in Markdown."""
    measured = results / "measured"
    runs = read_runs(results).values()
    parts = [to_markdown(table) for run in runs for table in run_tables(run)]
    # studies, the benchmark and the test of near copies have written their own
    for pattern in WRITTEN:
        parts += [path.read_text("utf-8") for path in sorted(measured.glob(pattern))]
    return "\n".join(parts)


def glance(results: Path) -> str:
    """A table of measured and published means over the same classes of MVTec AD, in Markdown.

    Published networks that were not measured here come last, with the means over all classes.
    """
    published, runs = read_all_published(), read_runs(results).values()
    rows = [row for run in runs for row in glance_rows(run, published)]
    measured = {run.settings["arch"] for run in runs}
    for arch in backbone.BACKBONES:
        if arch not in measured:
            rows += published_rows(arch, mvtec.CLASS_NAMES, published)
    rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]  # PatchCore's once
    columns = ["network, numbers", *(METRICS[metric] for metric in COMPARED), "mean over"]
    title = "Means over classes of MVTec AD, published and measured here"
    return to_markdown(Table(title, columns, rows))


def glance_rows(run: Run, published: Published) -> list[list[str]]:
    """The means of a run over its classes of MVTec AD, after the published ones if there are any.

    A published mean needs the value of every one of these classes.
    """
    run, arch = of_mvtec(run), run.settings["arch"]
    measured = {result.class_name for result in run.results}
    names = [name for name in mvtec.CLASS_NAMES if name in measured]
    if not names:
        return []
    means = [mean_of(run, metric, names) for metric in COMPARED]
    model = describe_method(run.settings)
    measured_row = [f"{model}, measured here", *map(format_value, means), describe_classes(names)]
    rows = []
    if model == arch:  # as what is published of PaDiM
        rows = published_rows(arch, names, published)
    elif model == f"{arch}, {RECOMMENDED}":
        rows = published_rows(PATCHCORE_ARCH, names, published, OTHERS)
    return [*rows, measured_row]


def published_rows(
    arch: str, names: Sequence[str], published: Published, sources: Mapping[str, str] = AUTHORS
) -> list[list[str]]:
    """The sources' means over these classes; no row without any value."""
    rows = []
    for source, title in sources.items():
        means = [_published_mean(published, source, arch, metric, names) for metric in COMPARED]
        if means != [None] * len(COMPARED):
            rows.append([title.format(arch), *map(format_value, means), describe_classes(names)])
    return rows


def describe_classes(names: Sequence[str]) -> str:
    """The names, or "all 15 classes"."""
    everything = len(names) == len(mvtec.CLASS_NAMES)
    return f"all {len(names)} classes" if everything else ", ".join(names)


def tabulate_options() -> str:
    """The options of the experiment, from its settings, in Markdown."""
    rows = []
    for field in fields(Experiment):
        how, default = field.metadata, field.default
        meaning, _, said = how["help"].partition(" (default: ")
        name = " ".join(filter(None, [f"--{field.name}", how["metavar"]]))
        if how["choices"] and len(how["choices"]) < MOST_CHOICES:
            meaning += f": {', '.join(f'`{choice}`' for choice in how['choices'])}"
        is_said = default is None or default is False or default is MISSING
        unsaid = "" if is_said else str(default)
        rows.append([f"`{name}`", meaning, said.removesuffix(")") or unsaid])
    lines = [["option", "meaning", "default"], ["---"] * 3, *rows]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill_in(name: str, contents: Mapping[str, str]) -> str:
    """The text of a file below ROOT, with each content between its lines START and END."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for part, content in contents.items():
        start, end = START.format(part), END.format(part)
        before, rest = text.split(start)
        _, after = rest.split(end)
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def _published_mean(
    published: Published, source: str, arch: str, metric: str, class_names: Sequence[str]
) -> float | None:
    """The mean of published values, or the published mean of all; None if there is neither."""
    values = [published.get((source, arch, metric, name)) for name in class_names]
    if None in values and len(values) == len(mvtec.CLASS_NAMES):
        return published.get((source, arch, metric, "mean_all"))
    return None if None in values else fmean(values)


if __name__ == "__main__":
    write_all()
