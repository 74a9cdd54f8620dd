"""The page of predictions: index.html in the folder of predict, highest score first."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from utils.commands.prediction import Prediction, Predictor
from utils.commands.sources import OVERLAYS
from utils.regions import Region
from utils.system.files import printable

if TYPE_CHECKING:
    from utils.report.page import Shown

PAGE = "index.html"
MOST_REGIONS = 10  # of an image that the page lists


def write_predictions_page(predictor: Predictor, answers: Sequence[Prediction]) -> None:
    """Write the page of these answers."""
    from utils.report.page import Section, write_page  # jinja2 takes 0.1 s to import

    settings, ranked = predictor.settings, sorted(answers, key=_rank)
    notes = [predictor.caveat] if predictor.caveat else []
    images = [describe(answer, settings.output) for answer in ranked]
    write_page(
        settings.output / PAGE,
        f"Predictions of {predictor.detector.model.class_name}",
        summarise_model(predictor),
        [Section("Images", images, predictor.thresholds.image, notes=notes, side_by_side=True)],
    )


def _rank(answer: Prediction) -> float:
    """The images with the highest score come first, those that could not be scored last."""
    score = answer.row["score"]
    return float("inf") if score is None else -score


def summarise_model(predictor: Predictor) -> list[str]:
    """Lines on the model and on the thresholds that are used."""
    from utils.report.page import describe_learnt

    model, settings = predictor.detector.model, predictor.settings
    thresholds, preprocessing = predictor.thresholds, model.preprocessing
    of_good = "from the model's good images, at a rate of"
    by_rate = f"{of_good} false alarms of {thresholds.target_fpr:g}"
    by_pixels = f"{of_good} pixels of {thresholds.pixel_fpr:g}"
    return [
        f"Model: {printable(settings.model)}, {model.arch}, fitted to {model.n_train} good images",
        f"Images: resize {preprocessing.resize or 'none'}, crop {preprocessing.crop or 'none'}",
        *describe_learnt(model.describe()),
        f"Threshold: {thresholds.image:g}, {by_rate if settings.threshold is None else 'given'}",
        f"Regions, in anomalous images: pixels from {thresholds.pixel:g} on, "
        f"{by_pixels if settings.pixel_threshold is None else 'given'}, where one reaches "
        f"{thresholds.peak:g}",
    ]


def describe(answer: Prediction, folder: Path) -> "Shown":
    """An image as the page shows it."""
    from utils.report.page import Picture, Shown

    row, name = answer.row, printable(answer.source.path)
    picture = None
    if answer.overlay_size:
        path = f"{OVERLAYS}/{answer.source.name}.jpg"
        text = f"{name} under the colours of its anomaly map, regions outlined"
        picture = Picture(path, answer.overlay_size, text)
    below = [] if row["error"] else [f"{row['good_below']:.0%} of good images score lower"]
    if row["angle"] is not None:
        below.append(
            f"turned by {row['angle']:.1f}°, {row['row_shift']:.1f} pixels down and "
            f"{row['column_shift']:.1f} to the right, correlation {row['correlation']:.2f}"
        )
    return Shown(
        name=name,
        label="image",
        score=row["score"],
        picture=picture,
        details=[row["error"]] if row["error"] else below,
        link=link(answer.source.path, folder),
        lines=list_regions(answer.regions),
    )


def link(path: Path, folder: Path) -> str:
    """An image as a page in the folder refers to it."""
    return quote(os.fsencode(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))))


def list_regions(regions: Sequence[Region]) -> Iterable[str]:
    """A line for each of the first regions, which have the highest scores."""
    lines = [
        f"region {number}: score {region.score:.2f}, {region.width} x {region.height} pixels at "
        f"({region.left}, {region.top}), area {region.area}"
        for number, region in enumerate(regions[:MOST_REGIONS], start=1)
    ]
    left = len(regions) - MOST_REGIONS
    return [*lines, f"{left} more are in regions.csv"] if left > 0 else lines
