"""The record of a class, and the files made from all records: metrics, scores and thresholds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.metrics import METRICS, RocCurve
from utils.system.errors import UserError
from utils.system.files import replacing, write_csv
from utils.thresholds import Thresholds

FORMAT = 3  # of metrics.json
RATES = (0.01, 0.05, 0.1)  # of false alarms, that thresholds are shown at
STAGES = ("fit", "score", "metrics", "figures")


@dataclass(frozen=True)
class ClassResult:
    """The metrics of one class: a row of metrics.csv."""

    class_name: str
    seed: int
    n_train: int
    n_test: int
    metrics: Mapping[str, float | None]  # in [0, 1] by METRICS; None if undefined, as notes say
    seconds: Mapping[str, float]  # wall time by STAGES; fit and score include loading images
    notes: Sequence[str]  # sentences for the reader of the table
    learnt: Mapping[str, Any] | None = None  # what PaDiM.describe returns


@dataclass(frozen=True)
class Run:
    """The results of a run and the settings that made them, as describe_run returns them."""

    settings: Mapping[str, Any]
    results: Sequence[ClassResult]


@dataclass(frozen=True)
class ImageResult:
    """One test image."""

    image: str  # file name
    defect_type: str  # folder name, "good" for a normal image
    label: int  # 0 normal, 1 anomalous, UNLABELLED where it is unknown
    score: float
    figure: str | None  # its path below the run's folder, with slashes
    aupimo: float | None = None  # None where it is undefined


@dataclass(frozen=True)
class ClassRecord:
    """All that a finished class leaves for the tables, the page and the next run."""

    fingerprint: str  # of everything that the results depend on
    settings_sha256: str  # of settings and data_path, the same for a whole report
    result: ClassResult
    deployed: Thresholds | None  # from good training images; None if there were too few
    # the thresholds of the best F1 on the test images, and ROC curves, thinned to what a figure
    # shows; None where they are undefined
    oracle_image: float | None
    oracle_pixel: float | None
    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    images: Sequence[ImageResult]  # all test images
    figure_size: Sequence[int]  # width and height of a figure in pixels
    files: Sequence[str]  # that were written for the class: their paths below the run's folder
    # width and height, by such a path, of the template and of images aligned to it
    pictures: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def try_rate(self, target_fpr: float | None = None) -> list[float | None]:
        """The shares of good and of anomalous test images that reach the deployed threshold.

        It may be that at another rate of false alarms. A share is None if there is no such image.
        """
        threshold, shares = self.deployed.at(target_fpr).image, []
        for label in (0, 1):
            reached = [image.score >= threshold for image in self.images if image.label == label]
            shares.append(fmean(reached) if reached else None)
        return shares


def write_run(folder: Path, run: Run) -> None:
    """Write metrics.json."""
    content = {"format": FORMAT, **asdict(run)}
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_metrics(folder: Path, records: Sequence[ClassRecord]) -> None:
    """Write metrics.csv: a row per class, unrounded. Without any class there is no such file."""
    path, rows = folder / "metrics.csv", []
    for result in (record.result for record in records):
        row = {name: getattr(result, name) for name in ("class_name", "seed", "n_train", "n_test")}
        row |= {metric: result.metrics[metric] for metric in METRICS}
        rows.append(row | {f"seconds_{stage}": result.seconds[stage] for stage in STAGES})
    if rows:
        write_csv(path, rows[0], (row.values() for row in rows))
    else:
        path.unlink(missing_ok=True)


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
    """Write thresholds.csv: a row per class that has thresholds from good training images."""
    columns = ["class_name", "n_held_out", "target_fpr", "image_fpr"]
    columns += ["deployed_image", "deployed_pixel", "oracle_image", "oracle_pixel"]
    at_rates = ["", *(f"_at_{rate:g}" for rate in RATES)]
    columns += [f"test_{name}{at}" for at in at_rates for name in ("fpr", "tpr")]
    rows = []
    for record in records:
        good = record.deployed
        if good is not None:
            row = [record.result.class_name, len(good.good_scores), good.target_fpr, good.image_fpr]
            row += [good.image, good.pixel, record.oracle_image, record.oracle_pixel]
            shares = map(record.try_rate, (None, *RATES))
            rows.append([*row, *chain.from_iterable(shares)])
    write_csv(folder / "thresholds.csv", columns, rows)


def read_run(path: Path) -> Run:
    """The run that wrote a metrics.json; one of another format is refused."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; run main.py again"
        )
    return Run(content["settings"], [ClassResult(**result) for result in content["results"]])
