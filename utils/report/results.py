"""Result files: metrics.csv and metrics.json of a run, scores.csv and thresholds.csv."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from utils.metrics import METRICS, RocCurve
from utils.system.errors import UserError
from utils.system.files import replacing, write_csv

FORMAT = 2  # of metrics.json
RATES = (0.01, 0.05, 0.1)  # of false alarms, that thresholds are shown at
STAGES = ("fit", "score", "metrics", "figures")


@dataclass(frozen=True)
class ClassResult:
    """The metrics of one class: a row of metrics.csv.

    Attributes:
        class_name: the class.
        seed: of the draw of channels.
        n_train, n_test: numbers of images.
        metrics: in [0, 1] by the keys of METRICS; None where one is undefined, and notes says why.
        seconds: wall time by STAGES; fit and score include loading images and the network.
        notes: sentences for the reader of the table.
    """

    class_name: str
    seed: int
    n_train: int
    n_test: int
    metrics: Mapping[str, float | None]
    seconds: Mapping[str, float]
    notes: Sequence[str]


@dataclass(frozen=True)
class Run:
    """The results of a run and the settings that made them, as describe_run returns them."""

    settings: Mapping[str, Any]
    results: Sequence[ClassResult]


@dataclass(frozen=True)
class ImageResult:
    """One test image.

    Attributes:
        image: file name.
        defect_type: folder name, "good" for a normal image.
        label: 0 normal, 1 anomalous, UNLABELLED where it is unknown.
        score: raw image score.
        figure: path of its localisation figure relative to the run's folder, with slashes; None
            if it has none.
        aupimo: of the image; None where it is undefined.
    """

    image: str
    defect_type: str
    label: int
    score: float
    figure: str | None
    aupimo: float | None = None


class RateResult(NamedTuple):
    """What a rate of false alarms means for the test images.

    Attributes:
        target_fpr: the rate of false alarms asked for.
        image_threshold: from good training images.
        test_fpr, test_tpr: fractions of good and of anomalous test images that reach it, the false
            alarms and the recall; None without such images.
    """

    target_fpr: float
    image_threshold: float
    test_fpr: float | None
    test_tpr: float | None


@dataclass(frozen=True)
class ClassThresholds:
    """A class's thresholds from good training images, beside the best on its test images.

    Attributes:
        class_name: the class.
        n_held_out: number of training images that the thresholds come from.
        target_fpr: the false alarm rate that was asked for.
        image_fpr: the false alarm rate that n_held_out images support.
        image_threshold, pixel_threshold: from good training images.
        best_f1_image_threshold, best_f1_pixel_threshold: of the best F1 on the test images; None
            where it is undefined.
        test_fpr, test_tpr: fractions of good and of anomalous test images that reach
            image_threshold; None without such images.
        at_rates: at each of RATES.
    """

    class_name: str
    n_held_out: int
    target_fpr: float
    image_fpr: float
    image_threshold: float
    pixel_threshold: float
    best_f1_image_threshold: float | None
    best_f1_pixel_threshold: float | None
    test_fpr: float | None
    test_tpr: float | None
    at_rates: Sequence[RateResult]


@dataclass(frozen=True)
class ClassRecord:
    """All that a finished class leaves for the tables, the page and the next run.

    Attributes:
        fingerprint: of everything that the results depend on.
        settings_sha256: of the settings and the place of the data; classes that have the same
            belong into one report.
        result: the metrics.
        thresholds: from good training images; None if there were too few.
        image_threshold, pixel_threshold: of the best F1 on the test images; None if undefined.
        image_curve, pixel_curve: ROC curves, thinned to what a figure shows; None if undefined.
        images: one per test image.
        panels: names of what a figure shows, from left to right.
        figure_size: width and height of the figures in pixels; None without figures.
        files: paths of all files written for the class, relative to the run's folder.
    """

    fingerprint: str
    settings_sha256: str
    result: ClassResult
    thresholds: ClassThresholds | None
    image_threshold: float | None
    pixel_threshold: float | None
    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    images: Sequence[ImageResult]
    panels: Sequence[str]
    figure_size: tuple[int, int] | None
    files: Sequence[str]


def write_run(folder: Path, run: Run) -> None:
    """Write metrics.csv, a row per class, unrounded, and metrics.json, which also has settings."""
    write_metrics(folder, run.results)
    content = {"format": FORMAT, **asdict(run)}
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_metrics(folder: Path, results: Sequence[ClassResult]) -> None:
    """Write metrics.csv: a row per class, unrounded."""
    rows = [_metrics_row(result) for result in results]
    write_csv(folder / "metrics.csv", list(rows[0]), [row.values() for row in rows])


def append_metrics(folder: Path, result: ClassResult) -> None:
    """Add the row of a class to metrics.csv, while other classes are not finished."""
    row, path = _metrics_row(result), folder / "metrics.csv"
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([row, row.values()] if is_new else [row.values()])


def write_scores(folder: Path, records: Sequence[ClassRecord]) -> None:
    """Write scores.csv: a row per test image with its raw, unrounded score and its AUPIMO."""
    columns = ["image", "defect_type", "label", "score", "aupimo"]
    rows = [
        [record.result.class_name, *(getattr(image, name) for name in columns)]
        for record in records
        for image in record.images
    ]
    write_csv(folder / "scores.csv", ["class_name", *columns], rows)


def write_thresholds(folder: Path, records: Sequence[ClassRecord]) -> None:
    """Write thresholds.csv: a row per class that has thresholds."""
    names = [field.name for field in fields(ClassThresholds) if field.name != "at_rates"]
    shown = "test_fpr", "test_tpr"
    columns = [*names, *(f"{name}_at_{rate:g}" for rate in RATES for name in shown)]
    rows = []
    for thresholds in (record.thresholds for record in records if record.thresholds is not None):
        rates = [getattr(at, name) for at in thresholds.at_rates for name in shown]
        rows.append([*(getattr(thresholds, name) for name in names), *rates])
    write_csv(folder / "thresholds.csv", columns, rows)


def read_run(path: Path) -> Run:
    """Read a metrics.json.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged or of an older version; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if found == FORMAT:
            results = [ClassResult(**result) for result in content["results"]]
            run = Run(content["settings"], results)
            check_results(results)
            if not isinstance(run.settings["arch"], str):
                raise TypeError("arch is no text")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, this version reads {FORMAT}; run main.py again"
        )
    if len({result.seed for result in results}) > 1:
        raise UserError(
            f"{path} holds several draws of channels, as older versions wrote; run main.py again"
        )
    return run


