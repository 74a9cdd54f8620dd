import re
from html.parser import HTMLParser
from os import fsdecode, fsencode
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import pytest
from PIL import Image

from utils.report.page import PANELS, Gallery, GalleryItem, write_page
from utils.report.tables import Table

HOSTILE = "50 %20 #1 & \"ü\" 'q' ?<script>alert(1)<"
SIZE = (128, 29)


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]
    text: list[str]


class Elements(HTMLParser):
    """All elements in order; the text of each is that of its descendants too."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.all.append(Element(tag, {name: value or "" for name, value in attrs}, []))
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(self.all[-1])

    def handle_startendtag(self, tag, attrs):
        self.all.append(Element(tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text.append(data)


class Page:
    def __init__(self, folder: Path) -> None:
        self.source = (folder / "index.html").read_text(encoding="utf-8")
        self.elements = Elements(self.source)
        assert not self.elements.open

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements.all
            if element.tag == tag and wanted.items() <= element.attributes.items()
        ]

    def texts(self, tag, **attributes):
        return [" ".join("".join(element.text).split()) for element in self.all(tag, **attributes)]


@pytest.fixture
def item(tmp_path):
    """Make an item and its figure."""

    def make(name, defect_type="good", score=1.0, flagged=False, anomalous=None):
        figure = Path("figures", f"{defect_type}_{name}".replace("/", "_"))
        (tmp_path / "figures").mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / figure, "PNG")
        anomalous = defect_type != "good" if anomalous is None else anomalous
        return GalleryItem(figure, name, defect_type, anomalous, score, flagged)

    return make


@pytest.fixture
def write(tmp_path):
    """Write a page of these galleries and read it."""

    def run(*galleries, title="Run", summary=(), tables=(), roc_figure=None):
        write_page(tmp_path, title, summary, tables, galleries, roc_figure)
        return Page(tmp_path)

    return run


def gallery(*items, class_name="bolt", threshold=5.0, source="a source"):
    return Gallery(class_name, items, threshold, source)


def test_items_are_sorted_by_score_highest_first(item, write):
    scores = {"a.png": 3.0, "b.png": 11.5, "c.png": 7.25}
    items = [item(name, "dent", score, score >= 5) for name, score in scores.items()]
    page = write(gallery(*items))
    assert page.texts("span", class_="score") == ["11.50", "7.25", "3.00"]
    assert page.texts("span", class_="name") == ["b.png", "c.png", "a.png"]
    assert page.texts("h3") == ["Flagged as anomalous 2", "Not flagged 1"]


@pytest.mark.parametrize(
    ("defect_type", "flagged", "kind", "text"),
    [
        ("dent", True, "right", "right: found"),
        ("good", False, "right", "right: passed"),
        ("dent", False, "wrong", "wrong: missed"),
        ("good", True, "wrong", "wrong: false alarm"),
    ],
)
def test_verdict_on_an_image(item, write, defect_type, flagged, kind, text):
    page = write(gallery(item("a.png", defect_type, 6.0, flagged)))
    assert page.texts("span", class_=f"verdict {kind}") == [text]
    assert len(page.all("li", **{"data-verdict": kind, "data-type": defect_type})) == 1
    assert ("anomalous" if defect_type == "dent" else "normal") in page.texts("figcaption")[0]


def test_without_a_threshold_there_is_no_verdict(item, write):
    items = [item("a.png", "dent", 8.0, None), item("b.png", "good", 2.0, None)]
    page = write(gallery(*items, threshold=None, source="no image is marked"))
    assert page.texts("p", class_="note") == ["no image is marked"]
    assert len(page.all("li", **{"data-verdict": ""})) == 2
    assert page.all("input", name="type")
    assert not page.all("input", name="verdict")
    assert not page.all("h3")
    assert page.texts("figcaption") == ["8.00 dent a.png anomalous", "2.00 good b.png normal"]


def test_counts_of_a_class(item, write):
    items = [
        item("a.png", "dent", 9.0, True),
        item("b.png", "hole", 8.0, True),
        item("c.png", "good", 7.0, True),
        item("d.png", "dent", 3.0, False),
        item("e.png", "good", 2.0, False),
    ]
    page = write(gallery(*items, source="from elsewhere"))
    assert "5 images: 2 found, 1 passed, 1 missed, 1 false alarm." in page.texts("p")
    assert page.texts("p", class_="note") == ["Threshold 5.00: from elsewhere"]
    assert page.texts("small") == ["5 images, 2 wrong"]
    assert page.texts("label") == [
        *("all 5", "dent 2", "good 2", "hole 1"),
        *("all 5", "right 3", "wrong 2"),
    ]


def test_scores_are_drawn_on_one_scale(item, write):
    items = [item("a.png", "dent", 9.0, True), item("b.png", "good", 1.0, False)]
    page = write(gallery(*items, threshold=3.0))
    strokes = [(line.attributes["class"], line.attributes["x1"]) for line in page.all("line")]
    # 3 is a quarter of the way from 1 to 9; the threshold crosses both lanes
    assert strokes == [
        *(("right", "100.00%"), ("cut", "25.00%")),
        *(("right", "0.00%"), ("cut", "25.00%")),
    ]
    assert page.all("div", class_="strip")[0].attributes["aria-label"] == (
        "Scores: anomalous images from 9.00 to 9.00, normal images from 1.00 to 1.00, "
        "threshold at 3.00"
    )


def test_equal_scores_are_drawn_in_the_middle(item, write):
    page = write(gallery(item("a.png", "dent", 4.0, None), threshold=None))
    assert [line.attributes["x1"] for line in page.all("line")] == ["50.00%"]


def test_hostile_texts_are_shown_as_they_are(item, write):
    page = write(
        gallery(item(HOSTILE, HOSTILE), class_name=HOSTILE, source=HOSTILE),
        title=HOSTILE,
        summary=[HOSTILE],
        tables=[Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], [HOSTILE])],
    )
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    for tag in ("title", "h1", "caption", "tbody", "td", "legend", "figcaption", "label"):
        texts = page.texts(tag)
        assert texts
        if tag not in ("legend", "label"):
            assert all(HOSTILE in text for text in texts), tag
    assert HOSTILE in page.texts("h2")
    assert f"{HOSTILE} 1" in page.texts("label")
    assert page.texts("p", class_="note") == [HOSTILE, f"Threshold 5.00: {HOSTILE}"]
    assert [li.attributes["data-type"] for li in page.all("li") if li.attributes] == [HOSTILE]
    assert HOSTILE in [radio.attributes["value"] for radio in page.all("input")]
    assert page.all("form")[0].attributes["aria-label"] == f"Filter {HOSTILE}"


def test_links_and_images_are_quoted_and_lead_to_the_files(item, write, tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "roc_curve.png")
    items = [item(f"{i} {HOSTILE}.png", "dent: a") for i in range(2)]
    page = write(gallery(*items), roc_figure=Path("roc_curve.png"))
    links = [a.attributes["href"] for a in page.all("a", class_="scroll")]
    assert links == [image.attributes["src"] for image in page.all("img")]
    assert len(links) == 3
    for link in links:
        assert re.fullmatch(r"[\w%./~-]+", link, re.ASCII)
        assert (tmp_path / unquote(link)).is_file()


def test_contents_lead_to_the_sections(item, write):
    galleries = [gallery(item("a.png"), class_name=name) for name in ("bolt", HOSTILE, "büg")]
    page = write(*galleries, tables=[Table("AUROC", ["class"], [["bolt"]])])
    ids = [e.attributes["id"] for e in page.elements.all if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    anchors = [a.attributes["href"] for a in page.all("a") if a.attributes["href"].startswith("#")]
    assert len(anchors) == 8  # skip link, results, three classes, back from each class
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(ids)


def test_every_image_says_what_is_seen_and_how_large_it_is(item, write, tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "roc_curve.png")
    page = write(gallery(item("a.png", "dent")), roc_figure=Path("roc_curve.png"))
    roc, figure = (image.attributes for image in page.all("img"))
    assert roc["alt"].startswith("ROC curves")
    assert (roc["width"], roc["height"]) == ("200", "100")
    assert figure["alt"] == f"dent a.png: {', '.join(PANELS)}"
    assert (figure["width"], figure["height"]) == ("128", "29")
    assert roc["loading"] == figure["loading"] == "lazy"


def test_images_name_the_panels_there_are(item, write):
    page = write(gallery(item("a.png"))._replace(panels=("image", "heat map")))
    assert page.all("img")[0].attributes["alt"] == "good a.png: image, heat map"


def test_page_refers_to_nothing_elsewhere(item, write):
    page = write(gallery(item("a.png")))
    for word in ("http", "//cdn", "@import", "url("):
        assert word not in page.source
    assert not [e for e in page.elements.all if e.tag in ("iframe", "object", "base")]
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    assert "src" not in page.all("script")[0].attributes


def test_table_has_headers_caption_and_notes(write):
    table = Table(
        "AUROC",
        ("class", "image", "from"),
        [("bolt", "0.9", "here"), ("nut", "–", "2 places"), ("cap", "1.0", "there")],
        ("rounded", "unrounded in metrics.csv"),
    )
    page = write(tables=[table])
    assert page.texts("caption") == ["AUROC"]
    assert page.texts("th", scope="col") == ["class", "image", "from"]
    assert page.texts("th", scope="row") == ["bolt", "nut", "cap"]
    assert page.texts("td") == ["0.9", "here", "–", "2 places", "1.0", "there"]
    assert page.texts("td", class_="number") == ["0.9", "–", "1.0"]
    assert page.texts("p", class_="note") == ["rounded", "unrounded in metrics.csv"]


def test_table_without_rows_keeps_its_columns(write):
    page = write(tables=[Table("AUROC", ("class", "image"), [])])
    assert page.texts("th") == ["class", "image"]


def test_page_without_tables_figures_and_curves(write):
    page = write(title="Nothing yet", summary=("resnet18", "seed 1024"))
    assert page.texts("h1") == ["Nothing yet"]
    assert page.texts("li") == ["resnet18", "seed 1024"]
    for tag in ("nav", "section", "img", "form", "h2"):
        assert not page.all(tag)


def test_class_without_figures_says_so(write):
    page = write(gallery(threshold=None, source="no figures were asked for"))
    assert page.texts("h2") == ["bolt"]
    assert "0 images." in page.texts("p")
    assert not page.all("form")


def test_page_can_be_read_without_script(item, write):
    page = write(gallery(item("a.png")))
    assert [form.attributes["hidden"] for form in page.all("form")] == [""]
    assert not [li for li in page.all("li") if "hidden" in li.attributes]


def test_a_name_that_is_not_valid_text_is_shown_and_linked(item, write, tmp_path):
    name = fsdecode(b"caf\xe9.png")
    try:
        shown = item(name)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes only names that are valid text")
    page = write(gallery(shown))
    assert page.texts("span", class_="name") == ["caf?.png"]
    link = unquote_to_bytes(page.all("img")[0].attributes["src"])
    assert (tmp_path / fsdecode(link)).is_file()
    assert link == fsencode(shown.figure)


def test_page_replaces_the_one_before(write, tmp_path):
    write(title="first")
    page = write(title="second")
    assert page.texts("h1") == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
