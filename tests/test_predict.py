import csv
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_dilation

from datasets.folders import MARKER
from datasets.notes import Header, Notes
from datasets.preprocessing import Preprocessing, crop_box
from tests.conftest import write_image
from tests.helpers import SMALL, defective, good_images
from tests.test_page import Page
from utils.commands.predict_page import list_regions
from utils.commands.prediction import COLUMNS, Predictor, find_peak, write_map
from utils.commands.sources import find_images
from utils.detector import Detector
from utils.model_file import features_bytes
from utils.padim import PaDiM
from utils.regions import Region
from utils.system import memory

RED = (255, 0, 0)


@pytest.fixture(scope="module")
def weights(random_weights):
    return random_weights("resnet18")


@pytest.fixture(scope="module")
def detector(weights):
    return Detector.fit(good_images(5), "resnet18", weights, SMALL, name="bolt")


@pytest.fixture
def command(detector, weights, tmp_path):
    detector.save(tmp_path / "bolt.safetensors")
    return ["predict", "--model", "bolt.safetensors", "--weights", weights]


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


@pytest.mark.parametrize("size", [(97, 121), (121, 97), (33, 50), (800, 333)])
def test_peak_is_in_pixels_of_the_original(size):
    anomaly_map = np.zeros((80, 80), np.float32)
    anomaly_map[39, 11] = 1
    width, height = size
    scale = 96 / min(size)
    resized = int(scale * width + 1e-9), int(scale * height + 1e-9)
    peak_row, peak_column = find_peak(anomaly_map, crop_box(size, SMALL))
    assert peak_row == int((39 + round((resized[1] - 80) / 2) + 0.5) * height / resized[1])
    assert peak_column == int((11 + round((resized[0] - 80) / 2) + 0.5) * width / resized[0])


def test_overlay_colours_the_crop_up_to_twice_the_pixel_threshold(run, command, detector, new):
    assert run(*command, new, "--maps", "npy").returncode == 0
    image = pixels(new / "line 1/größe.png")
    overlay = pixels("predictions/overlays/line 1/größe.jpg").astype(float)
    anomaly_map = np.load("predictions/maps/line 1/größe.npy")
    # the crop is 80 / 96 of the height, 10.6 to 116.4, and 22.6 to 128.4 of the width
    inside = np.zeros(image.shape[:2], bool)
    inside[11:116, 23:128] = True
    np.testing.assert_array_equal(np.isfinite(anomaly_map), inside)
    assert np.abs(overlay[~inside] - image[~inside]).mean() < 7  # JPEG of noise
    share = (anomaly_map / (2 * detector.model.thresholds.pixel)).clip(0, 1)
    expected = colormaps["jet"](share, bytes=True)[..., :3] / 2 + image / 2
    outline = np.abs(overlay - RED).max(axis=2) < 60
    assert outline.sum() > 20
    coloured = inside & ~binary_dilation(outline, iterations=8)  # JPEG's blocks have 8 pixels
    assert np.abs(overlay[coloured] - expected[coloured]).mean() < 7


def test_regions_are_the_detectors_and_the_masks_show_them(run, command, detector, new):
    options = ("--masks", "--maps", "npy", "--batch_size", 1)
    assert run(*command, new, *options).returncode == 0
    found = {row["path"]: [] for row in read_rows()}
    for row in read_rows("regions.csv"):
        numbers = [float(row[name]) for name in Region._fields]
        found[row["path"]].append(numbers)
        assert int(row["number"]) == len(found[row["path"]])
    for row in read_rows():
        image = Image.open(row["path"])
        expected = detector.find_regions(detector.score(image)[1], image.size)
        assert len(found[row["path"]]) == len(expected)
        for numbers, region in zip(found[row["path"]], expected, strict=True):
            assert numbers == pytest.approx(list(region), rel=1e-5)
        assert int(row["n_regions"]) == len(expected)
        assert int(row["area"]) == sum(region.area for region in expected)
    assert len(found[f"{new}/line 1/größe.png"]) > 0
    mask = pixels("predictions/masks/line 1/größe.png")
    anomaly_map = np.load("predictions/maps/line 1/größe.npy")
    reached = anomaly_map >= detector.model.thresholds.pixel
    np.testing.assert_array_equal(mask, np.uint8(255) * reached)


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
        (("--pixel_threshold", 24), [(100, 100), (60, 1)]),
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
    area = sum(area for _, area in regions)
    assert (int(row["n_regions"]), int(row["area"])) == (len(regions), area)
    mask = pixels("predictions/masks/good.png") > 0
    assert mask.sum() == area
    assert mask[8 + 14, 20 + 14] == bool(regions)  # the crop's corner is (8, 20)


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


def test_overlays_are_of_the_images_asked_for_and_earlier_ones_go(run, command, new):
    # the first run writes both
    for options, names in (((), ["good", "größe"]), (("anomalous",), ["größe"]), (("none",), [])):
        done = run(*command, new, *(("--overlays", *options) if options else ()))
        assert done.returncode == 0
        assert sorted(path.stem for path in Path("predictions").rglob("*.jpg")) == names
        assert [bool(row["files"]) for row in read_rows()] == [
            n in names for n in ("good", "größe")
        ]


