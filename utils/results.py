"""What a run leaves in numbers: metrics.csv, metrics.json and the table on the terminal."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.files import replacing

METRICS = ("image_auroc", "pixel_auroc")
STAGES = ("fit", "score", "metrics", "figures")


@dataclass(frozen=True)
class ClassResult:
    """One class's row; a metric that is not defined is None, and notes says why.

    seconds holds the time of every stage. Those of fit and score include loading the images and
    running the network.
    """

    class_name: str
    n_train: int
    n_test: int
    image_auroc: float | None
    pixel_auroc: float | None
    seconds: Mapping[str, float]
    notes: Sequence[str]


def write_results(
    folder: Path, results: Sequence[ClassResult], settings: Mapping[str, Any]
) -> None:
    """Write metrics.csv, a row per class and unrounded, and metrics.json, the same and settings.

    They replace what was there.
    """
    rows = [_csv_row(result) for result in results]
    with replacing(folder / "metrics.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    content = {"settings": settings, "classes": [asdict(result) for result in results]}
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def format_table(
    results: Sequence[ClassResult], textures: Sequence[str], objects: Sequence[str]
) -> str:
    """Classes and means as lines of text, rounded to three digits.

    The means are those of the textures, the objects and all, each only where every class of it
    was run; without the last, one of the classes there are.
    """
    groups = [(result.class_name, [result]) for result in results]
    names = {result.class_name for result in results}
    for title, members in (
        ("mean of textures", textures),
        ("mean of objects", objects),
        ("mean of all", [*textures, *objects]),
    ):
        if names.issuperset(members):
            groups.append((title, [r for r in results if r.class_name in members]))
    if len(groups[-1][1]) < len(results):
        groups.append((f"mean of {len(results)} classes", results))
    width = max(len(title) for title, _ in groups)
    lines = [f"{'class':{width}}  image ROCAUC  pixel ROCAUC"]
    for title, members in groups:
        cells = [format_metric(mean_metric(members, metric)) for metric in METRICS]
        lines.append(f"{title:{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def mean_metric(results: Sequence[ClassResult], metric: str) -> float | None:
    """The mean of a metric over classes, None unless each of them has it."""
    values = [getattr(result, metric) for result in results]
    return None if None in values else fmean(values)


def format_metric(value: float | None) -> str:
    """Three digits, or a dash for a metric that is not defined."""
    return "–" if value is None else f"{value:.3f}"


def _csv_row(result: ClassResult) -> dict[str, Any]:
    row = asdict(result)
    del row["notes"]
    seconds = row.pop("seconds")
    return row | {f"seconds_{stage}": seconds[stage] for stage in STAGES}
