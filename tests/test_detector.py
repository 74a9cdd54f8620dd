import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from datasets.images import open_image
from datasets.preprocessing import Preprocessing
from tests.helpers import SMALL, call, defective, good_images, turned_parts, write_image
from utils.backbone import draw_channels
from utils.detector import Detector

WHOLE = np.ones((96, 120), dtype=bool)
README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def detector(weights):
    return Detector.fit(good_images(), "resnet18", weights, SMALL, device="cpu", name="bolt")


def test_defect_scores_above_the_threshold_and_where_it_is(detector):
    score, anomaly_map = detector.score(defective())
    assert (anomaly_map.shape, anomaly_map.dtype) == ((80, 80), np.float32)
    assert score == anomaly_map.max() >= detector.model.thresholds.image
    assert detector.pose(defective()) is None
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    # the crop takes away 8 rows and 20 columns
    assert 12 <= row < 36
    assert 28 <= column < 52


def test_seed_number_of_channels_and_rate_are_used(weights):
    model = Detector.fit(
        good_images(6), weights=weights, preprocessing=SMALL, seed=1, n_features=7, target_fpr=0.3
    ).model
    assert model.extractor.channels == draw_channels("resnet18", 1, 7)
    assert (model.thresholds.target_fpr, len(model.thresholds.good_scores)) == (0.3, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "resnet19"}, "unknown arch 'resnet19'; choose from resnet18, resnet34"),
        ({"precision": "int8"}, "unknown precision 'int8'; choose from float32"),
        ({"target_fpr": 0.0}, r"0\.0 is no rate; give one between 0 and 1"),
        ({"target_fpr": 1}, "1 is no rate"),
        ({"pixel_fpr": 1.5}, r"1\.5 is no rate"),
        ({"align": "yes"}, "unknown align 'yes'; choose from off, on, auto"),
        ({"image_score": "mean"}, "unknown image_score 'mean'; choose from max, top"),
        ({"preprocessing": Preprocessing(48, 64)}, "--crop 64 is larger than --resize 48"),
        ({"preprocessing": Preprocessing(0, 100)}, "120x96 pixels .* needs 100 on each side"),
        ({"device": "tpu"}, "tpu is not on this machine"),
        ({"region": np.ones((96, 120), int)}, r"region is int64 \(96, 120\); give bool, True"),
        ({"region": WHOLE[:9, :9]}, r"bool \(9, 9\); .* all images, \(96, 120\)"),
        ({"region": ~WHOLE}, "True where defects matter"),
        (
            {"region": WHOLE, "align": "on", "preprocessing": Preprocessing(48, 32)},
            r"bool \(96, 120\); .* the template, \(48, 60\)",
        ),
        ({"images": good_images(2)}, "images has 2 good images; give 3 or more that"),
        ({"images": 5 * good_images(1)}, "5 good images; give 3 or more that differ"),
        (
            {
                "images": [*good_images(2), *good_images(1, (120, 96))],
                "preprocessing": Preprocessing(48, 0),
            },
            r"image 2 of images is \(3, 60, 48\) for the network, .* give images of one shape",
        ),
    ],
)
def test_unacceptable_settings_and_images_are_refused(weights, settings, message):
    with pytest.raises(ValueError, match=message):
        Detector.fit(**{"images": good_images(3), "weights": weights} | settings)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((48, 60, 3), np.float32), r"float32 \(48, 60, 3\)"),
        (np.zeros((48, 60), np.uint8), r"uint8 \(48, 60\)"),
        (np.zeros((3, 48, 60), np.uint8), r"uint8 \(3, 48, 60\)"),
        ("a.png", "<class 'str'>"),
        (np.zeros((0, 5, 3), np.uint8), "5x0 pixels"),
        (Image.new("L", (5, 0)), "5x0 pixels"),
    ],
)
def test_anything_but_an_image_is_refused(detector, image, kind):
    with pytest.raises(ValueError, match=f"the image (is|has) {kind}; give (a PIL image|at least)"):
        detector.score(image)


@pytest.mark.parametrize(
    ("preprocessing", "size", "message"),
    [
        (Preprocessing(0, 40), (48, 39), "39x48 pixels, for the network 39x48; .* 40x40 or more"),
        (Preprocessing(0, 0), (60, 48), "48x60 pixels, for the network 48x60; .* takes 60x48$"),
        (Preprocessing(40, 0), (40, 40), "40x40 pixels, for the network 40x40; .* takes 50x40$"),
        # with its context the window is 48x48, or as much of it as the training images have
        (Preprocessing(0, 40, context=4), (60, 47), "47x60 pixels, .* takes 48x48 or more"),
        (Preprocessing(0, 40, context=99), (60, 59), "59x60 pixels, .* takes 60x48$"),
        (Preprocessing(64, 48), (1, 40000), "the image, 40000x1 pixels, would have 2560000x64"),
    ],
)
def test_image_of_another_size_is_refused(weights, preprocessing, size, message):
    images = good_images(3, (48, 60))
    detector = Detector.fit(images, weights=weights, preprocessing=preprocessing)
    assert detector.score(images[0])[1].shape == detector.model.image_size
    assert detector.prepare(images[0]).shape == (3, *detector.model.window_size)
    with pytest.raises(ValueError, match=message):
        detector.score(np.zeros((*size, 3), np.uint8))