def test_earlier_files_are_removed_but_nobody_elses(run, refused, command, new):
    Path("predictions/maps").mkdir(parents=True)
    Path("predictions/notes.txt").touch()
    Path("predictions/maps/city.png").touch()
    assert run(*command, new, "--masks").returncode == 0
    assert run(*command, new / "good.png", "--page", "no").returncode == 0
    left = {str(path) for path in Path("predictions").rglob("*") if path.is_file()}
    names = ("maps/city.png", "notes.txt", f"overlays/{MARKER}", "overlays/good.jpg")
    assert left == {f"predictions/{name}" for name in (*names, "predictions.csv", "regions.csv")}
    line = refused(*command, new, "--maps", "png")
    assert "predictions/maps holds files but no .padim, so they may be yours; move them" in line
    assert len(read_rows()) == 1
    Path("run").mkdir()
    Path("run/index.html").touch()
    line = refused(*command, new, "--output", "run")
    assert "run/index.html is not a page of predict; choose another --output, or --page no" in line


def test_page_shows_all_images_highest_score_first(run, command, new):
    (new / "damaged.png").write_text("no image")
    run(*command, new, "--overlays", "anomalous", "--threshold", 20, "--pixel_threshold", 10)
    page = Page(Path("predictions"))
    rows = {Path(row["path"]).name: row for row in read_rows()}
    names = ["größe.png", "good.png", "damaged.png"]
    assert page.texts("a", class_="name") == [rows[name]["path"] for name in names]
    links = [e.attributes["href"] for e in page.all("a", class_="name")]
    assert [(Path("predictions") / unquote(link)).resolve().name for link in links] == names
    assert page.texts("span", class_="verdict") == ["anomalous", "good", "could not be scored"]
    scores = [f"{float(rows[name]['score']):.2f}" for name in names[:2]]
    assert page.texts("span", class_="score") == [*scores, "–"]
    assert page.values("img", "src") == ["overlays/line%201/gr%C3%B6%C3%9Fe.jpg"]
    assert len(page.all("ul", class_="lines")) == 1
    region = read_rows("regions.csv")[0]
    listed = f"region 1: score {float(region['score']):.2f}, "
    summary = " ".join(page.texts("li"))
    for words in (
        listed,
        "bolt.safetensors, resnet18, fitted to 5 good images",
        "Threshold: 20, given",
    ):
        assert words in summary
    assert rows["damaged.png"]["error"] in " ".join(page.texts("figcaption"))


def test_page_lists_the_first_regions():
    regions = [Region(9.0 - i, 1.0, 1, 2, 3, 4, 12, 2, 1) for i in range(12)]
    first, *_, last = list_regions(regions)
    assert first == "region 1: score 9.00, 3 x 4 pixels at (1, 2), area 12"
    assert last == "2 more are in regions.csv"


def test_png_maps_are_the_exact_ones_in_hundredths(run, command, new, tmp_path):
    assert run(*command, new, "--maps", "npy").returncode == 0
    exact = np.load("predictions/maps/line 1/größe.npy")
    assert run(*command, new, "--maps", "png").returncode == 0
    steps = pixels("predictions/maps/line 1/größe.png")
    assert (exact.shape, exact.dtype) == ((127, 151), np.float32)
    assert (steps.shape, steps.dtype) == ((127, 151), np.uint16)
    np.testing.assert_allclose(steps / 100, np.nan_to_num(exact), atol=0.0051)
    row = read_rows()[1]
    assert exact[int(row["peak_row"]), int(row["peak_column"])] > 0.99 * np.nanmax(exact)
    write_map(tmp_path / "a.png", np.array([[655.35, 656, np.nan]], np.float32))
    assert pixels(tmp_path / "a.png").tolist() == [[65535, 65535, 0]]


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


def test_image_of_another_size_is_a_row_when_nothing_is_cut(run, command, weights, new):
    detector = Detector.fit(good_images(5), "resnet18", weights, Preprocessing(0, 0), name="bolt")
    detector.save("bolt.safetensors")
    done = run(*command, "--maps", "npy", new)
    assert done.returncode == 1
    assert done.stderr.endswith("for the network 151x127; this model takes 120x96\n")
    # nothing is resized or cut: the map is the detector's
    expected = detector.score(Image.open(new / "good.png"))[1]
    np.testing.assert_allclose(np.load("predictions/maps/good.npy"), expected, rtol=1e-5)


