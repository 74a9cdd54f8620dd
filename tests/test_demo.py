import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from datasets import demo

ROOT = Path(demo.__file__).parents[1]
DEFECTS = ("patch", "scratch", "stain")
# a change ends this many pixels beyond the mask: where the smoothing does
FADING = {"patch": 2, "scratch": 2, "stain": 18}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small(monkeypatch):
    """The set cut down to one class of a few images."""
    monkeypatch.setattr(demo, "CLASS_NAMES", ("brick",))
    # the donor of brick's easy patches has to be loaded too, so there are none
    monkeypatch.setattr(demo, "FOREIGN_STRENGTH", 2.0)
    monkeypatch.setattr(demo, "COUNTS", {"train/good": 2, "test/patch": 2})


def read(path):
    return np.asarray(Image.open(path))


def hash_files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def defect_paths(folder):
    """Every (class, defect type, number, image, mask) of the set."""
    found = []
    for mask in sorted(folder.glob("*/ground_truth/*/*_mask.png")):
        class_name, _, defect, name = mask.relative_to(folder).parts
        stem = name.removesuffix("_mask.png")
        image = folder / class_name / "test" / defect / f"{stem}.png"
        found.append((class_name, defect, int(stem), image, mask))
    assert len(found) == 5 * 3 * 6
    return found


def photos_of(class_names):
    return {class_name: demo._load_photo(class_name) for class_name in class_names}


def test_layout_is_mvtec(folder):
    expected = set()
    for class_name in ("brick", "grass", "gravel", "coffee", "rocket"):
        expected |= {f"{class_name}/train/good/{i:03}.png" for i in range(40)}
        expected |= {f"{class_name}/test/good/{i:03}.png" for i in range(10)}
        for defect in DEFECTS:
            expected |= {f"{class_name}/test/{defect}/{i:03}.png" for i in range(6)}
            expected |= {f"{class_name}/ground_truth/{defect}/{i:03}_mask.png" for i in range(6)}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == expected


def test_textures_are_grey_and_objects_rgb(folder):
    shapes = {
        class_name: {read(path).shape for path in (folder / class_name).glob("t*/*/*.png")}
        for class_name in demo.CLASS_NAMES
    }
    assert shapes == {
        "brick": {(256, 256)},
        "grass": {(256, 256)},
        "gravel": {(256, 256)},
        "coffee": {(256, 256, 3)},
        "rocket": {(256, 256, 3)},
    }


def test_no_two_images_are_equal(folder):
    hashes = [h for name, h in hash_files(folder).items() if "ground_truth" not in name]
    assert len(set(hashes)) == len(hashes) == 5 * (40 + 10 + 18)


def test_masks_are_black_and_white_and_as_large_as_the_images(folder):
    for *_, image, mask in defect_paths(folder):
        pixels = read(mask)
        assert pixels.shape == read(image).shape[:2]
        assert pixels.dtype == np.uint8
        assert set(np.unique(pixels)) == {0, 255}, mask


def test_defects_lie_inside_the_centre_crop(folder):
    for *_, mask in defect_paths(folder):
        inside = np.zeros((256, 256), dtype=bool)
        inside[16:-16, 16:-16] = True
        pixels = read(mask) > 0
        assert pixels[inside].sum() >= 10, mask
        assert not pixels[~inside].any(), mask


def test_object_defects_lie_on_the_object(folder):
    for class_name, *_, mask in defect_paths(folder):
        if class_name in demo.OBJECTS:
            top, left, bottom, right = demo.OBJECT_AREAS[class_name]
            assert (read(mask)[top:bottom, left:right] > 0).any(), mask


def test_defect_changes_what_the_mask_marks_and_nothing_far_from_it(folder):
    photos = photos_of(demo.CLASS_NAMES)
    for class_name, defect, index, image, mask in defect_paths(folder):
        group = f"test/{defect}"
        rng = np.random.default_rng(
            (demo.CLASS_NAMES.index(class_name), list(demo.COUNTS).index(group), index)
        )
        before = demo._to_uint8(demo._draw_good(photos[class_name], class_name, rng))
        change = np.abs(read(image).astype(float) - before)
        change = change.reshape(256, 256, -1).max(axis=2)
        marked = read(mask) > 0
        assert (change[marked] > 0).mean() > 0.8, image
        assert change[marked].mean() > 1.5, image
        assert change[distance_transform_edt(~marked) > FADING[defect]].max() == 0, image


