"""Pages of scored images, rendered with jinja2: index.html of a run or of predictions.

A page is static and loads nothing but the pictures beside it.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datasets.mvtec import UNLABELLED
from utils.report.results import ClassRecord, ImageResult
from utils.report.tables import Table
from utils.system.files import replacing

# what an image is if it reaches the threshold and if it does not, by what is known about it
VERDICTS = {
    "anomalous": ("right: found", "wrong: missed"),
    "normal": ("wrong: false alarm", "right: passed"),
    "image": ("anomalous", "good"),
}
UNSCORED = "could not be scored"
# of the pictures of an alignment
CAPTIONS = (
    "The part as the model sees it: the median of these training images once aligned",
    "Training images as they are, and below as they are aligned",
)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Picture(NamedTuple):
    """A picture: its path relative to the page, width and height in pixels, and what it shows."""

    path: str
    size: Sequence[int]
    text: str

    @property
    def link(self) -> str:
        """The path as a page refers to it."""
        return quote(os.fsencode(self.path))


class Shown(NamedTuple):
    """An image as a page shows it."""

    name: str
    label: str  # a key of VERDICTS
    score: float | None  # None if it could not be scored
    picture: Picture | None
    defect_type: str = ""
    details: Sequence[str] = ()  # beside the name
    link: str = ""  # leads to the image file
    lines: Sequence[str] = ()  # below the name


@dataclass(frozen=True)
class Section:
    """Images below a strip of their scores, on which a threshold can be moved."""

    name: str  # heading
    images: Sequence[Shown]  # highest score first, those that could not be scored last
    threshold: float | None  # where the mark on the strip starts
    oracle: float | None = None  # another threshold that is marked
    notes: Sequence[str] = ()  # sentences on the thresholds, and on what was learnt
    pictures: Sequence[Picture] = ()  # of what was learnt
    side_by_side: bool = False  # whether the images stand beside each other, if there is room

    @property
    def anchor(self) -> str:
        """The id of the section."""
        return "class-" + quote(os.fsencode(self.name), safe="")

    @property
    def exact(self) -> str:
        """The threshold in as few digits as give the same float32."""
        return str(np.float32(self.threshold))

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many images have each verdict of the threshold; empty without one."""
        return {} if self.threshold is None else count_verdicts(self.images, self.threshold)

    @property
    def kinds(self) -> list[str]:
        """The words with which these verdicts begin, as "right"."""
        return list(dict.fromkeys(verdict.partition(":")[0] for verdict in self.counts))

    @property
    def groups(self) -> list[tuple[str, Sequence[Shown]]]:
        """The images that are flagged, and the others; all together without a threshold."""
        if self.threshold is None:
            return [("", self.images)]
        n_flagged = sum(self.threshold <= i.score for i in self.images if i.score is not None)
        named = ("Flagged as anomalous", "Not flagged")
        return list(zip(named, (self.images[:n_flagged], self.images[n_flagged:]), strict=True))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The scores at the ends of the strip."""
        values = [*(image.score for image in self.images), self.threshold, self.oracle]
        known = [value for value in values if value is not None]
        low, high = min(known), max(known)
        return (low, high) if low < high else (low - 1, high + 1)

    def position(self, score: float) -> float:
        """Where a score lies on the strip, in percent of its width."""
        low, high = self.ends
        return 100 * (score - low) / (high - low)


def judge(label: str, score: float | None, threshold: float | None) -> str:
    """The verdict of a threshold on an image; "" without a threshold."""
    if score is None:
        return UNSCORED
    return "" if threshold is None else VERDICTS[label][score < threshold]


def count_verdicts(images: Sequence[Shown], threshold: float) -> dict[str, int]:
    """How many images have each verdict that images with such labels can have."""
    found = Counter(judge(image.label, image.score, threshold) for image in images)
    labels = {image.label for image in images}
    possible = [verdict for label in VERDICTS if label in labels for verdict in VERDICTS[label]]
    return {verdict: found[verdict] for verdict in possible} | found


TEMPLATES.globals |= {"verdicts": VERDICTS, "judge": judge}


def write_page(
    path: Path,
    title: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    tables: Sequence[Table] = (),
    roc: Picture | None = None,
) -> None:
    """Write a page; that of a run has contents, tables and ROC curves."""
    template = TEMPLATES.get_template("page.html")
    text = template.render(title=title, summary=summary, sections=sections, tables=tables, roc=roc)
    # file names need not be valid text; "?" takes the place of what is not
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def describe_class(record: ClassRecord) -> Section:
    """The section of a class; without a deployed threshold it starts with the oracle."""
    deployed, oracle = record.deployed, record.oracle_image
    threshold = oracle if deployed is None else deployed.image
    images = [
        _describe_image(record, image, threshold)
        for image in sorted(record.images, key=lambda image: -image.score)
        if image.figure is not None and image.label != UNLABELLED
    ]
    of_oracle = "the best image F1 on these test images, not a threshold to deploy"
    if threshold is None:
        needed = "three training images, or both normal and anomalous test images"
        notes = [f"No threshold: it needs {needed}"]
    elif deployed is None:
        notes, oracle = [f"Threshold {oracle:.2f}: the oracle, {of_oracle}"], None
    else:
        rate = f"at a rate of false alarms of {deployed.image_fpr:.2g}"
        notes = [f"Threshold {deployed.image:.2f}: deployed, from good training images, {rate}"]
        if oracle is not None:
            notes.append(f"Oracle {oracle:.2f}, {of_oracle}: {_describe_counts(images, oracle)}")
    notes += describe_learnt(record.result.learnt)
    drawn = zip(record.pictures.items(), CAPTIONS, strict=False)
    pictures = [Picture(*picture, caption) for picture, caption in drawn]
    return Section(record.result.class_name, images, threshold, oracle, notes, pictures)


def describe_learnt(learnt: Mapping[str, Any] | None) -> list[str]:
    """Lines on what a model learnt beside the Gaussians, given as PaDiM.describe returns it."""
    lines = []
    if learnt and (alignment := learnt["alignment"]):
        start, extent, *sides = alignment["range"].values()
        top, bottom, left, right = (f"{side:.1f}" for side in sides)
        arc = f"from {start:.1f}° to {start + extent:.1f}° counter-clockwise"
        lines.append(
            f"Alignment: parts are sought {arc if extent < 360 else 'at all angles'}, moved by "
            f"{top} to {bottom} pixels down and {left} to {right} to the right; training images "
            f"correlate {alignment['lowest']:.2f} or more with the template"
        )
    if learnt and learnt["shrinkage"] is not None:
        lines.append(
            f"Shrinkage {learnt['shrinkage']:.3g} of the mean variance: {learnt['eps']:.3g} is "
            "added to the diagonals of the covariances"
        )
    return lines


def _describe_counts(images: Sequence[Shown], threshold: float) -> str:
    counts = count_verdicts(images, threshold)
    return ", ".join(f"{verdict.split(': ')[-1]} {n}" for verdict, n in counts.items())


def _describe_image(record: ClassRecord, image: ImageResult, threshold: float | None) -> Shown:
    label = "anomalous" if image.label else "normal"
    found, best = (judge(label, image.score, t) for t in (threshold, record.oracle_image))
    text = f"{image.defect_type} {image.image} and its heat map"
    return Shown(
        name=image.image,
        label=label,
        score=image.score,
        picture=Picture(image.figure, record.figure_size, text),
        defect_type=image.defect_type,
        details=[label] if best in ("", found) else [label, f"oracle: {best.split(': ')[1]}"],
    )