def test_what_is_not_read_or_not_used_is_noted(run, refused, command, new):
    exif = Image.Exif()
    exif[274] = 6  # turn it by 90 degrees
    Image.open(new / "good.png").save(new / "turned.jpg", exif=exif)
    for number in range(9):
        (new / f"{number}.heic").touch()
    done = run(*command, new)
    assert done.returncode == 0
    title, *notes = done.stdout.splitlines()[1:-2]
    assert "to use the options in them, fit the model again with them" in title
    (ignored,) = [note for note in notes if "not read (.heic): 9, for example" in note]
    (turned,) = [note for note in notes if "EXIF" in note]
    assert str(new / "turned.jpg") in turned
    assert len(notes) == 2  # folders in folders are welcome
    shutil.rmtree(new / "line 1")
    for name in ("good.png", "turned.jpg"):
        (new / name).unlink()
    assert "no images in" in (line := refused(*command, new))
    assert "not read (.heic): 9, for example" in line


def test_image_unlike_the_training_images_or_mostly_cut_off_is_noted(
    run, command, detector, new, monkeypatch
):
    monkeypatch.setattr(detector.model, "image_kinds", [Header((120, 96), "RGB", "PNG")])
    detector.save("bolt.safetensors")
    write_image(new / "wide.png", good_images(1, (96, 480))[0])
    write_image(new / "grey.bmp", good_images(1)[0][..., 0])
    notes = run(*command, new).stdout.splitlines()[2:-2]
    differ = [note for note in notes if "3, for example" in note]
    assert "images that differ from the training images in format and mode and shape" in differ[0]
    assert "(the network sees 14 to 58 % of each image; --crop 0 shows it all)" in notes
    assert "differ" not in run(*command, new / "good.png").stdout


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
    for number in range(3):
        shutil.copy(new / "good.png", new / f"{number}.png")
    of_image = features_bytes(detector.model.extractor.channels, (80, 80))
    pair = memory.network_bytes(2, 80 * 80, of_image, aligned=False, on_gpu=False)
    pair += 2 * (memory.BATCH_BYTES * 80 * 80 + memory.ORIGINAL_BYTES * 127 * 151)
    monkeypatch.setattr(memory, "free_bytes", lambda: memory.LIBRARY_BYTES + pair)
    done = run(*command, new)
    assert done.returncode == 0
    assert "--batch_size 8 is lowered to 2, which fits into the free memory" in done.stdout
    assert scored == [2, 2, 1]
    monkeypatch.setattr(memory, "free_bytes", lambda: memory.LIBRARY_BYTES)
    message = "megapixels would take about 0.2 GB of memory, 0.1 GB are free: end other programs"
    assert message in refused(*command, new)
    assert message in run(*command, "-").stderr


def test_name_that_is_not_utf8_is_spelled_out(run, command, new):
    shutil.copy(new / "good.png", os.fsdecode(b"\xff.png"))
    Path(os.fsdecode(b"\xfe.png")).write_text("no image")
    done = run(*command, os.fsdecode(b"\xff.png"), os.fsdecode(b"\xfe.png"))
    assert done.returncode == 1
    assert [row["path"] for row in read_rows()] == [r"\udcff.png", r"\udcfe.png"]
    assert r"\udcfe.png" in read_rows()[1]["error"]
    assert sorted(os.listdir(b"predictions/overlays")) == [MARKER.encode(), b"\xff.jpg"]


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
    touch("in/@eaDir/b.png", "in/a/__MACOSX/y.tif")
    expected = [("x.bmp", "x"), ("in/a/y.tif", "a/y"), ("in/a/z.jpeg", "a/z"), ("in/b.PNG", "b")]
    assert find("x.bmp", "in") == expected
    assert find("in", Path("in/b.PNG").absolute()) == expected[1:]  # each only once


def test_equal_names_are_numbered(touch):
    touch("1/a.png", "1/a.jpg", "2/A.png", "2/a_2.png")
    expected = [("1/a.jpg", "a"), ("1/a.png", "a_2"), ("2/A.png", "A_3"), ("2/a_2.png", "a_2_2")]
    assert find("1", "2") == expected


def test_links_are_followed_and_loops_end(touch):
    touch("in/a/b.png", "elsewhere/c.png")
    Path("in/a/loop").symlink_to("..")
    Path("in/elsewhere").symlink_to("../elsewhere")
    Path("in/self.png").symlink_to("self.png")
    os.mkfifo("in/pipe.png")  # reading it would never end
    assert [path for path, _ in find("in")] == ["in/a/b.png", "in/elsewhere/c.png", "in/self.png"]


def test_results_are_not_scored(touch):
    touch("a.png", f"out/overlays/{MARKER}", "out/overlays/a.png", "out/b.png")
    touch(f"earlier/masks/{MARKER}", "earlier/masks/d.png")
    assert [path for path, _ in find(".")] == ["a.png", "out/b.png"]
    for given in ("out/overlays/a.png", "out/overlays"):
        with pytest.raises(ValueError, match=f"{given} is among the results in --output; choose"):
            find(given)


def test_folder_that_cannot_be_read_is_named(touch, monkeypatch):
    touch("in/a.png")

    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(ValueError, match="Permission denied: 'in'; make it readable"):
        find("in")
