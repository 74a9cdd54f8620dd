import csv
import os
import shutil
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from datasets.folders import MARKER
from datasets.notes import Header, Notes
from tests.conftest import write_image
from tests.helpers import SMALL, defective, good_images
from tests.test_page import Page
from utils.commands.predict_page import list_regions
from utils.commands.prediction import COLUMNS, Predictor, write_map
from utils.commands.sources import find_images
from utils.detector import Detector
from utils.model_file import features_bytes
from utils.padim import PaDiM
from utils.plot import plot_overlay
from utils.regions import Region
from utils.system import memory


@pytest.fixture(scope="module")
def detector(random_weights):
    return Detector.fit(good_images(5), "resnet18", random_weights("resnet18"), SMALL, name="bolt")


@pytest.fixture
def command(detector, random_weights, tmp_path):
    detector.save(tmp_path / "bolt.safetensors")
    return ["predict", "--model", "bolt.safetensors", "--weights", random_weights("resnet18")]


@pytest.fixture
def new(tmp_path):
    """A folder with a good image and one with a defect, of odd sizes."""
    write_image(tmp_path / "new/good.png", good_images(1)[0])
    write_image(tmp_path / "new/line 1/größe.png", defective((127, 151)))
    return tmp_path / "new"


def read_rows(name="predictions.csv"):
    with Path("predictions", name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_rows_have_the_detectors_scores(run, command, detector, new):
    done = run(*command, new)
    assert done.returncode == 0, done.stderr
    rows = read_rows()
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [f"{new}/good.png", f"{new}/line 1/größe.png"]
    assert [row["files"] for row in rows] == ["good", "line 1/größe"]
    thresholds = detector.model.thresholds
    for row in rows:
        score = detector.score(Image.open(row["path"]))[0]
        assert float(row["score"]) == pytest.approx(score, rel=1e-4)  # in another batch
        assert float(row["threshold"]) == thresholds.image
        assert row["anomalous"] == str(int(score >= thresholds.image))
        assert float(row["good_below"]) == thresholds.fraction_below(score)
        assert row["error"] == ""
    assert (rows[1]["anomalous"], rows[1]["good_below"]) == ("1", "1.0")
    files = ["index.html", "overlays", "predictions.csv", "regions.csv"]
    assert sorted(os.listdir("predictions")) == files
    n = sum(int(row["anomalous"]) for row in rows)
    first, *lines = done.stdout.splitlines()
    assert first.startswith("bolt, resnet18 on cpu (")
    counts = f"2 images, {n} anomalous (score >= {thresholds.image:g}), 0 not scored; results in pr"
    assert lines[0].startswith(counts)
    assert lines[1:] == ["(5 good images support a rate of false alarms of 0.17, not of 0.01)"]


def test_regions_are_the_detectors_and_all_pictures_show_them(run, command, detector, new):
    assert run(*command, new, "--masks", "--maps", "npy", "--batch_size", 1).returncode == 0
    found = {row["path"]: [] for row in read_rows()}
    for row in read_rows("regions.csv"):
        found[row["path"]].append([float(row[name]) for name in Region._fields])
        assert int(row["number"]) == len(found[row["path"]])
    for row in read_rows():
        image = Image.open(row["path"])
        expected = detector.find_regions(detector.score(image)[1], image.size)
        regions = found[row["path"]]
        assert regions == [pytest.approx(list(region), rel=1e-5) for region in expected]
        assert int(row["n_regions"]) == len(expected)
        assert int(row["area"]) == sum(region.area for region in expected)
    assert regions
    anomaly_map = np.load("predictions/maps/line 1/größe.npy")
    assert (anomaly_map.shape, anomaly_map.dtype) == ((127, 151), np.float32)
    # the crop is 80 / 96 of the height, 10.6 to 116.4, and 22.6 to 128.4 of the width
    inside = np.zeros(anomaly_map.shape, bool)
    inside[11:116, 23:128] = True
    np.testing.assert_array_equal(np.isfinite(anomaly_map), inside)
    assert anomaly_map[int(row["peak_row"]), int(row["peak_column"])] > 0.99 * np.nanmax(
        anomaly_map
    )
    reached = anomaly_map >= detector.model.thresholds.pixel
    mask = pixels("predictions/masks/line 1/größe.png")
    np.testing.assert_array_equal(mask, np.uint8(255) * reached)
    highest = 2 * detector.model.thresholds.pixel
    plot_overlay(Path("expected.jpg"), image, anomaly_map, highest, reached)
    overlay = Path("predictions/overlays/line 1/größe.jpg")
    assert overlay.read_bytes() == Path("expected.jpg").read_bytes()
    # in hundredths
    assert run(*command, new, "--maps", "png").returncode == 0
    steps = pixels("predictions/maps/line 1/größe.png")
    assert steps.dtype == np.uint16
    np.testing.assert_allclose(steps / 100, np.nan_to_num(anomaly_map), atol=0.0051)
    write_map(Path("a.png"), np.array([[655.35, 656, np.nan]], np.float32))
    assert pixels("a.png").tolist() == [[65535, 65535, 0]]


@pytest.fixture
def give(monkeypatch):
    """A function that makes any image's map a given one."""
    return lambda *maps: monkeypatch.setattr(PaDiM, "score", lambda *_: (np.stack(maps), None))


@pytest.mark.parametrize(
    ("options", "regions"),
    [
        ((), [(100, 100), (60, 100)]),
        (("--threshold", 61), [(100, 100)]),  # which the peak of a region must reach too
        (("--threshold", 100.01), []),
        (("--pixel_threshold", 24, "--min_area", 2), [(100, 100)]),
        (("--pixel_threshold", 0), [(100, 6400)]),
    ],
)
def test_thresholds_and_least_area_choose_the_regions(options, regions, run, command, new, give):
    anomaly_map = np.full((80, 80), 3, np.float32)
    anomaly_map[10:20, 10:20], anomaly_map[50:60, 60:70] = 25, 22
    anomaly_map[14, 14], anomaly_map[55, 65] = 100, 60
    give(anomaly_map)
    usual = ("--threshold", 60, "--pixel_threshold", 20, "--masks")
    done = run(*command, new / "good.png", *usual, *options)
    assert "good images support" not in done.stdout
    found = read_rows("regions.csv")
    assert [(float(region["score"]), int(region["area"])) for region in found] == regions
    (row,) = read_rows()
    assert row["anomalous"] == ("1" if regions else "0")
    # the crop's corner is (8, 20)
    assert (int(row["peak_row"]), int(row["peak_column"])) == (8 + 14, 20 + 14)
    mask = pixels("predictions/masks/good.png") > 0
    assert mask.sum() == int(row["area"]) == sum(area for _, area in regions)
    assert mask[8 + 14, 20 + 14] == bool(regions)


@pytest.mark.parametrize("rates", [{"target_fpr": 0.4}, {"pixel_fpr": 0.3}])
def test_thresholds_at_another_rate_judge_images_and_pixels(
    rates, run, command, detector, new, give
):
    usual = detector.model.thresholds
    thresholds = usual.at(**rates)
    assert (thresholds.image, thresholds.pixel) != (usual.image, usual.pixel)
    ramp = np.linspace(0, 2 * usual.image, 6400, dtype=np.float32).reshape(80, 80)
    give(ramp)
    run(*command, new / "good.png", *(f"--{name}={value}" for name, value in rates.items()))
    (row,) = read_rows()
    assert float(row["threshold"]) == thresholds.image
    assert int(row["area"]) == np.count_nonzero(ramp >= thresholds.pixel)


def test_overlays_are_of_the_images_asked_for_and_nobody_elses_files_are_removed(
    run, refused, command, new
):
    Path("predictions/maps").mkdir(parents=True)
    for name in ("notes.txt", "maps/city.png"):
        Path("predictions", name).touch()
    # the first run writes both overlays
    for options, names in (
        (("all", "--masks"), ["good", "größe"]),
        (("anomalous",), ["größe"]),
        (("none", "--page", "no"), []),
    ):
        assert run(*command, new, "--overlays", *options).returncode == 0
        assert sorted(path.stem for path in Path("predictions").rglob("*.jpg")) == names
        written = [bool(row["files"]) for row in read_rows()]
        assert written == [name in names or "--masks" in options for name in ("good", "größe")]
    left = {str(path.relative_to("predictions")) for path in Path("predictions").rglob("*.*")}
    assert left == {"maps/city.png", "notes.txt", "predictions.csv", "regions.csv"}
    line = refused(*command, new, "--maps", "png")
    assert "predictions/maps holds files but no .padim, so they may be yours; move them" in line
    assert len(read_rows()) == 2
    Path("run").mkdir()
    Path("run/index.html").touch()
    line = refused(*command, new, "--output", "run")
    assert "run/index.html is not a page of predict; choose another --output, or --page no" in line


def test_page_shows_all_images_highest_score_first(run, command, new):
    odd = new / os.fsdecode(b"damaged \xff.png")
    odd.write_text("no image")
    done = run(*command, new, "--overlays", "anomalous", "--threshold", 20, "--pixel_threshold", 10)
    assert done.returncode == 1
    page = Page(Path("predictions"))
    rows = {Path(row["path"]).name: row for row in read_rows()}
    names = ["größe.png", "good.png", r"damaged \udcff.png"]
    assert page.texts("a", class_="name") == [rows[name]["path"] for name in names]
    links = [e.attributes["href"] for e in page.all("a", class_="name")]
    files = ["größe.png", "good.png", odd.name]
    targets = [Path("predictions", unquote(link, errors="surrogateescape")) for link in links]
    assert [target.resolve().name for target in targets] == files
    assert page.texts("span", class_="verdict") == ["anomalous", "good", "could not be scored"]
    counted = "3 images: anomalous 1, good 1, could not be scored 1."
    assert counted in page.texts("p", aria_live="polite")
    scores = [f"{float(rows[name]['score']):.2f}" for name in names[:2]]
    assert page.texts("span", class_="score") == [*scores, "–"]
    assert page.values("img", "src") == ["overlays/line%201/gr%C3%B6%C3%9Fe.jpg"]
    assert len(page.all("ul", class_="lines")) == 1
    assert page.texts("h2") == ["Images"]  # neither tables nor curves, as a run has
    assert not page.all("nav")
    region = read_rows("regions.csv")[0]
    listed = page.texts("li")
    assert any(text.startswith("Model: bolt.safetensors, resnet18, fitted to 5") for text in listed)
    assert "Threshold: 20, given" in listed
    assert any(f"region 1: score {float(region['score']):.2f}, " in text for text in listed)
    assert r"damaged \udcff.png" in rows[names[2]]["error"]
    assert rows[names[2]]["error"] in page.texts("figcaption")[2]


def test_page_lists_the_first_regions():
    regions = [Region(9.0 - i, 1.0, 1, 2, 3, 4, 12, 2, 1) for i in range(12)]
    first, *_, last = list_regions(regions)
    assert first == "region 1: score 9.00, 3 x 4 pixels at (1, 2), area 12"
    assert last == "2 more are in regions.csv"


def test_batches_and_threads_do_not_change_the_scores(run, command, new):
    for i in range(4):
        write_image(new / f"{i}.png", good_images(i + 2, (96 + i, 120))[-1])
    scores = []
    for batch_size, num_workers in ((1, 0), (4, 2)):
        options = ("--batch_size", batch_size, "--num_workers", num_workers)
        assert run(*command, new, *options).returncode == 0
        scores.append([float(row["score"]) for row in read_rows()])
    assert len(set(scores[0])) == 6
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_what_is_not_read_or_unlike_the_training_images_is_noted(
    run, refused, command, detector, new, monkeypatch
):
    monkeypatch.setattr(detector.model, "image_kinds", [Header((120, 96), "RGB", "PNG")])
    detector.save("bolt.safetensors")
    write_image(new / "wide.png", good_images(1, (96, 480))[0])
    for number in range(9):
        (new / f"{number}.heic").touch()
    done = run(*command, new)
    assert done.returncode == 0
    title, *notes = done.stdout.splitlines()[1:-2]
    assert "to use the options in them, fit the model again with them" in title
    assert len(notes) == 3  # folders in folders are welcome
    assert "not read (.heic): 9, for example" in notes[0]
    assert "images that differ from the training images in shape and size: 2, for" in notes[1]
    assert notes[2] == "(the network sees 14 to 58 % of each image; --crop 0 shows it all)"
    assert "differ" not in run(*command, new / "good.png").stdout
    shutil.rmtree(new / "line 1")
    for name in ("good.png", "wide.png"):
        (new / name).unlink()
    assert "no images in" in (line := refused(*command, new))
    assert "not read (.heic): 9, for example" in line


def test_rows_are_on_disk_when_an_image_is_scored_and_an_interrupt_keeps_them(
    run, command, new, monkeypatch
):
    judge, rows = Predictor.judge, []

    def interrupted(self, loaded, scored):
        if loaded.source.name == "b":
            rows.extend(read_rows())
            assert len(read_rows("regions.csv")) == 1
            raise KeyboardInterrupt
        return judge(self, loaded, scored)

    monkeypatch.setattr(Predictor, "judge", interrupted)
    for name in "abc":
        shutil.copy(new / "good.png", new / f"{name}.png")
    done = run(*command, new, "--batch_size", 1, "--threshold", 0, "--pixel_threshold", 0)
    assert (done.returncode, done.stderr) == (130, "interrupted; the rows so far are written\n")
    assert [Path(row["path"]).name for row in rows] == ["a.png"]
    assert read_rows() == rows
    assert Path("predictions/index.html").exists()


def test_batch_is_lowered_to_what_fits_into_memory(
    run, refused, command, detector, new, monkeypatch
):
    scored, score = [], PaDiM.score

    def spy(self, images):
        scored.append(len(images))
        return score(self, images)

    monkeypatch.setattr(PaDiM, "score", spy)
    for number in range(2):
        shutil.copy(new / "good.png", new / f"{number}.png")
    write_image(new / "large.png", good_images(1, (900, 1000))[0])
    of_image = features_bytes(detector.model.extractor.channels, (80, 80))
    three = memory.network_bytes(3, 80 * 80, of_image, aligned=False, on_gpu=False)
    three += 3 * (memory.BATCH_BYTES * 80 * 80 + memory.ORIGINAL_BYTES * 900 * 1000)
    monkeypatch.setattr(memory, "free_bytes", lambda: memory.LIBRARY_BYTES + three - 1)
    done = run(*command, new)
    assert "--batch_size 8 is lowered to 2, which fits into memory" in done.stdout
    assert scored == [2, 2, 1]
    monkeypatch.setattr(memory, "free_bytes", lambda: memory.LIBRARY_BYTES)
    message = "megapixels would take about 0.2 GB of memory, 0.1 GB are free: end other programs"
    assert message in refused(*command, new)
    assert message in run(*command, "-").stderr


def find(*given):
    sources = find_images([*map(Path, given)], Path("out"), Notes())
    return [(source.given, source.name) for source in sources]


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """A function that makes empty files in the current folder."""
    monkeypatch.chdir(tmp_path)

    def touch(*paths):
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return touch


def test_folders_are_searched_at_any_depth_in_order(touch):
    touch("in/b.PNG", "in/a/z.jpeg", "in/a/y.tif", "in/c.txt", "in/.d.png", "in/.e/f.png", "x.bmp")
    touch("in/@eaDir/b.png", "in/a/__MACOSX/y.tif", "elsewhere/c.png")
    Path("in/a/loop").symlink_to("..")
    Path("in/elsewhere").symlink_to("../elsewhere")
    Path("in/self.png").symlink_to("self.png")
    os.mkfifo("in/pipe.png")  # reading it would never end
    expected = [("x.bmp", "x"), ("in/a/y.tif", "a/y"), ("in/a/z.jpeg", "a/z"), ("in/b.PNG", "b")]
    expected += [("in/elsewhere/c.png", "elsewhere/c"), ("in/self.png", "self")]
    assert find("x.bmp", "in") == expected
    assert find("in", Path("in/b.PNG").absolute()) == expected[1:]  # each only once


def test_equal_names_are_numbered(touch):
    touch("1/a.png", "1/a.jpg", "2/A.png", "2/a_2.png")
    expected = [("1/a.jpg", "a"), ("1/a.png", "a_2"), ("2/A.png", "A_3"), ("2/a_2.png", "a_2_2")]
    assert find("1", "2") == expected


def test_results_are_not_scored(touch):
    touch("a.png", f"out/overlays/{MARKER}", "out/overlays/a.png", "out/b.png")
    touch(f"earlier/masks/{MARKER}", "earlier/masks/d.png")
    assert [path for path, _ in find(".")] == ["a.png", "out/b.png"]
    for given in ("out/overlays/a.png", "out/overlays"):
        with pytest.raises(ValueError, match=f"{given} is among the results in --output; choose"):
            find(given)


def test_folder_that_cannot_be_read_is_named(touch, monkeypatch):
    touch("in/a.png")
    denied = PermissionError(13, "Permission denied", "in")
    monkeypatch.setattr(os, "scandir", Mock(side_effect=denied))
    with pytest.raises(ValueError, match="Permission denied: 'in'; make it readable"):
        find("in")