def test_easier_defects_are_larger(folder):
    def area(defect, index):
        masks = list(folder.glob(f"*/ground_truth/{defect}/{index:03}_mask.png"))
        assert len(masks) == 5
        return np.mean([(read(mask) > 0).sum() for mask in masks])

    for defect in DEFECTS:
        assert area(defect, 5) > 2 * area(defect, 0), defect


def test_objects_keep_their_pose_and_textures_do_not(folder):
    def spread(class_name):
        images = [read(folder / class_name / f"train/good/{i:03}.png") for i in range(8)]
        pixels = np.stack(images)[:, 16:-16, 16:-16].astype(float)
        return pixels.std(axis=0).mean() / pixels.std()

    spreads = {class_name: spread(class_name) for class_name in demo.CLASS_NAMES}
    assert max(spreads[name] for name in demo.OBJECTS) < 0.3, spreads
    assert min(spreads[name] for name in demo.TEXTURES) > 0.6, spreads


def test_image_does_not_depend_on_what_was_drawn_before(folder):
    photos = photos_of(("grass", "brick"))
    image, mask = demo._draw(photos, "grass", "test/patch", 4)
    assert np.array_equal(image, read(folder / "grass/test/patch/004.png"))
    assert np.array_equal(mask, read(folder / "grass/ground_truth/patch/004_mask.png"))


@pytest.mark.usefixtures("small")
def test_two_builds_are_equal(tmp_path):
    first = hash_files(demo.make_demo(tmp_path / "a"))
    second = hash_files(demo.make_demo(tmp_path / "b"))
    assert len(first) == 2 + 2 + 2
    assert first == second


@pytest.mark.usefixtures("small")
def test_second_call_draws_nothing(tmp_path, monkeypatch):
    folder = demo.make_demo(tmp_path)
    changed = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    monkeypatch.setattr(demo, "_write_set", lambda _: pytest.fail("drew again"))
    assert demo.make_demo(tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == changed


@pytest.mark.usefixtures("small")
def test_build_leaves_only_the_set_in_the_cache(tmp_path):
    assert list(demo.make_demo(tmp_path).parent.iterdir()) == [tmp_path / demo.VERSION]


@pytest.mark.usefixtures("small")
def test_interrupted_build_leaves_nothing_and_the_next_succeeds(tmp_path, monkeypatch):
    written = []

    def write_image(path, pixels):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        original(path, pixels)

    original = demo._write_image
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_image", write_image)
        with pytest.raises(KeyboardInterrupt):
            demo.make_demo(tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []
    assert len(hash_files(demo.make_demo(tmp_path))) == 6


@pytest.mark.usefixtures("small")
def test_set_of_a_faster_process_is_kept(tmp_path, monkeypatch):
    theirs = tmp_path / demo.VERSION / "theirs.png"

    def write_set(folder):
        original(folder)
        theirs.parent.mkdir()
        theirs.touch()

    original = demo._write_set
    monkeypatch.setattr(demo, "_write_set", write_set)
    assert demo.make_demo(tmp_path) == theirs.parent
    assert list(theirs.parent.iterdir()) == [theirs]
    assert list(tmp_path.iterdir()) == [theirs.parent]


def test_cache_that_is_a_file_is_reported(tmp_path):
    cache = tmp_path / "cache"
    cache.touch()
    with pytest.raises(OSError, match=r"cannot make the demo set in .*cache: .*XDG_CACHE_HOME"):
        demo.make_demo(cache)


@pytest.mark.usefixtures("small")
def test_file_in_place_of_the_set_is_reported(tmp_path):
    (tmp_path / demo.VERSION).touch()
    with pytest.raises(OSError, match=r"cannot make the demo set in .*XDG_CACHE_HOME"):
        demo.make_demo(tmp_path)


@pytest.mark.usefixtures("small")
def test_default_cache_is_below_xdg_cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.make_demo() == tmp_path / "padim" / "demo-v1"


@pytest.mark.parametrize("value", [None, "", "relative"])
@pytest.mark.usefixtures("small")
def test_default_cache_is_in_the_home_folder_without_xdg_cache_home(value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert demo.make_demo() == tmp_path / ".cache" / "padim" / "demo-v1"


def test_missing_home_folder_is_reported(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(demo.Path, "home", no_home)
    with pytest.raises(OSError, match=r"no cache folder .* home directory.*XDG_CACHE_HOME"):
        demo.make_demo()


def test_import_is_cheap_and_creates_nothing(tmp_path):
    code = "import sys, datasets.demo; print({'torch', 'skimage', 'scipy'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
    assert list(tmp_path.iterdir()) == []
