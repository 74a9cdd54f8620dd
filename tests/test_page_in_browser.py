"""The page in a real browser: Debian's chromium and chromium-driver, Python's selenium."""

import json
import shutil

import pytest
from PIL import Image

from tests.records import make_image, make_record
from utils.report.page import Section, Shown, describe_class, write_page

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

FLAGS = (
    *("--headless", "--window-size=1280,900", "--no-sandbox", "--disable-gpu", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-component-update"),
    "--disable-background-networking",
)
FIGURE_SIZE = (1280, 288)
ODD_TYPE = 'bent "#1" & <50 %>'
# defect type and score of each image; the threshold is 5
SCORES = {
    "bolt": [["dent", 9.5], ["dent", 8.0], ["dent", 3.0], [ODD_TYPE, 7.0], ["good", 6.0]]
    + [["good", score] for score in (1.0, 1.5, 2.0, 2.5)],
    "große Platte": [["hole", 12.0], ["good", 2.0]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run #1 ü")
    Image.new("RGB", FIGURE_SIZE, "navy").save(folder / "figure %.png")
    records = []
    for name, scores in SCORES.items():
        images = [
            make_image(f"{i:03} %.png", defect_type, score, figure="figure %.png")
            for i, (defect_type, score) in enumerate(scores)
        ]
        records.append(make_record(name, images, figure_size=FIGURE_SIZE))
    write_page(folder / "index.html", "A run", [], [*map(describe_class, records)])
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, folder):
    """The driver with the page freshly loaded."""
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get((folder / "index.html").as_uri())
    return driver


def choose(browser, name, value):
    """Click on a choice of the first class's filters; "" is all."""
    browser.execute_script(
        "for (const input of document.querySelector('.filters').elements[arguments[0]])"
        " if (input.value === arguments[1]) input.parentElement.click();",
        *(name, value),
    )


def visible(browser, selector, class_name="bolt"):
    """The texts of what is seen of a class."""
    return browser.execute_script(
        """
        const [selector, heading] = arguments;
        const section = [...document.querySelectorAll("section")]
            .find((section) => section.querySelector("h2").textContent === heading);
        return [...section.querySelectorAll(selector)]
            .filter((element) => element.checkVisibility()).map((element) => element.innerText);
        """,
        *(selector, class_name),
    )


def images(browser, class_name="bolt"):
    """Defect type and score of the images that are seen, which the status has to count."""
    types = visible(browser, "figcaption span:nth-child(2)", class_name)
    scores = visible(browser, ".score", class_name)
    (status,) = visible(browser, "[role=status]", class_name)
    assert status == f"{class_name}: {len(scores)} of {len(SCORES[class_name])} shown"
    return [[name, float(score)] for name, score in zip(types, scores, strict=True)]


def test_filters(browser):
    assert images(browser) == sorted(SCORES["bolt"], key=lambda row: -row[1])
    browser.execute_script(
        "[...document.querySelectorAll('li[data-type]')].at(8).scrollIntoView({block: 'end'})"
    )
    choose(browser, "type", "dent")
    assert images(browser) == [["dent", 9.5], ["dent", 8.0], ["dent", 3.0]]
    assert visible(browser, "label:has([name=verdict])") == ["all 3", "right 2", "wrong 1"]
    assert len(images(browser, "große Platte")) == 2
    # the figures start below the form, which stays in the window
    top, bottom, figures = browser.execute_script("""
        const form = document.querySelector(".filters").getBoundingClientRect();
        const figures = document.querySelector(".figures").getBoundingClientRect();
        return [form.top, form.bottom, figures.top];
    """)
    assert top >= 0
    assert figures == pytest.approx(bottom, abs=2)
    choose(browser, "verdict", "right")
    choose(browser, "type", "good")
    assert images(browser) == [["good", score] for score in (2.5, 2.0, 1.5, 1.0)]
    assert visible(browser, "h3, .none") == ["Not flagged 4"]
    choose(browser, "verdict", "wrong")
    choose(browser, "type", ODD_TYPE)
    assert images(browser) == []
    assert visible(browser, "h3, .none") == ["No image fits all choices."]
    choose(browser, "verdict", "")
    browser.find_element("name", "name").send_keys("003 %.P")
    assert images(browser) == [[ODD_TYPE, 7.0]]


def type_threshold(browser, value):
    field = browser.find_element("name", "threshold")
    field.clear()
    field.send_keys(value)


def outcomes(browser):
    return visible(browser, "p[aria-live]")[0]


AT_5 = "9 images: found 3, missed 1, false alarm 1, passed 4."
AT_2_7 = "9 images: found 4, missed 0, false alarm 1, passed 4."


def test_threshold_that_is_typed_moves_counts_verdicts_groups_and_strokes(browser):
    type_threshold(browser, f"2.7{Keys.ENTER}")  # the form is not sent
    assert outcomes(browser) == AT_2_7
    assert visible(browser, "h3, code") == [
        *("--threshold 2.7", "Flagged as anomalous 5", "Not flagged 4")
    ]
    choose(browser, "verdict", "wrong")
    assert images(browser) == [["good", 6.0]]
    assert visible(browser, ".verdict") == ["wrong: false alarm"]
    wrong = "return document.querySelectorAll('.strip [data-verdict=wrong]').length"
    assert browser.execute_script(wrong) == 1
    # a score on the threshold reaches it; above all scores nothing is flagged
    choose(browser, "verdict", "")
    for value, flagged in (("3.0", 5), ("3.01", 4), ("1000", 0), ("-1", 9)):
        type_threshold(browser, value)
        assert len(visible(browser, ".group:first-child li")) == flagged
        assert images(browser) == sorted(SCORES["bolt"], key=lambda row: -row[1])
    browser.find_element("css selector", "[type=reset]").click()
    # both forms have their first values a moment later
    WebDriverWait(browser, 10).until(lambda _: outcomes(browser) == AT_5)
    assert browser.find_element("name", "mark").get_attribute("value") == "5"
    browser.find_element("name", "copy").click()
    browser.find_element("name", "name").send_keys(Keys.CONTROL, "v")
    assert browser.find_element("name", "name").get_attribute("value") == "--threshold 5.0"


def test_mark_is_dragged_and_moved_by_keys_while_the_deployed_one_stays(browser):
    mark = browser.find_element("name", "mark")
    (left, width, cut) = browser.execute_script("""
        const lane = document.querySelector(".strip svg").getBoundingClientRect();
        const cut = document.querySelector(".cut").getBoundingClientRect();
        return [lane.left, lane.width, cut.left];
    """)
    assert cut == pytest.approx(left + width * 4 / 8.5, abs=2)  # 5 on the scale from 1 to 9.5
    # the lanes begin half of the mark's width inside the slider
    actions = webdriver.ActionChains(browser).move_to_element(mark)
    to = round(left + width * 1.7 / 8.5 - mark.rect["x"] - mark.rect["width"] / 2)
    start = round(cut - mark.rect["x"] - mark.rect["width"] / 2)
    actions.move_to_element_with_offset(mark, start, 0).click_and_hold()
    actions.move_to_element_with_offset(mark, to, 0).release().perform()
    assert outcomes(browser) == AT_2_7
    value = browser.find_element("name", "threshold").get_attribute("value")
    assert float(value) == pytest.approx(2.7, abs=0.05)
    assert len(value) <= 4  # two decimals, as the scores
    assert visible(browser, "code") == [f"--threshold {value}"]
    for _ in range(4):
        mark.send_keys(Keys.ARROW_RIGHT)
    assert outcomes(browser) == AT_5
    # the other class has its own
    assert visible(browser, "code", "große Platte") == ["--threshold 5.0"]


def test_threshold_of_images_without_labels(browser, tmp_path):
    shown = [Shown("a", "image", score, None) for score in (9.0, 4.0, 1.0, None)]
    write_page(tmp_path / "new.html", "New", [], [Section("Images", shown, 5)])
    browser.get((tmp_path / "new.html").as_uri())
    type_threshold(browser, "3")
    counts = "4 images: anomalous 2, good 1, could not be scored 1."
    assert visible(browser, "p[aria-live]", "Images") == [counts]


def test_page_of_2000_figures_loads_those_near_the_window_alone(browser, tmp_path):
    Image.new("RGB", FIGURE_SIZE, "navy").save(tmp_path / "figure.png")
    images = []
    for i in range(2000):
        (tmp_path / f"{i}.png").symlink_to("figure.png")
        images.append(make_image(f"{i}.png", ("dent", "good")[i % 2], i / 200, figure=f"{i}.png"))
    record = make_record("bolt", images, figure_size=FIGURE_SIZE)
    write_page(tmp_path / "index.html", "", [], [describe_class(record)])
    browser.get((tmp_path / "index.html").as_uri())
    browser.find_element("name", "mark").send_keys(Keys.ARROW_LEFT)
    choose(browser, "type", "dent")
    assert visible(browser, "[role=status]") == ["bolt: 1000 of 2000 shown"]
    assert browser.get_log("browser") == []  # no errors
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert 1 < len(sent) < 100
    assert all(one["request"]["url"].startswith(("file:", "data:")) for one in sent)


def test_without_script_everything_is_shown_and_no_filter(browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        assert len(visible(browser, "img")) == 9
        assert visible(browser, "button, input, .filters") == []
        assert outcomes(browser) == AT_5
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
