"""What a run leaves in numbers: metrics.csv and metrics.json, written and read again."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from utils.system.files import replacing

FORMAT = 1
# of the columns and of the tables, in their order
METRICS = {
    "image_auroc": "image ROCAUC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel ROCAUC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1",
    "aupro": "AUPRO",
}
STAGES = ("fit", "score", "metrics", "figures")


@dataclass(frozen=True)
class ClassResult:
    """One class with one draw of channels.

    Attributes:
        seed: of the draw.
        metrics: by the keys of METRICS; None where one is not defined, and notes says why.
        seconds: by STAGES. Those of fit and score include loading the images and running the
            network, which is done once for all seeds and counted with the first.
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
    """The results of one folder and what made them.

    settings are those that describe_run gives.
    """

    settings: Mapping[str, Any]
    results: Sequence[ClassResult]


def write_run(folder: Path, run: Run) -> None:
    """Write metrics.csv, a row per class and seed, unrounded, and metrics.json, which has all.

    They replace what was there.
    """
    rows = [_csv_row(result) for result in run.results]
    with _writing_csv(folder / "metrics.csv") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    content = {"format": FORMAT, **asdict(run)}
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


class ClassThresholds(NamedTuple):
    """Thresholds of a class from good training images, beside the best ones on the test images.

    image_fpr is the rate of false alarms that n_held_out images support; test_fpr and test_tpr
    are the rates of good and of anomalous test images that reach image_threshold. None where the
    test images do not tell.
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


class ImageScore(NamedTuple):
    """A test image's score; label as in datasets.mvtec.Sample."""

    class_name: str
    image: str
    defect_type: str
    label: int
    score: float


def write_scores(folder: Path, scores: Sequence[ImageScore]) -> None:
    """Write scores.csv, a row per test image, raw and unrounded."""
    _write_rows(folder / "scores.csv", ImageScore._fields, scores)


def write_thresholds(folder: Path, thresholds: Sequence[ClassThresholds]) -> None:
    """Write thresholds.csv, a row per class that has them."""
    _write_rows(folder / "thresholds.csv", ClassThresholds._fields, thresholds)


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with _writing_csv(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@contextmanager
def _writing_csv(path: Path) -> Iterator[TextIO]:
    # a file name need not be valid text: its bytes are written as they are
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


def read_run(path: Path) -> Run:
    """Read a metrics.json.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged or of another format; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if found == FORMAT:
            results = [ClassResult(**result) for result in content["results"]]
            check_results(results)
            return Run(content["settings"], results)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    raise ValueError(f"{path} has format {found}, this version reads {FORMAT}; run main.py again")


def damaged(path: Path, error: Exception) -> ValueError:
    """What to raise for a metrics.json whose content has led to error."""
    return ValueError(
        f"{path} is damaged or no results of a run ({type(error).__name__}: {str(error)[:120]}); "
        "run main.py again"
    )


def check_results(results: Sequence[ClassResult]) -> None:
    """Refuse results that no run has written.

    Raises:
        TypeError, ValueError: if there are none, or a metric is missing or not in [0, 1].
    """
    if not results:
        raise ValueError("no class")
    for result in results:
        notes = isinstance(result.notes, list) and all(isinstance(n, str) for n in result.notes)
        if not (isinstance(result.class_name, str) and type(result.seed) is int and notes):
            raise TypeError("a class name, a seed or a note")
        if set(result.metrics) != set(METRICS) or set(result.seconds) != set(STAGES):
            raise ValueError(f"metrics or seconds of {result.class_name}")
        if not all(value is None or 0 <= value <= 1 for value in result.metrics.values()):
            raise ValueError(f"a metric of {result.class_name} is not in [0, 1]")


def _csv_row(result: ClassResult) -> dict[str, Any]:
    return {
        "class_name": result.class_name,
        "seed": result.seed,
        "n_train": result.n_train,
        "n_test": result.n_test,
        **{metric: result.metrics[metric] for metric in METRICS},
        **{f"seconds_{stage}": result.seconds[stage] for stage in STAGES},
    }
