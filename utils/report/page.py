"""A run as a page to look at: index.html with its tables, ROC curves and figures.

The page is static and complete in itself: it loads the figures beside it and nothing else.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from utils.report.tables import Table
from utils.system.files import replacing

FILE_NAME = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
PANELS = ("image", "ground truth", "heat map", "predicted mask", "outline of that mask")
# by label (anomalous or not) and by what the threshold says of it
VERDICTS = {
    (True, True): "found",
    (False, False): "passed",
    (True, False): "missed",
    (False, True): "false alarm",
}
NUMBER = re.compile(r"[-+−–±]?\d|[-−–]?$")


class GalleryItem(NamedTuple):
    """A test image: its figure, relative to the page's folder, and what is known of it.

    anomalous is the label; flagged is the threshold's verdict, None without a threshold.
    """

    figure: Path
    name: str
    defect_type: str
    anomalous: bool
    score: float
    flagged: bool | None


class Gallery(NamedTuple):
    """The figures of a class; threshold_source is a sentence on where the threshold is from.

    panels names what a figure shows, from left to right.
    """

    class_name: str
    items: Sequence[GalleryItem]
    threshold: float | None
    threshold_source: str
    panels: Sequence[str] = PANELS


def write_page(
    folder: Path,
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    galleries: Sequence[Gallery],
    roc_figure: Path | None,
) -> None:
    """Write index.html; the figures it shows must be there already.

    Args:
        folder: that the page is written to.
        title: heading of the page.
        summary: lines below the title.
        tables: all of them, in this order.
        galleries: one per class; their items are shown by score, highest first.
        roc_figure: relative to folder.
    """
    sections = []
    if tables:
        sections.append(_section("results", "Results", "".join(map(_table, tables))))
    if roc_figure is not None:
        alt = "ROC curves of each class, of images on the left and of pixels on the right"
        roc = f'<div class="roc">{_picture(folder, roc_figure, alt)}</div>'
        sections.append(_section("roc", "ROC curves", roc))
    sections += [
        _section(_anchor(gallery), gallery.class_name, _gallery(folder, gallery))
        for gallery in galleries
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=_list('<ul class="summary">', map(escape, summary), "</ul>"),
        contents=_contents(tables, galleries, roc_figure),
        sections="\n".join(sections),
    )
    # a file name need not be valid text: what has no letter is shown as a question mark
    with replacing(folder / FILE_NAME) as path:
        path.write_text(page, encoding="utf-8", errors="replace")


def _verdict(item: GalleryItem) -> str:
    """Whether the threshold is right about the image; empty without a threshold."""
    if item.flagged is None:
        return ""
    return "right" if item.flagged == item.anomalous else "wrong"


def _contents(
    tables: Sequence[Table], galleries: Sequence[Gallery], roc_figure: Path | None
) -> str:
    links = []
    if tables:
        links.append('<a href="#results">Results</a>')
    if roc_figure is not None:
        links.append('<a href="#roc">ROC curves</a>')
    for gallery in galleries:
        text = _count(len(gallery.items), "image")
        if gallery.threshold is not None:
            text += f", {sum(_verdict(item) == 'wrong' for item in gallery.items)} wrong"
        links.append(
            f'<a href="#{_anchor(gallery)}">{escape(gallery.class_name)}</a> <small>{text}</small>'
        )
    ul = _list("<ul>", links, "</ul>")
    return f'<nav class="contents" id="contents" aria-label="Contents">{ul}</nav>' if ul else ""


def _section(anchor: str, heading: str, content: str) -> str:
    return f'<section id="{anchor}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>'


def _table(table: Table) -> str:
    """The table in a box that scrolls by itself; columns of numbers are set right."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    styles = [
        ' class="number"' if i and all(map(NUMBER.match, cells)) else ""
        for i, cells in enumerate(columns)
    ]
    head = "".join(
        f'<th scope="col"{style}>{escape(name)}</th>'
        for name, style in zip(table.columns, styles, strict=True)
    )
    rows = []
    for name, *cells in table.rows:
        data = "".join(
            f"<td{style}>{escape(cell)}</td>" for cell, style in zip(cells, styles[1:], strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{data}</tr>')
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        '<div class="table">\n'
        f'<div class="scroll" role="region" aria-label="{escape(table.title)}" tabindex="0">'
        f"<table>\n<caption>{escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{_lines(rows)}\n</tbody>\n</table></div>\n{notes}</div>\n"
    )


def _gallery(folder: Path, gallery: Gallery) -> str:
    """What the threshold is, how the scores lie, the filter, and the figures in their groups."""
    items = sorted(gallery.items, key=lambda item: item.score, reverse=True)
    parts = [_introduction(gallery)]
    if items:
        parts += [_strip(items, gallery.threshold), _filter(gallery)]
    groups = []
    # by score the flagged images come first, so that the groups keep the order
    for flagged, members in groupby(items, key=lambda item: item.flagged):
        figures = [_item(folder, item, gallery.panels) for item in members]
        heading = ""
        if flagged is not None:
            text = "Flagged as anomalous" if flagged else "Not flagged"
            heading = f'<h3>{text} <span class="count">{len(figures)}</span></h3>\n'
        groups.append(f'<div class="group">\n{heading}<ol>\n{_lines(figures)}\n</ol>\n</div>')
    parts.append(
        f'<div class="figures">\n{_lines(groups)}\n'
        '<p class="none" hidden>No figure fits both choices.</p>\n</div>'
    )
    return "\n".join(parts)


def _introduction(gallery: Gallery) -> str:
    text = _count(len(gallery.items), "image")
    source = gallery.threshold_source
    if gallery.threshold is not None:
        counts = Counter((item.anomalous, item.flagged) for item in gallery.items)
        found, passed, missed, alarms = (counts[case] for case in VERDICTS)
        text += (
            f": {found} found, {passed} passed, {missed} missed, {_count(alarms, 'false alarm')}"
        )
        source = f"Threshold {gallery.threshold:.2f}: {source}"
    return f'<p>{text}.</p>\n<p class="note">{escape(source)}</p>'


def _strip(items: Sequence[GalleryItem], threshold: float | None) -> str:
    """The scores of anomalous and of normal images as strokes on one scale."""
    values = [item.score for item in items] + ([] if threshold is None else [threshold])
    low, high = min(values), max(values)

    def stroke(value: float, style: str) -> str:
        x = 100 * (value - low) / (high - low) if high > low else 50
        return f'<line class="{style}" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>'

    lanes, spoken = [], []
    for label, anomalous in (("anomalous", True), ("normal", False)):
        lane = [item for item in items if item.anomalous == anomalous]
        strokes = "".join(stroke(item.score, _verdict(item)) for item in lane)
        if threshold is not None:
            strokes += stroke(threshold, "cut")
        lanes.append(f"<span>{label}</span><svg>{strokes}</svg>")
        if lane:
            spoken.append(f"{label} images from {lane[-1].score:.2f} to {lane[0].score:.2f}")
    if threshold is not None:
        spoken.append(f"threshold at {threshold:.2f}")
    ends = f'<span class="ends"><span>{low:.2f}</span><span>{high:.2f}</span></span>'
    return (
        f'<div class="strip" role="img" aria-label="Scores: {", ".join(spoken)}">'
        f"{''.join(lanes)}<span>score</span>{ends}</div>"
    )


def _filter(gallery: Gallery) -> str:
    """Hidden until the script, which it needs, shows it."""
    total = len(gallery.items)
    types = Counter(item.defect_type for item in gallery.items)
    choices = _choices("type", "Defect type", {"": total} | dict(sorted(types.items())))
    if gallery.threshold is not None:
        verdicts = Counter(map(_verdict, gallery.items))
        counts = {"": total, "right": verdicts["right"], "wrong": verdicts["wrong"]}
        choices += _choices("verdict", "Verdict", counts)
    name = escape(gallery.class_name)
    return (
        f'<form hidden autocomplete="off" aria-label="Filter {name}">\n{choices}'
        f'<p class="status"><span role="status">{name}: <span class="shown">{total}</span>'
        f' of {total} shown</span> <a href="#contents">Contents</a></p>\n</form>'
    )


def _choices(name: str, legend: str, counts: dict[str, int]) -> str:
    labels = [
        f'<label><input type="radio" name="{name}" value="{escape(value)}"'
        f"{'' if value else ' checked'}>{escape(value) or 'all'}"
        f' <span class="count">{count}</span></label>'
        for value, count in counts.items()
    ]
    return f"<fieldset><legend>{legend}</legend>\n{_lines(labels)}\n</fieldset>\n"


def _item(folder: Path, item: GalleryItem, panels: Sequence[str]) -> str:
    verdict = ""
    if item.flagged is not None:
        kind = _verdict(item)
        text = VERDICTS[item.anomalous, item.flagged]
        verdict = f'<span class="verdict {kind}">{kind}: {text}</span>'
    alt = f"{item.defect_type} {item.name}: {', '.join(panels)}"
    return (
        f'<li data-type="{escape(item.defect_type)}" data-verdict="{_verdict(item)}"><figure>'
        f'<figcaption><span class="score">{item.score:.2f}</span>'
        f" <span>{escape(item.defect_type)}</span>"
        f' <span class="name">{escape(item.name)}</span>'
        f" <span>{'anomalous' if item.anomalous else 'normal'}</span> {verdict}</figcaption>\n"
        f"{_picture(folder, item.figure, alt)}</figure></li>"
    )


def _picture(folder: Path, figure: Path, alt: str) -> str:
    """The figure in a box that scrolls by itself, linked to its full size."""
    assert not figure.is_absolute(), "the page would not survive being moved"
    with Image.open(folder / figure) as image:
        width, height = image.size
    link = quote(os.fsencode(figure.as_posix()))
    return (
        f'<a class="scroll" href="{link}"><img src="{link}" width="{width}" height="{height}"'
        f' loading="lazy" alt="{escape(alt)}"></a>'
    )


def _anchor(gallery: Gallery) -> str:
    return "class-" + quote(os.fsencode(gallery.class_name), safe="")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _list(start: str, texts: Iterable[str], end: str) -> str:
    items = [f"<li>{text}</li>" for text in texts]
    return f"{start}\n{_lines(items)}\n{end}" if items else ""


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(texts)
