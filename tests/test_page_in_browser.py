"""The page in a real browser: Debian's chromium and chromium-driver, Python's selenium."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from tests.records import make_image, make_record
from utils.report.page import Picture, write_page
from utils.report.tables import Table

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FIGURE_SIZE, ROC_SIZE = (1280, 288), (2000, 1000)
ODD_TYPE = 'bent "#1" & <50 %>'
# defect type and score of each image; the threshold is 5
SCORES = {
    "bolt": [("dent", 9.5), ("dent", 8.0), ("dent", 3.0), (ODD_TYPE, 7.0), ("good", 6.0)]
    + [("good", score) for score in (1.0, 1.5, 2.0, 2.5)],
    "große Platte": [("hole", 12.0), ("good", 2.0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run #1 ü")
    records = []
    for class_name, scores in SCORES.items():
        images = []
        for i, (defect_type, score) in enumerate(scores):
            figure = f"figures/{class_name}/{defect_type}_{i:03} %.png"
            (folder / figure).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", FIGURE_SIZE, "navy").save(folder / figure)
            images.append(make_image(f"{i:03} %.png", defect_type, score, figure=figure))
        records.append(make_record(class_name, images, figure_size=FIGURE_SIZE))
    Image.new("RGB", ROC_SIZE, "white").save(folder / "roc_curve.png")
    columns = ["class", *(f"a long heading {i}" for i in range(12))]
    table = Table("AUROC", columns, [["bolt", *["0.123"] * 12]], ["a note " * 30])
    title = "A run with_a_very_long_name_that_has_nowhere_to_break_" + "x" * 40
    roc_figure = Picture("roc_curve.png", ROC_SIZE)
    write_page(folder, title, ["resnet18", "path/" * 30], [table], records, roc_figure)
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
    """The driver with the page freshly loaded in a window of 1280 pixels, in light mode."""
    set_window(driver, 1280, 900)
    set_media(driver)
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get((folder / "index.html").as_uri())
    return driver


def set_window(browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_media(browser, media="", scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def section(browser, heading="bolt"):
    (found,) = (
        part
        for part in browser.find_elements(By.TAG_NAME, "section")
        if part.find_element(By.TAG_NAME, "h2").text == heading
    )
    return found


def choice(part, name, text):
    """The radio button called text, whatever its count."""
    (found,) = (
        label.find_element(By.TAG_NAME, "input")
        for label in part.find_elements(By.CSS_SELECTOR, f"label:has([name={name}])")
        if re.sub(r"\s*\d+$", "", label.text) == text
    )
    return found


def choose(part, name, text):
    choice(part, name, text).find_element(By.XPATH, "..").click()


def shown(part):
    """Defect type and score of the images to be seen."""
    rows = [
        (li.get_attribute("data-type"), float(li.find_element(By.CLASS_NAME, "score").text))
        for li in part.find_elements(By.CSS_SELECTOR, "li[data-type]")
        if li.is_displayed()
    ]
    assert part.find_element(By.CSS_SELECTOR, "[role=status]").text.endswith(
        f": {len(rows)} of {len(part.find_elements(By.CSS_SELECTOR, 'li[data-type]'))} shown"
    )
    return rows


def labels(part, name):
    return [e.text for e in part.find_elements(By.CSS_SELECTOR, f"label:has([name={name}])")]


def headings(part):
    return [h.text for h in part.find_elements(By.TAG_NAME, "h3") if h.is_displayed()]


def test_filter_by_defect_type(browser):
    part = section(browser)
    assert shown(part) == sorted(SCORES["bolt"], key=lambda row: -row[1])
    choose(part, "type", "dent")
    assert shown(part) == [("dent", 9.5), ("dent", 8.0), ("dent", 3.0)]
    assert labels(part, "verdict") == ["all 3", "right 2", "wrong 1"]
    choose(part, "type", ODD_TYPE)
    assert shown(part) == [(ODD_TYPE, 7.0)]
    choose(part, "type", "all")
    assert len(shown(part)) == 9


def test_filter_by_verdict_is_of_one_class_only(browser):
    part = section(browser)
    choose(part, "verdict", "wrong")
    assert shown(part) == [("good", 6.0), ("dent", 3.0)]
    assert labels(part, "type") == ["all 2", f"{ODD_TYPE} 0", "dent 1", "good 1"]
    assert headings(part) == ["Flagged as anomalous 1", "Not flagged 1"]
    assert len(shown(section(browser, "große Platte"))) == 2


def test_both_filters_together(browser):
    part = section(browser)
    choose(part, "verdict", "right")
    choose(part, "type", "good")
    assert shown(part) == [("good", score) for score in (2.5, 2.0, 1.5, 1.0)]
    assert headings(part) == ["Not flagged 4"]
    none = part.find_element(By.CLASS_NAME, "none")
    assert not none.is_displayed()
    choose(part, "verdict", "wrong")
    choose(part, "type", ODD_TYPE)
    assert shown(part) == []
    assert none.is_displayed()


def test_filtered_figures_start_below_the_form(browser):
    part = section(browser)
    last = part.find_elements(By.CSS_SELECTOR, "li[data-type]")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", last)
    choose(part, "type", "dent")
    form, figures = (
        browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", element)
        for element in (
            part.find_element(By.TAG_NAME, "form"),
            part.find_element(By.CLASS_NAME, "figures"),
        )
    )
    assert form["top"] >= 0
    assert figures["top"] == pytest.approx(form["bottom"], abs=2)


def test_keyboard_alone_filters(browser):
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.get_attribute("name") == "type":
            break
    focused = browser.switch_to.active_element
    assert focused == choice(section(browser), "type", "all")
    focused.send_keys(Keys.ARROW_RIGHT)
    assert shown(section(browser)) == [(ODD_TYPE, 7.0)]
    focused = browser.switch_to.active_element
    outline = focused.find_element(By.XPATH, "..").value_of_css_property("outline")
    assert "solid 3px" in outline
    url = browser.current_url
    focused.send_keys(Keys.ENTER)
    assert browser.current_url == url


def test_skip_link_comes_first_and_leads_to_the_results(browser):
    browser.switch_to.active_element.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the results"
    assert skip.rect["y"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


def test_links_and_images_resolve(browser, folder):
    widths = browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        for (const image of document.images) image.loading = "eager";
        Promise.allSettled([...document.images].map((image) => image.decode()))
            .then(() => done([...document.images].map((image) => image.naturalWidth)));
    """)
    assert widths == [2000] + [1280] * 11
    links = browser.execute_script("return [...document.links].map((link) => link.href)")
    page = (folder / "index.html").as_uri()
    files = [link for link in links if not link.startswith(f"{page}#")]
    anchors = [link for link in links if link.startswith(f"{page}#")]
    assert len(files) == 12
    assert all(Path(unquote(urlsplit(link).path)).is_file() for link in files)
    assert len(anchors) == 7
    for link in anchors:
        browser.get(link)
        assert browser.execute_script("return document.querySelector(':target') !== null"), link


