"""Tables of metrics: those of a run, and the same values beside the published ones."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

from datasets import demo, mvtec
from utils.report.results import METRICS, Run
from utils.settings import PRESETS, Experiment
from utils.system.files import replacing

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path("results", "measured", "published.csv")  # upstream's and the paper's, below ROOT
PEERS = PUBLISHED.with_name("peers.csv")  # of other implementations
COMPARED = ("image_auroc", "pixel_auroc", "aupro")
# columns of published values, and their source by metric
SOURCES = {
    "upstream": dict.fromkeys(COMPARED, "upstream"),
    "paper": dict.fromkeys(COMPARED, "paper"),
    "anomalib": dict.fromkeys(COMPARED, "anomalib") | {"aupro": "aupimo", "aupimo": "aupimo"},
}
# beside runs with the recommended settings stands another method, with its network
RECOMMENDED = "recommended"
PATCHCORE, PATCHCORE_ARCH = "PatchCore", "wide_resnet50_2"
PATCHCORE_AUTHORS = (
    f"{PATCHCORE}: as published by Roth et al., Towards Total Recall in Industrial Anomaly "
    f"Detection, CVPR 2022, with {PATCHCORE_ARCH} and 25 % of the patches."
)
# the settings of the method, which are named if they are not the default
METHOD = ("n_features", "layers", "neighbourhood", "context", "align", "shrinkage", "image_score")
DASH = "–"  # stands in a cell without a value
AUPIMO_AUTHORS = (
    "anomalib: its PaDiM as the authors of AUPIMO measured it (jpcbertoldo/aupimo); the size of "
    "their images is not recorded."
)

# the value by source, arch, metric, and class or mean
Published = Mapping[tuple[str, str, str, str], float]


class Table(NamedTuple):
    """Text cells; the first column names the row, and the notes stand below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def run_tables(run: Run) -> list[Table]:
    """The table of a run's metrics and, for classes of MVTec AD, those beside published values.

    What is published of PaDiM was measured with the defaults, so a run with other settings has the
    first table alone; with the recommended settings it has one more, beside PatchCore.
    """
    tables = [metrics_table(run)]
    compared = of_mvtec(run)
    if compared.results and describe_method(run.settings) in (
        run.settings["arch"],
        f"{run.settings['arch']}, {RECOMMENDED}",
    ):
        published, metrics = read_all_published(), (*COMPARED, "aupimo")
        tables += [comparison_table(compared, metric, published) for metric in metrics]
    return [table for table in tables if table.rows and len(table.columns) > 2]


def of_mvtec(run: Run) -> Run:
    """The run with only those classes that have MVTec AD's names and numbers of images.

    A class with a region of interest is left out: what is published is of all pixels.
    """
    published = {
        (name, counts.train, counts.good + counts.defective)
        for name, counts in mvtec.COUNTS.items()
    }
    results = [
        result
        for result in run.results
        if (result.class_name, result.n_train, result.n_test) in published
        and (result.learnt or {}).get("region") is None
    ]
    return replace(run, results=results)


def metrics_table(run: Run) -> Table:
    """All metrics of a run's classes, and their means over complete groups of classes."""
    names = [result.class_name for result in run.results]
    groups = {name: (name,) for name in names}
    for dataset in (mvtec, demo):
        groups |= {title: of for title, of in _means(dataset).items() if set(of) <= set(names)}
    if len(list(groups.values())[-1]) < len(names):
        groups[f"mean of {len(names)} classes"] = names
    rows = [
        [title, *(format_value(mean_of(run, metric, of)) for metric in METRICS)]
        for title, of in groups.items()
    ]
    notes = [f"{result.class_name}: {note}" for result in run.results for note in result.notes]
    title = f"{describe_method(run.settings)} on {run.settings['data']}"
    return Table(title, ["class", *METRICS.values()], rows, [describe_source(run), *notes])


