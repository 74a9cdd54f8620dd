import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from datasets.images import Preprocessing, crop_box
from datasets.loading import Loader
from tests.conftest import write_image
from tests.test_detector import SMALL, defective, good_images
from utils.commands import predict
from utils.commands.predict import COLUMNS, find_images, find_peak
from utils.detector import Detector

RED = (255, 0, 0)


def fit(weights, folder, preprocessing):
    path = folder / "bolt.safetensors"
    Detector.fit(good_images(5), "resnet18", weights, preprocessing, name="bolt").save(path)
    return path


@pytest.fixture(scope="module")
def weights(random_weights):
    return random_weights("resnet18")


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return fit(weights, tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture
def command(model, weights):
    return ["predict", "--model", model, "--weights", weights]


@pytest.fixture
def new(tmp_path):
    """A folder with a good image and one with a defect, of odd sizes."""
    write_image(tmp_path / "new/good.png", good_images(1)[0])
    write_image(tmp_path / "new/line 1/größe.png", defective((127, 151)))
    return tmp_path / "new"


def read_rows(folder="predictions"):
    with Path(folder, "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_rows_say_what_detector_says(run, command, model, weights, new):
    done = run(*command, new)
    assert done.returncode == 0, done.stderr
    detector = Detector.load(model, weights)
    thresholds = detector.model.thresholds
    rows = read_rows()
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [f"{new}/good.png", f"{new}/line 1/größe.png"]
    for row in rows:
        score = detector.score(Image.open(row["path"]))[0]
        assert float(row["score"]) == pytest.approx(score, rel=1e-4)  # another batch
        assert float(row["threshold"]) == thresholds.image
        assert row["anomalous"] == str(int(score >= thresholds.image))
        assert float(row["good_below"]) == thresholds.fraction_below(score)
        assert row["error"] == ""
    assert rows[1]["anomalous"] == "1"
    assert rows[1]["good_below"] == "1.0"


def test_peak_is_in_the_defect(run, command, tmp_path):
    write_image(tmp_path / "tall.png", defective((253, 127)))
    assert run(*command, "tall.png").returncode == 0
    (row,) = read_rows()
    # the defect is at 20:44, 48:72, but only rows from 76 on are in the crop
    assert int(row["peak_row"]) >= 76
    write_image(tmp_path / "wide.png", defective((97, 121)))
    assert run(*command, "wide.png").returncode == 0
    (row,) = read_rows()
    assert 20 <= int(row["peak_row"]) < 44
    assert 48 <= int(row["peak_column"]) < 72


@pytest.mark.parametrize("row", [0, 39, 79])
@pytest.mark.parametrize("size", [(97, 121), (121, 97), (33, 50), (800, 333)])
def test_peak_is_the_pixel_that_the_network_saw_there(size, row):
    anomaly_map = np.zeros((80, 80), np.float32)
    anomaly_map[row, 11] = 1
    width, height = size
    scale = 96 / min(size)
    resized = int(scale * width + 1e-9), int(scale * height + 1e-9)
    peak_row, peak_column = find_peak(anomaly_map, crop_box(size, SMALL))
    assert peak_row == int((row + round((resized[1] - 80) / 2) + 0.5) * height / resized[1])
    assert peak_column == int((11 + round((resized[0] - 80) / 2) + 0.5) * width / resized[0])


def test_overlay_has_the_images_size_and_is_bare_outside_the_crop(run, command, new):
    assert run(*command, new).returncode == 0
    overlay, image = (
        pixels("predictions/overlays/line 1/größe.png"),
        pixels(new / "line 1/größe.png"),
    )
    assert overlay.shape == image.shape == (127, 151, 3)
    # the crop is 80 / 96 of the height, 10.6 to 116.4, and 22.6 to 128.4 of the width
    outside = np.ones((127, 151), bool)
    outside[11:116, 23:128] = False
    np.testing.assert_array_equal(overlay[outside], image[outside])
    assert (overlay != image).any(axis=2)[~outside].mean() > 0.95
    assert (overlay == RED).all(axis=2).sum() > 20


def test_colours_are_those_of_a_scale_up_to_twice_the_pixel_threshold(
    run, command, model, weights, new
):
    run(*command, "--maps", "npy", new / "good.png")
    anomaly_map = np.load("predictions/maps/good.npy")
    threshold = Detector.load(model, weights).model.thresholds.pixel
    share = (anomaly_map / (2 * threshold)).clip(0, 1)
    expected = colormaps["jet"](share, bytes=True)[..., :3] / 2 + pixels(new / "good.png") / 2
    drawn = pixels("predictions/overlays/good.png").astype(float)
    inside = ~np.isnan(anomaly_map) & (drawn != RED).any(axis=2)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(drawn[inside], expected[inside], atol=1)


def test_only_a_batch_is_read_ahead(run, command, new, monkeypatch):
    asked = []

    class Spy(Loader):
        def __init__(self, *arguments, read_ahead):
            asked.append((arguments[1], read_ahead))
            super().__init__(*arguments, read_ahead=read_ahead)

    monkeypatch.setattr(predict, "Loader", Spy)
    run(*command, "--batch_size", "3", new)
    assert asked == [(3, 0)]


def test_maps_are_of_the_images_size(run, command, new):
    assert run(*command, new, "--maps", "npy").returncode == 0
    assert run(*command, new, "--maps", "png").returncode == 0
    exact = np.load("predictions/maps/line 1/größe.npy")
    steps = pixels("predictions/maps/line 1/größe.png")
    assert (exact.shape, exact.dtype) == ((127, 151), np.float32)
    assert (steps.shape, steps.dtype) == ((127, 151), np.uint16)
    inside = np.isfinite(exact)
    assert inside.sum() == (116 - 11) * (128 - 23)
    np.testing.assert_allclose(steps[inside] / 100, exact[inside], atol=0.0051)
    assert not steps[~inside].any()
    peak = read_rows()[1]
    assert exact[int(peak["peak_row"]), int(peak["peak_column"])] > 0.99 * np.nanmax(exact)


def test_png_maps_are_clipped(tmp_path):
    anomaly_map = np.array([[0, 1.234, 655.35, 656, np.nan]], np.float32)
    predict.write_map(tmp_path / "a.png", anomaly_map)
    assert pixels(tmp_path / "a.png").tolist() == [[0, 123, 65535, 65535, 0]]


def test_no_maps_are_written_unasked(run, command, new):
    assert run(*command, new).returncode == 0
    assert sorted(os.listdir("predictions")) == ["overlays", "predictions.csv"]


def test_batches_and_threads_do_not_matter(run, command, new):
    for i in range(4):
        write_image(new / f"{i}.png", good_images(i + 1, (96 + i, 120))[i])
    assert (
        run(*command, new, "--output", "a", "--batch_size", 1, "--num_workers", 0).returncode == 0
    )
    assert run(*command, new, "--output", "b", "--batch_size", 4).returncode == 0
    ours, others = read_rows("a"), read_rows("b")
    assert [row["path"] for row in ours] == [row["path"] for row in others]
    for one, other in zip(ours, others, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)
    assert len(ours) == 6


@pytest.mark.parametrize(("threshold", "anomalous"), [("0", "1"), ("1e9", "0")])
def test_threshold_of_choice_decides(run, command, new, threshold, anomalous):
    done = run(*command, new, "--threshold", threshold)
    assert {row["anomalous"] for row in read_rows()} == {anomalous}
    assert {float(row["threshold"]) for row in read_rows()} == {float(threshold)}
    assert "good images support" not in done.stdout


def test_score_on_the_threshold_is_anomalous(run, command, new):
    run(*command, new / "good.png")
    run(*command, new / "good.png", "--threshold", read_rows()[0]["score"])
    assert read_rows()[0]["anomalous"] == "1"


def test_summary_counts_and_gives_the_caveat(run, command, new):
    done = run(*command, new)
    assert done.stdout.startswith("bolt, resnet18 on cpu (")
    n = sum(int(row["anomalous"]) for row in read_rows())
    assert f"\n2 images, {n} anomalous (score >= " in done.stdout
    assert ", 0 not scored; results in predictions\n" in done.stdout
    assert "(5 good images support a rate of false alarms of 0.17, not of 0.01)" in done.stdout


def test_bad_image_is_a_row_and_the_others_go_on(run, command, new):
    (new / "damaged.png").write_bytes((new / "good.png").read_bytes()[:500])
    (new / "broken link.png").symlink_to("nowhere.png")
    done = run(*command, new)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    rows = {Path(row["path"]).name: row for row in read_rows()}
    assert rows["damaged.png"]["error"] in done.stderr
    assert "cannot read image" in rows["damaged.png"]["error"]
    assert rows["damaged.png"]["score"] == rows["damaged.png"]["anomalous"] == ""
    assert "No such file" in rows["broken link.png"]["error"]
    assert float(rows["good.png"]["score"]) > 0
    assert float(rows["größe.png"]["score"]) > 0
    assert "4 images" in done.stdout
    assert "2 not scored" in done.stdout
    assert not Path("predictions/overlays/damaged.png").exists()


def test_batch_of_bad_images_alone_passes(run, command, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    assert run(*command, "a.png").returncode == 1
    assert read_rows()[0]["error"].startswith("cannot read image a.png: not an image")


def test_image_of_another_size_is_a_row_when_nothing_is_cut(run, weights, tmp_path, new):
    path = fit(weights, tmp_path, Preprocessing(0, 0))
    done = run("predict", "--model", path, "--weights", weights, "--maps", "npy", new)
    assert done.returncode == 1
    assert done.stderr.endswith("for the network 151x127; this model takes 120x96\n")
    # nothing is resized or cut: the map is the detector's own
    expected = Detector.load(path, weights).score(Image.open(new / "good.png"))[1]
    np.testing.assert_allclose(np.load("predictions/maps/good.npy"), expected, rtol=1e-5)


def test_interrupt_keeps_the_rows_so_far(run, command, new, monkeypatch):
    finish = predict.finish_image

    def interrupted(*arguments):
        if arguments[4].path.name != "good.png":
            raise KeyboardInterrupt
        return finish(*arguments)

    monkeypatch.setattr(predict, "finish_image", interrupted)
    done = run(*command, new, "--batch_size", 1)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("interrupted; the rows so far are in predict")
    assert [Path(row["path"]).name for row in read_rows()] == ["good.png"]
    assert sorted(os.listdir("predictions")) == ["overlays", "predictions.csv"]


def test_disk_that_fills_up_is_one_line_and_keeps_the_rows(refused, command, new, monkeypatch):
    save = Image.Image.save

    def full(image, path, **settings):
        if "größe" in str(path):
            raise OSError("No space left on device")
        save(image, path, **settings)

    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left on device" in refused(*command, new)
    assert len(read_rows()) == 1


def test_name_that_is_not_utf8_is_spelled_out(run, command, new):
    shutil.copy(new / "good.png", os.fsdecode(b"\xff.png"))
    Path(os.fsdecode(b"\xfe.png")).write_text("no image")
    done = run(*command, os.fsdecode(b"\xff.png"), os.fsdecode(b"\xfe.png"))
    assert done.returncode == 1
    assert [row["path"] for row in read_rows()] == [r"\udcff.png", r"\udcfe.png"]
    assert r"\udcfe.png" in read_rows()[1]["error"]
    assert os.listdir(b"predictions/overlays") == [b"\xff.png"]


def names(given, output="out"):
    return [(str(source.path), source.name) for source in find_images(given, Path(output))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def touch(*paths):
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return touch


def test_folders_are_searched_at_any_depth_in_order(here):
    here("in/b.PNG", "in/a/z.jpeg", "in/a/y.tif", "in/c.txt", "in/.d.png", "in/.e/f.png", "x.bmp")
    expected = [("x.bmp", "x"), ("in/a/y.tif", "a/y"), ("in/a/z.jpeg", "a/z"), ("in/b.PNG", "b")]
    assert names([Path("x.bmp"), Path("in")]) == expected


def test_equal_names_are_numbered(here):
    here("1/a.png", "1/a.jpg", "2/A.png", "2/a_2.png")
    expected = [
        ("1/a.jpg", "a"),
        ("1/a.png", "a_2"),
        ("2/A.png", "A_3"),
        ("2/a_2.png", "a_2_2"),
    ]
    assert names([Path("1"), Path("2")]) == expected


def test_image_that_is_given_twice_is_scored_once(here):
    here("in/a.png")
    given = [Path("in"), Path("in/a.png"), Path("in").absolute()]
    assert names(given) == [("in/a.png", "a")]


def test_links_are_followed_and_loops_end(here):
    here("in/a/b.png", "elsewhere/c.png")
    Path("in/a/loop").symlink_to("..")
    Path("in/elsewhere").symlink_to("../elsewhere")
    Path("in/link.png").symlink_to("a/b.png")
    Path("in/self.png").symlink_to("self.png")
    found = [path for path, _ in names([Path("in")])]
    assert found == ["in/a/b.png", "in/elsewhere/c.png", "in/link.png", "in/self.png"]


def test_pipe_is_no_image(here):
    here("in/a.png")
    os.mkfifo("in/pipe.png")
    assert names([Path("in")]) == [("in/a.png", "a")]


def test_earlier_results_are_not_scored(here):
    here("a.png", "out/overlays/a.png", "out/maps/a.png", "out/b.png")
    assert [path for path, _ in names([Path()])] == ["a.png", "out/b.png"]


@pytest.mark.parametrize("given", ["out/overlays/a.png", "out/overlays", "out/maps/b"])
def test_earlier_results_are_refused(here, given):
    here("out/overlays/a.png", "out/maps/b/c.png")
    with pytest.raises(ValueError, match=f"{given} is among the results in --output; choose"):
        names([Path(given)])


def test_folder_that_cannot_be_read_is_named(here, monkeypatch):
    here("in/a.png")

    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))
