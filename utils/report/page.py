"""The page of a run: index.html with its tables, ROC curves and figures.

It is static, and loads nothing but the figures beside it. Its template is page.html.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datasets.mvtec import UNLABELLED
from utils.report.results import ClassRecord, ImageResult
from utils.report.tables import Table
from utils.system.files import replacing

FILE_NAME = "index.html"
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
NUMBER = re.compile(r"[-+−]?\d|[-−–]?$")  # a cell that is aligned as a number; it may be a dash
# whether a threshold is right about an image, in short and in words, by label and decision
VERDICTS = {
    (True, True): ("right", "found"),
    (False, False): ("right", "passed"),
    (True, False): ("wrong", "missed"),
    (False, True): ("wrong", "false alarm"),
}
NO_VERDICT = ("", "")


class Picture(NamedTuple):
    """A figure: its path relative to the page, with slashes, and its width and height in pixels."""

    path: str
    size: tuple[int, int]


class ShownImage(NamedTuple):
    """A test image as the page shows it.

    It is flagged by the threshold of the class, and best_flagged by the one with the best F1 on the
    test images; each is None if there is no such threshold.
    """

    link: str
    name: str
    defect_type: str
    anomalous: bool
    score: float
    flagged: bool | None
    best_flagged: bool | None

    @property
    def verdict(self) -> tuple[str, str]:
        """One of VERDICTS, or NO_VERDICT without a threshold."""
        return VERDICTS.get((self.anomalous, self.flagged), NO_VERDICT)

    @property
    def best_verdict(self) -> tuple[str, str]:
        """The same of the threshold with the best F1."""
        return VERDICTS.get((self.anomalous, self.best_flagged), NO_VERDICT)


def write_page(
    folder: Path,
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    records: Sequence[ClassRecord],
    roc_figure: Picture | None,
) -> None:
    """Write index.html.

    Args:
        folder: of the run.
        title: heading of the page.
        summary: lines below the title.
        tables: shown in this order.
        records: of the finished classes; the page shows their labelled images that have a figure,
            and leaves out a class without any.
        roc_figure: the ROC curves of all classes.
    """
    page = TEMPLATES.get_template("page.html").render(
        title=title,
        summary=summary,
        tables=[(table, _find_number_columns(table)) for table in tables],
        roc=roc_figure,
        classes=[_describe_class(record) for record in records if _shown_images(record)],
    )
    # file names need not be valid text; "?" takes the place of what is not
    with replacing(folder / FILE_NAME) as path:
        path.write_text(page, encoding="utf-8", errors="replace")


def _find_number_columns(table: Table) -> list[bool]:
    """Whether each column but the first holds numbers alone."""
    columns = range(1, len(table.columns))
    return [False, *(all(NUMBER.match(row[i]) for row in table.rows) for i in columns)]


def _shown_images(record: ClassRecord) -> list[ImageResult]:
    return [i for i in record.images if i.figure is not None and i.label != UNLABELLED]


def _describe_class(record: ClassRecord) -> dict[str, Any]:
    """What the template says about a class.

    Its threshold is the one from good training images; without that, the best one on the test
    images.
    """
    good, best = record.thresholds, record.image_threshold
    threshold = best if good is None else good.image_threshold
    images = [_describe_image(image, threshold, best) for image in _shown_images(record)]
    images.sort(key=lambda image: image.score, reverse=True)
    return {
        "name": record.result.class_name,
        "anchor": "class-" + quote(os.fsencode(record.result.class_name), safe=""),
        "threshold": threshold,
        "image_fpr": None if good is None else good.image_fpr,
        "best": best,
        "images": images,
        # in the order of their scores the flagged images come first
        "groups": [(flagged, list(group)) for flagged, group in groupby(images, _is_flagged)],
        "types": sorted(Counter(image.defect_type for image in images).items()),
        "kinds": Counter(kind for kind, _ in (image.verdict for image in images)),
        "outcomes": Counter(text for _, text in (image.verdict for image in images)),
        "best_outcomes": Counter(text for _, text in (image.best_verdict for image in images)),
        "strip": _describe_strip(images, threshold, best),
        "panels": ", ".join(record.panels),
        "figure_size": record.figure_size,
    }


def _describe_image(image: ImageResult, threshold: float | None, best: float | None) -> ShownImage:
    return ShownImage(
        link=quote(os.fsencode(image.figure)),
        name=image.image,
        defect_type=image.defect_type,
        anomalous=bool(image.label),
        score=image.score,
        flagged=None if threshold is None else image.score >= threshold,
        best_flagged=None if best is None else image.score >= best,
    )


def _is_flagged(image: ShownImage) -> bool | None:
    return image.flagged


def _describe_strip(
    images: Sequence[ShownImage], threshold: float | None, best: float | None
) -> dict[str, Any]:
    """The scores as strokes on one scale, a lane for anomalous and one for normal images."""
    marked = {"threshold": threshold, "best F1": best if best != threshold else None}
    marks = {name: value for name, value in marked.items() if value is not None}
    values = [*(image.score for image in images), *marks.values()]
    low, high = min(values), max(values)

    def position(value: float) -> float:
        """In percent of the width."""
        return 100 * (value - low) / (high - low) if high > low else 50

    lanes, texts = [], []
    for label, anomalous in (("anomalous", True), ("normal", False)):
        lane = [image for image in images if image.anomalous == anomalous]
        lanes.append((label, [(image.verdict[0], position(image.score)) for image in lane]))
        if lane:
            texts.append(f"{label} images from {lane[-1].score:.2f} to {lane[0].score:.2f}")
    texts += [f"{name} at {value:.2f}" for name, value in marks.items()]
    return {
        "low": low,
        "high": high,
        "lanes": lanes,
        "cuts": [position(value) for value in marks.values()],
        "text": ", ".join(texts),
    }