def comparison_table(run: Run, metric: str, published: Published) -> Table:
    """A metric of the measured classes of MVTec AD, and of complete means, beside published values.

    A source that published none of these values has no column. The table has no rows if the metric
    is undefined for all classes.
    """
    arch = run.settings["arch"]
    sources = {title: (by.get(metric), arch) for title, by in SOURCES.items()}
    if describe_method(run.settings) != arch:
        sources = {PATCHCORE: (PATCHCORE, PATCHCORE_ARCH)}
    means = {row: mean_of(run, metric, of) for row, of in _mvtec_groups().items()}
    ours = {row: value for row, value in means.items() if value is not None}
    columns = {"ours": [*map(format_value, ours.values())]}
    for title, source in sources.items():
        values = [published.get((*source, metric, row.replace(" of ", "_"))) for row in ours]
        if values != [None] * len(ours):
            columns[title] = [*map(format_value, values)]
            if title == "upstream":
                columns["Δ"] = [
                    format_value(None if value is None else our - value, sign=True)
                    for our, value in zip(ours.values(), values, strict=True)
                ]
    rows = [[row, *cells] for row, *cells in zip(ours, *columns.values(), strict=True)]
    notes = [f"Ours: seed {run.results[0].seed} of the run above."]
    if PATCHCORE in columns:
        notes.append(PATCHCORE_AUTHORS)
    if "anomalib" in columns and SOURCES["anomalib"][metric] == "aupimo":
        notes.append(AUPIMO_AUTHORS)
    n_missing = len(mvtec.CLASS_NAMES) - len(ours.keys() & {*mvtec.CLASS_NAMES})
    if n_missing:
        notes.append(
            f"Not measured here: {n_missing} of the {len(mvtec.CLASS_NAMES)} classes; what is "
            f"published of them is in {PUBLISHED.parent.as_posix()}."
        )
    title = f"{describe_method(run.settings)}: {METRICS[metric]}, published and measured here"
    return Table(title, ["class", *columns], rows, notes)


def describe_method(settings: Mapping[str, Any]) -> str:
    """The network of a run, and what differs from the defaults of the method.

    What is as in the recommended preset is not named one by one.
    """
    defaults, arguments = asdict(Experiment()), settings["arguments"]
    chosen = {name: arguments.get(name, defaults[name]) for name in METHOD}
    changed = {name: value for name, value in chosen.items() if value != defaults[name]}
    recommended = {name: PRESETS[RECOMMENDED][name] for name in METHOD if name != "layers"}
    parts = [settings["arch"]]
    if recommended.items() <= changed.items():
        parts.append(RECOMMENDED)
        changed = {name: value for name, value in changed.items() if name not in recommended}
    for name, value in changed.items():
        parts.append(f"{name} {' '.join(value) if isinstance(value, list) else value}")
    return ", ".join(parts)


def mean_of(run: Run, metric: str, class_names: Iterable[str]) -> float | None:
    """The mean of a metric over classes; None if it is undefined for one, or one is not in run."""
    values = {result.class_name: result.metrics[metric] for result in run.results}
    chosen = [values.get(name) for name in class_names]
    return None if None in chosen else fmean(chosen)


def format_value(value: float | None, sign: bool = False) -> str:
    """Three decimals, with a sign if wanted; a dash for None."""
    if value is None:
        return DASH
    return f"{value:+.3f}".replace("-", "−") if sign else f"{value:.3f}"


def describe_source(run: Run) -> str:
    """The command, weights, device and date of a run, and its peak memory."""
    settings = run.settings
    memory = settings["peak_memory_bytes"]["host"]
    return (
        f"{settings['command']}; weights sha256 {settings['weights_sha256'][:12]}…, "
        f"{settings['device']}, torch {settings['versions']['torch']}, {settings['date']}, "
        f"peak memory {DASH if memory is None else f'{memory / 1e9:.1f} GB'}."
    )


def read_all_published() -> Published:
    """The published values of all sources."""
    published = {}
    for path in (ROOT / PUBLISHED, ROOT / PEERS):
        with path.open(newline="", encoding="utf-8") as file:
            for source, arch, metric, class_name, value in list(csv.reader(file))[1:]:
                published[source, arch, metric, class_name] = float(value)
    return published


def write_tables(folder: Path, tables: Sequence[Table]) -> None:
    """Write tables.md."""
    text = "\n".join(map(to_markdown, tables))
    # the name of the data folder need not be valid text
    with replacing(folder / "tables.md") as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


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


def _means(dataset: ModuleType) -> dict[str, tuple[str, ...]]:
    """The classes of each mean over a data set, given as a module with TEXTURES and OBJECTS."""
    return {
        "mean of textures": dataset.TEXTURES,
        "mean of objects": dataset.OBJECTS,
        "mean of all": (*dataset.TEXTURES, *dataset.OBJECTS),
    }


def _mvtec_groups() -> dict[str, tuple[str, ...]]:
    """The classes of each row of upstream's tables: textures, their mean, objects and so on."""
    groups = {}
    for mean, class_names in _means(mvtec).items():
        groups |= {name: (name,) for name in class_names}
        groups[mean] = class_names
    return groups
