import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.dataset import choose_classes, load_splits
from datasets.images import Preprocessing
from datasets.layouts import LAYOUTS
from tests.conftest import write_image

FOLDER = LAYOUTS["folder"]
GREY = np.full((40, 40), 90, dtype=np.uint8)


def write_images(folder: Path, count: int) -> None:
    for i in range(count):
        write_image(folder / f"{i:03}.png", GREY)


def stems(dataset, defect_type: str = "good") -> list[int]:
    return [int(s.path.stem) for s in dataset.samples if s.defect_type == defect_type]


@pytest.fixture
def parts(tmp_path):
    """A folder with 12 good images and two defect types without masks."""
    folder = tmp_path / "my parts é"
    write_images(folder / "good", 12)
    write_images(folder / "scratch", 2)
    write_images(folder / "dent", 1)
    return folder


@pytest.fixture
def marked(parts):
    """The same with masks."""
    for defect_type, count in (("scratch", 2), ("dent", 1)):
        for i in range(count):
            write_image(parts / f"ground_truth/{defect_type}/{i:03}_mask.png", GREY)
    return parts


def test_folder_is_one_class_named_after_itself(parts):
    assert choose_classes(parts, None) == (FOLDER, ["my parts é"])


def test_folder_given_as_the_working_directory_has_its_name(parts, monkeypatch):
    monkeypatch.chdir(parts)
    assert choose_classes(Path("."), None)[1] == ["my parts é"]
    assert len(load_splits(Path("."), "my parts é", FOLDER)[0]) == 10


def test_folders_in_the_folder_are_classes_and_all_are_run(parts):
    shutil.copytree(parts, parts.parent / "another")
    shutil.copytree(parts, parts.parent / ".hidden")
    (parts.parent / "empty").mkdir()
    assert choose_classes(parts.parent, None) == (FOLDER, ["another", "my parts é"])
    train, test = load_splits(parts.parent, "another", FOLDER)
    assert (len(train), len(test)) == (10, 5)
    assert all("another" in sample.path.parts for sample in (*train.samples, *test.samples))


def test_every_fifth_good_image_is_kept_from_training(parts):
    train, test = load_splits(parts, parts.name, FOLDER)
    assert stems(test) == [2, 7]
    assert stems(train) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("count", "n_train", "n_good"), [(2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 4, 1), (8, 6, 2)]
)
def test_two_good_images_are_always_left_to_train_on(parts, count, n_train, n_good):
    shutil.rmtree(parts / "good")
    write_images(parts / "good", count)
    train, test = load_splits(parts, parts.name, FOLDER)
    assert (len(train), len(stems(test))) == (n_train, n_good)


def test_a_single_good_image_is_refused(parts):
    shutil.rmtree(parts / "good")
    write_images(parts / "good", 1)
    with pytest.raises(ValueError, match=r"000\.png is the only training image of my parts é"):
        load_splits(parts, parts.name, FOLDER)


def test_good_images_alone_are_tested_on_themselves(tmp_path):
    write_images(tmp_path / "good", 5)
    _, test = load_splits(tmp_path, tmp_path.name, FOLDER)
    assert [(s.name, s.label) for s in test.samples] == [("good_002", 0)]
    assert not test.has_masks


@pytest.mark.parametrize("empty", [False, True])
def test_nothing_to_test_on_is_refused(tmp_path, empty):
    write_images(tmp_path / "good", 2)
    if empty:
        (tmp_path / "scratch").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing to test on in .*; give at least 3"):
        load_splits(tmp_path, tmp_path.name, FOLDER)


def test_empty_folder_of_good_images_is_refused(tmp_path):
    (tmp_path / "good").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*; expected good/\*\.png \(also"):
        load_splits(tmp_path, tmp_path.name, FOLDER)


def test_every_other_folder_is_a_defect_type(parts):
    (parts / ".cache").mkdir()
    write_images(parts / ".cache", 1)
    _, test = load_splits(parts, parts.name, FOLDER)
    assert [(s.name, s.label, s.mask_paths) for s in test.samples] == [
        ("good_002", 0, ()),
        ("good_007", 0, ()),
        ("dent_000", 1, ()),
        ("scratch_000", 1, ()),
        ("scratch_001", 1, ()),
    ]
    assert not test.has_masks


def test_masks_are_found_by_the_stem(marked):
    _, test = load_splits(marked, marked.name, FOLDER)
    assert test.has_masks
    masks = [s.mask_paths[0].relative_to(marked).as_posix() for s in test.samples[2:]]
    assert masks == [
        "ground_truth/dent/000_mask.png",
        "ground_truth/scratch/000_mask.png",
        "ground_truth/scratch/001_mask.png",
    ]
    assert [mask.any() for _, _, mask in test] == [False, False, True, True, True]


def test_a_missing_mask_is_refused(marked):
    (marked / "ground_truth/dent/000_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*dent/000\.png: expected .*"):
        load_splits(marked, marked.name, FOLDER)


def test_links_are_followed_and_hidden_files_are_not_images(parts):
    (parts / "good/._000.png").write_text("not an image")
    (parts / "good/012.png").symlink_to(parts / "good/000.png")
    train, _ = load_splits(parts, parts.name, FOLDER)
    assert stems(train)[-2:] == [10, 11]
    assert len(train) == 10
    assert load_splits(parts, parts.name, FOLDER)[1].samples[2].path.name == "012.png"


def test_two_images_of_one_stem_are_refused(parts):
    write_image(parts / "good/000.jpg", GREY)
    with pytest.raises(ValueError, match=r"000\.jpg and .*000\.png would share the name good_000"):
        load_splits(parts, parts.name, FOLDER)


def test_images_of_two_sizes_are_refused_without_a_crop(parts):
    write_image(parts / "scratch/001.png", np.zeros((40, 44), dtype=np.uint8))
    load_splits(parts, parts.name, FOLDER, Preprocessing(0, 32))
    with pytest.raises(
        ValueError,
        match=r"good/000\.png and .*scratch/001\.png would have 40x40 and 44x40 pixels; all images",
    ):
        load_splits(parts, parts.name, FOLDER, Preprocessing(0, 0))


def test_images_of_two_sizes_and_one_shape_are_one_size_when_resized(parts):
    write_image(parts / "scratch/001.png", np.zeros((80, 80), dtype=np.uint8))
    _, test = load_splits(parts, parts.name, FOLDER, Preprocessing(48, 0))
    assert {image.shape for image, _, _ in test} == {(3, 48, 48)}


def test_crop_larger_than_one_of_the_images_is_refused(parts):
    write_image(parts / "scratch/001.png", np.zeros((35, 50), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"--crop 36 is larger than .*001\.png, 50x35 pixels"):
        load_splits(parts, parts.name, FOLDER, Preprocessing(0, 36))


def test_a_size_that_suits_no_image_is_refused(parts):
    with pytest.raises(ValueError, match=r"--crop 300 is larger than --resize 256"):
        load_splits(parts, parts.name, FOLDER, Preprocessing(256, 300))


def test_only_headers_are_read_and_each_once(marked, monkeypatch):
    from datasets import dataset as splits

    read = []
    size = splits.read_size
    monkeypatch.setattr(splits, "read_size", lambda path: read.append(path) or size(path))
    load_splits(marked, marked.name, FOLDER)
    # a crop of resized images has one size: only what has a mask is looked at
    assert len(read) == len(set(read)) == 3 + 3
    read.clear()
    load_splits(marked, marked.name, FOLDER, Preprocessing(0, 0))
    assert len(read) == len(set(read)) == 12 + 3 + 3
