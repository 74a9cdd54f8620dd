import re
from dataclasses import replace
from html.parser import HTMLParser
from os import fsdecode, fsencode
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import pytest

from tests.records import FIGURE_SIZE, make_image, make_record
from utils.report.page import Picture, Section, Shown, describe_class, write_page
from utils.report.tables import Table

HOSTILE = "50 %20 #1 & \"ü\" 'q' ?<script>alert(1)<{{ 7 * 7 }}"
ROC = Picture("roc_curve.png", (200, 100), "ROC curves")
TABLE = Table(
    "AUROC",
    ("class", "image", "pixel"),
    [("bolt", "0.9", "0.75"), ("mean of 2", "–", "1.0 ± 0.1")],
    ("rounded", "unrounded in metrics.csv"),
)


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]
    text: list[str]


class Page(HTMLParser):
    """The elements of a page in order; an element's text includes that of its descendants."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.source = (folder / "index.html").read_text(encoding="utf-8")
        self.elements, self.open = [], []
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append(Element(tag, attributes, []))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text.append(data)

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def texts(self, tag, **attributes):
        return [" ".join("".join(element.text).split()) for element in self.all(tag, **attributes)]

    def values(self, tag, attribute):
        return [e.attributes[attribute] for e in self.all(tag) if attribute in e.attributes]


@pytest.fixture
def write(tmp_path):
    """A function that writes a page of these records and reads it."""

    def run(*records, title="Run", summary=(), tables=(TABLE,)):
        sections = list(map(describe_class, records))
        write_page(tmp_path / "index.html", title, summary, sections, tables, ROC)
        return Page(tmp_path)

    return run


def test_images_are_sorted_by_score_and_have_verdicts_that_are_counted(write):
    images = [
        make_image("a.png", "dent", 8.0),
        make_image("b.png", "good", 1.0),
        make_image("c.png", "hole", 9.0),
        make_image("d.png", "dent", 4.0),
        make_image("e.png", "good", 5.0),  # on the threshold
        make_image("f.png", "good", 3.0),
    ]
    page = write(make_record(images=images, oracle=3.0))
    assert page.texts("h3") == ["Flagged as anomalous 3", "Not flagged 3"]
    assert page.texts("figcaption") == [
        "9.00 hole c.png anomalous right: found",
        "8.00 dent a.png anomalous right: found",
        "5.00 good e.png normal wrong: false alarm",
        "4.00 dent d.png anomalous oracle: found wrong: missed",
        "3.00 good f.png normal oracle: false alarm right: passed",
        "1.00 good b.png normal right: passed",
    ]
    assert len(page.all("li", data_verdict="wrong", data_type="dent")) == 1
    assert "6 images: found 2, missed 1, false alarm 1, passed 2." in page.texts("p")
    assert page.texts("small") == ["6 images, 2 wrong"]
    assert [input.attributes["value"] for input in page.all("input", type="radio")] == [
        *("", "dent", "good", "hole"),
        *("", "right", "wrong"),
    ]
    assert page.texts("p", class_="note")[2:] == [
        "Threshold 5.00: deployed, from good training images, at a rate of false alarms of 0.1",
        "Oracle 3.00, the best image F1 on these test images, not a threshold to deploy: found 3, "
        "missed 0, false alarm 2, passed 1",
    ]
    # on the scale from 1 to 9; both thresholds, 5 and 3, cross both lanes
    cuts = ["50.00%", "25.00%"]
    expected = ["100.00%", "87.50%", "37.50%", *cuts, "50.00%", "25.00%", "0.00%", *cuts]
    assert page.values("line", "x1") == expected
    assert [line.attributes["class"] for line in page.all("line")[3:5]] == ["cut", "cut oracle"]
    lanes = ["3 scores from 4.00 to 9.00", "3 scores from 1.00 to 5.00"]
    assert page.values("svg", "aria-label") == lanes
    (mark,) = page.all("input", type="range", hidden="")  # until the script shows it
    assert [mark.attributes[name] for name in ("min", "max", "value")] == ["1.0", "9.0", "5.0"]


@pytest.mark.parametrize(
    ("oracle", "verdicts", "note"),
    [
        (7.0, (" right: found", " right: passed"), "Threshold 7.00: the oracle, the best image F1"),
        (None, ("", ""), "No threshold: it needs three training images, or both normal and"),
    ],
)
def test_without_a_deployed_threshold_the_verdict_is_of_the_oracle(write, oracle, verdicts, note):
    images = [make_image("a.png", "dent", 8.0), make_image("b.png", "good", 2.0)]
    page = write(make_record(images=images, oracle=oracle, deployed=None))
    captions = ["8.00 dent a.png anomalous", "2.00 good b.png normal"]
    assert page.texts("figcaption") == [a + b for a, b in zip(captions, verdicts, strict=True)]
    assert page.texts("p", class_="note")[-1].startswith(note)
    assert bool(page.all("h3")) == bool(page.all("line", class_="cut")) == (oracle is not None)
    assert ("verdict" in page.values("input", "name")) == (oracle is not None)
    assert not page.all("line", class_="cut oracle")


def test_images_without_a_figure_or_a_label_are_left_out(write):
    images = [
        make_image("a.png", "dent", 8.0),
        make_image("b.png", "dent", 9.0, figure=None),
        make_image("c.png", "unlabelled", 9.0, label=-1),
    ]
    page = write(make_record(images=images))
    assert page.texts("span", class_="name") == ["a.png"]


def test_threshold_has_the_digits_of_its_float32_and_equal_scores_lie_in_the_middle():
    section = Section("new", [Shown("a", "image", 21.0056209564209, None)], 21.0056209564209)
    assert section.exact == "21.005621"
    assert section.position(21.0056209564209) == 50


def test_what_was_learnt_is_described(write):
    found = {"start": -3, "extent": 10.5, "top": -2, "bottom": 1.25, "left": 0, "right": 4}
    alignment = {"before": 0.43, "after": 0.96, "lowest": 0.5, "range": found}
    learnt = {"eps": 0.0123, "shrinkage": 0.056789, "alignment": alignment}
    record = make_record(pictures={"templates/bolt.png": [96, 90]})
    page = write(replace(record, result=replace(record.result, learnt=learnt)))
    assert page.texts("p", class_="note")[3:] == [
        "Alignment: parts are sought from -3.0° to 7.5° counter-clockwise, moved by -2.0 to 1.2 "
        "pixels down and 0.0 to 4.0 to the right; training images correlate 0.50 or more with the "
        "template",
        "Shrinkage 0.0568 of the mean variance: 0.0123 is added to the diagonals of the "
        "covariances",
        "The part as the model sees it: the median of these training images once aligned",
    ]


def test_hostile_texts_are_shown_as_they_are_and_links_lead_where_they_should(write):
    # the second name is not valid text
    images = [make_image(HOSTILE, HOSTILE), make_image(fsdecode(b"caf\xe9.png"), score=0.5)]
    page = write(
        make_record(HOSTILE, images),
        make_record("büg", images),
        title=HOSTILE,
        summary=[HOSTILE],
        tables=[Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], [HOSTILE])],
    )
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    for tag in ("title", "h1", "caption", "th", "td"):
        assert {*page.texts(tag)} == {HOSTILE}, tag
    for tag in ("h2", "li", "label", "p"):
        assert HOSTILE in page.texts(tag), tag
    assert page.texts("span", class_="name")[:2] == [HOSTILE, "caf?.png"]
    assert page.values("li", "data-type")[0] == HOSTILE
    assert HOSTILE in page.values("input", "value")
    assert f"Threshold of {HOSTILE}" in page.values("form", "aria-label")
    links = [a.attributes["href"] for a in page.all("a", class_="scroll")]
    assert links == page.values("img", "src")
    assert all(re.fullmatch(r"[\w%./~-]+", link, re.ASCII) for link in links)
    figures = ["roc_curve.png", *(image.figure for image in images * 2)]
    assert list(map(unquote_to_bytes, links)) == list(map(fsencode, figures))
    # contents
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    anchors = [link.removeprefix("#") for link in page.values("a", "href") if link[0] == "#"]
    assert len(anchors) == 7  # skip link, results, curves, two classes, back from each class
    assert {*anchors} <= {*ids}


def test_page_loads_nothing_but_pictures_with_a_description_and_a_size(write):
    page = write(make_record(images=[make_image("a.png", "dent")]))
    roc, figure = (image.attributes for image in page.all("img"))
    assert (roc["alt"], figure["alt"]) == ("ROC curves", "dent a.png and its heat map")
    assert (figure["width"], figure["height"]) == tuple(map(str, FIGURE_SIZE))
    assert roc["loading"] == figure["loading"] == "lazy"
    for word in ("http", "//cdn", "@import", "url("):
        assert word not in page.source
    assert not [e for e in page.elements if e.tag in ("iframe", "object", "base")]
    assert page.values("link", "href") == ["data:,"]
    assert not page.values("script", "src")


def test_table_has_headers_caption_and_notes(write):
    page = write()
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.texts("caption") == ["AUROC"]
    assert page.texts("th", scope="col") == ["class", "image", "pixel"]
    assert page.texts("th", scope="row") == ["bolt", "mean of 2"]
    assert page.texts("td") == ["0.9", "0.75", "–", "1.0 ± 0.1"]
    assert page.texts("p", class_="note") == ["rounded", "unrounded in metrics.csv"]