def test_pil_images_of_any_orientation_and_bit_depth_score_as_arrays(weights, tmp_path):
    """Grey images of 12 bits that lie on their side score as the upright ones of 8 bits."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    plain = [pixels[..., [0, 0, 0]] for pixels in (*good_images(3), defective())]
    odd = [tmp_path / f"{i}.png" for i in range(len(plain))]
    for path, image in zip(odd, plain, strict=True):
        pixels = np.rot90(image[..., 0].astype(int) * 4095 // 255).astype(np.uint16)
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=tags)
    expected = Detector.fit(plain[:3], weights=weights, preprocessing=SMALL)
    preprocessing = SMALL._replace(exif=True, bit_depth=12)
    detector = Detector.fit(map(Image.open, odd[:3]), "resnet18", weights, preprocessing)
    for image in (Image.open(odd[3]), open_image(odd[3])):
        assert detector.score(image)[0] == pytest.approx(expected.score(plain[3])[0], rel=1e-3)
    detector.save(tmp_path / "m")
    names = ["--model", tmp_path / "m", "--weights", weights, "--output", tmp_path / "out"]
    assert call("predict", odd[3], *names).returncode == 0
    assert Image.open(tmp_path / "out/overlays/3.jpg").size == (120, 96)


def test_the_readmes_lines_run(weights, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "utils.detector" in block)
    monkeypatch.chdir(tmp_path)
    for i, pixels in enumerate(good_images(3)):
        write_image(Path(f"my_images/good/{i:03}.png"), pixels)
    write_image(Path("my_images/broken/000.png"), defective())
    Path("resnet18-f37072fd.pth").symlink_to(weights)
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+\.\d+ True \(224, 224\)\n", capsys.readouterr().out)
    assert Path("bottle.safetensors").is_file()


def test_copies_of_an_image_do_not_lower_the_thresholds(weights):
    settings = {"weights": weights, "preprocessing": SMALL, "n_features": 7}
    images = good_images(6)
    once = Detector.fit(images, **settings).model.thresholds
    twice = Detector.fit([*images, *images], **settings).model.thresholds
    assert len(twice.good_scores) == 6
    # each distance is by five images once, or by ten of which two are equal
    np.testing.assert_allclose(twice.good_scores, once.good_scores, rtol=0.2)


def test_settings_of_the_recommended_kind_are_learnt(weights):
    settings = {"shrinkage": "auto", "align": "on", "image_score": "top", "pixel_fpr": 0.05}
    images, preprocessing = turned_parts(9), Preprocessing(0, 64)
    detector = Detector.fit(images[:8], "resnet18", weights, preprocessing, **settings)
    model = detector.model
    assert (model.image_size, model.window_size) == ((64, 64), (80, 80))
    assert 0 < model.gaussians.shrinkage < 1
    assert (model.thresholds.pixel_fpr, model.view.alignment.image_size) == (0.05, (80, 80))
    score, anomaly_map = detector.score(images[8])
    highest = np.sort(anomaly_map, axis=None)[-41:]  # 1 % of 64 x 64 pixels
    assert score == pytest.approx(highest.mean(dtype=np.float64), rel=1e-5)
    turned = detector.pose(Image.fromarray(images[8]).rotate(30, fillcolor=(40, 50, 60)))
    angle = turned.angle - detector.pose(images[8]).angle
    assert angle.item() % 360 == pytest.approx(30, abs=2)


def test_only_anomalous_images_have_regions_and_only_about_peaks(detector):
    thresholds, anomaly_map = detector.model.thresholds, np.zeros((80, 80), np.float32)
    assert thresholds.pixel < thresholds.peak
    anomaly_map[10:20, 10:20] = 2 * thresholds.peak
    anomaly_map[50:60, 50:60] = (thresholds.pixel + thresholds.peak) / 2
    (region,) = detector.find_regions(anomaly_map, (120, 96))
    assert region.score == 2 * thresholds.peak
    anomaly_map[10:20, 10:20] = np.nextafter(np.float32(thresholds.image), np.float32(0))
    assert detector.find_regions(anomaly_map, (120, 96)) == []