def test_nothing_is_wrong_in_the_console_or_loaded_from_elsewhere(browser):
    choose(section(browser), "verdict", "wrong")
    assert browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    loaded = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert len(loaded) > 1
    assert [url for url in loaded if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [320, 768])
def test_the_page_does_not_scroll_sideways(browser, width):
    set_window(browser, width, 800)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("scrollTo(1000, 0)")
    assert browser.execute_script("return scrollX") == 0


def test_on_a_phone_a_figure_scrolls_in_its_own_box(browser):
    set_window(browser, 375, 800)
    box = section(browser).find_element(By.CSS_SELECTOR, "a.scroll")
    assert box.size["width"] <= 375
    assert box.find_element(By.TAG_NAME, "img").size["width"] == 800
    assert browser.execute_script(
        "arguments[0].scrollLeft = 90; return arguments[0].scrollLeft", box
    )


def background(browser):
    return browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")


def test_dark_mode_is_dark_and_prints_light_without_the_filter(browser):
    form = section(browser).find_element(By.TAG_NAME, "form")
    light = background(browser)
    assert form.is_displayed()
    set_media(browser, scheme="dark")
    dark = background(browser)
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (light, dark)]
    assert brightness[0] > 200
    assert brightness[1] < 50
    set_media(browser, media="print", scheme="dark")
    assert background(browser) == light
    assert not form.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text_is_enough(browser, scheme):
    set_media(browser, scheme=scheme)
    ratios = browser.execute_script("""
        const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const lightness = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
            const c = rgb[i] / 255;
            return sum + weight * (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        }, 0);
        function behind(element) {
            for (; element; element = element.parentElement) {
                const colour = parts(getComputedStyle(element).backgroundColor);
                if (colour.length < 4 || colour[3] === 1) return colour;
            }
        }
        const found = {};
        for (const element of document.body.querySelectorAll("*")) {
            const own = [...element.childNodes].some((node) =>
                node.nodeType === Node.TEXT_NODE && node.data.trim());
            if (!own || !element.checkVisibility()) continue;
            const style = getComputedStyle(element), back = behind(element);
            const ink = parts(style.color).slice(0, 3)
                .map((c, i) => c * style.opacity + back[i] * (1 - style.opacity));
            const [low, high] = [lightness(ink), lightness(back)].sort((a, b) => a - b);
            const name = element.parentElement.className + " > " + element.tagName + "." +
                element.className;
            found[name] = Math.min((high + 0.05) / (low + 0.05), found[name] ?? 21);
        }
        return found;
    """)
    assert len(ratios) > 20
    # WCAG 2.2, 1.4.3, level AA
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_without_script_everything_is_shown_and_no_filter(browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        part = section(browser)
        items = part.find_elements(By.CSS_SELECTOR, "li[data-type]")
        assert [item.is_displayed() for item in items] == [True] * 9
        assert not part.find_element(By.TAG_NAME, "form").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