def damaged(path: Path, error: Exception) -> ValueError:
    """The error to raise if reading a metrics.json has failed with error."""
    return ValueError(
        f"{path} is damaged or no results of a run ({type(error).__name__}: {str(error)[:120]}); "
        "run main.py again"
    )


def check_results(results: Sequence[ClassResult]) -> None:
    """Refuse results that no run has written.

    Raises:
        AttributeError, TypeError, ValueError: if there are none, or a value has the wrong type or
            a metric is not in [0, 1].
    """
    if not results:
        raise UserError("no class")
    for result in results:
        texts = [result.class_name, *result.notes]
        counts = [result.seed, result.n_train, result.n_test]
        if not all(isinstance(text, str) for text in texts) or isinstance(result.notes, str):
            raise TypeError("a class name or a note is no text")
        if not all(type(count) is int for count in counts):
            raise TypeError(f"a seed or a number of images of {result.class_name} is no integer")
        if set(result.metrics) != set(METRICS) or set(result.seconds) != set(STAGES):
            raise UserError(f"metrics or seconds of {result.class_name}")
        if not all(value is None or 0 <= value <= 1 for value in result.metrics.values()):
            raise UserError(f"a metric of {result.class_name} is not in [0, 1]")
        if not all(value >= 0 for value in result.seconds.values()):
            raise UserError(f"seconds of {result.class_name} are negative")


def _metrics_row(result: ClassResult) -> dict[str, Any]:
    """A row of metrics.csv by column."""
    return {
        "class_name": result.class_name,
        "seed": result.seed,
        "n_train": result.n_train,
        "n_test": result.n_test,
        **{metric: result.metrics[metric] for metric in METRICS},
        **{f"seconds_{stage}": result.seconds[stage] for stage in STAGES},
    }
