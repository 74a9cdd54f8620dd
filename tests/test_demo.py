import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from datasets import demo

DEFECTS = ("patch", "scratch", "stain")
# pixels around the mask that a defect may change: as far as it is smoothed
FADING = {"patch": 2, "scratch": 2, "stain": 18}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The set with fewer good images; each has a seed of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "COUNTS", demo.COUNTS | {"train/good": 8, "test/good": 3})
        return demo.make_demo(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small(monkeypatch):
    """The set cut down to one class of a few images."""
    monkeypatch.setattr(demo, "CLASS_NAMES", ("brick",))
    monkeypatch.setattr(demo, "COUNTS", {"train/good": 2, "test/stain": 2})


def read(path):
    return np.asarray(Image.open(path))


def hash_files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


@pytest.fixture(scope="module")
def defects(folder):
    """Class, defect type and number of every defect, its image and mask > 0."""
    masks = sorted(folder.glob("*/ground_truth/*/*_mask.png"))
    found = {}
    for mask in masks:
        class_name, _, defect, name = mask.relative_to(folder).parts
        stem = name.removesuffix("_mask.png")
        pixels = read(mask)
        assert set(np.unique(pixels)) == {0, 255}, mask
        image = read(folder / class_name / "test" / defect / f"{stem}.png")
        found[class_name, defect, int(stem)] = image, pixels > 0
    assert len(found) == 6 * 3 * 6
    return found


def test_files_are_in_mvtec_s_layout_and_all_different(folder):
    expected = set()
    for class_name in ("brick", "grass", "gravel", "coffee", "rocket", "cup"):
        expected |= {f"{class_name}/train/good/{i:03}.png" for i in range(8)}
        expected |= {f"{class_name}/test/good/{i:03}.png" for i in range(3)}
        for defect in DEFECTS:
            expected |= {f"{class_name}/test/{defect}/{i:03}.png" for i in range(6)}
            expected |= {f"{class_name}/ground_truth/{defect}/{i:03}_mask.png" for i in range(6)}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == expected
    hashes = [digest for name, digest in hash_files(folder).items() if "ground_truth" not in name]
    assert len(set(hashes)) == len(hashes) == 6 * (8 + 3 + 18)


def test_defects_of_grey_textures_and_rgb_objects_are_within_the_centre_crop(defects):
    for name, (image, marked) in defects.items():
        assert image.shape == (256, 256, 3)[: 2 if name[0] in demo.TEXTURES else 3], name
        assert marked.sum() >= 10, name
        assert marked[16:-16, 16:-16].sum() == marked.sum(), name
        top, left, bottom, right = demo.LOOKS[name[0]].area
        assert marked[top:bottom, left:right].any(), name


def test_a_defect_changes_the_pixels_of_its_mask_and_none_far_from_it(defects):
    photos = {class_name: demo._load_photo(class_name) for class_name in demo.CLASS_NAMES}
    for name, (image, marked) in defects.items():
        class_name, defect, index = name
        numbers = demo.CLASS_NAMES.index(class_name), list(demo.COUNTS).index(f"test/{defect}")
        # the seed of the image alone: none depends on those drawn before
        rng = np.random.default_rng((*numbers, index))
        look = demo.LOOKS[class_name]
        before = demo._draw_good(photos[class_name], look, rng).round().clip(0, 255)
        change = np.abs(image - before).reshape(256, 256, -1).max(axis=2)
        assert (change[marked] > 0).mean() > 0.8, name
        assert change[marked].mean() > 1.5, name
        assert change[distance_transform_edt(~marked) > FADING[defect]].max() == 0, name


def test_coffee_and_rocket_keep_their_pose_and_textures_and_cup_do_not(folder):
    for class_name in demo.CLASS_NAMES:
        images = [read(folder / class_name / f"train/good/{i:03}.png") for i in range(8)]
        pixels = np.stack(images)[:, 16:-16, 16:-16].astype(float)
        spread = pixels.std(axis=0).mean() / pixels.std()
        keeps = class_name in ("coffee", "rocket")
        assert spread < 0.3 if keeps else spread > 0.4, (class_name, spread)


def test_cup_is_whole_within_the_centre_crop(folder):
    """What is darker or redder than the plain table does not reach the border of the crop."""
    for path in sorted(folder.glob("cup/*/good/*.png")):
        image = read(path).astype(int)
        red = image[..., 0] - image[..., 2] > 40
        assert red.sum() > 8000, path
        assert red[16:-16, 16:-16].sum() == red.sum(), path


# the cache


@pytest.mark.usefixtures("small")
def test_every_call_gives_the_same_files_and_the_second_draws_nothing(tmp_path):
    first = demo.make_demo(tmp_path / "a")
    hashes = hash_files(first)
    assert len(hashes) == 2 + 2 + 2
    assert hash_files(demo.make_demo(tmp_path / "b")) == hashes
    assert list(first.parent.iterdir()) == [first]
    (first / "brick/test/stain/000.png").unlink()
    assert demo.make_demo(tmp_path / "a") == first
    assert len(hash_files(first)) == 5


@pytest.mark.usefixtures("small")
def test_interrupted_call_leaves_nothing_and_the_next_succeeds(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_cover", interrupt)  # once the good images are written
        with pytest.raises(KeyboardInterrupt):
            demo.make_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(hash_files(demo.make_demo(tmp_path))) == 6


@pytest.mark.usefixtures("small")
def test_set_of_a_faster_process_is_kept(tmp_path, monkeypatch):
    theirs = tmp_path / demo.VERSION / "theirs.png"

    def write_set(folder):
        folder.mkdir()
        theirs.parent.mkdir()
        theirs.touch()

    monkeypatch.setattr(demo, "_write_set", write_set)
    assert demo.make_demo(tmp_path) == theirs.parent
    assert list(tmp_path.rglob("*")) == [theirs.parent, theirs]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("file", [".", demo.VERSION])
def test_file_in_place_of_the_cache_or_the_set_is_reported(tmp_path, file):
    cache = tmp_path / "cache"
    path = cache / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(ValueError, match="cannot make the demo set: .*/cache.*XDG_CACHE_HOME"):
        demo.make_demo(cache)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", ["", "relative", "absolute"])
def test_default_cache_is_that_of_the_xdg_specification(value, tmp_path, monkeypatch):
    root = tmp_path / "xdg"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root) if value == "absolute" else value)
    parent = root if value == "absolute" else tmp_path / ".cache"
    assert demo.make_demo() == parent / "padim" / demo.VERSION


def test_missing_home_folder_is_reported(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(demo.Path, "home", no_home)
    with pytest.raises(ValueError, match="cannot make .* home directory.*XDG_CACHE_HOME"):
        demo.make_demo()
