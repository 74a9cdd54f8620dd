import shutil

import pytest

from datasets import mvtec
from datasets.mvtec import UNLABELLED, list_samples, mask_finder


def touch(path):
    """Make an empty file: nothing here decodes images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def described(data_path, split):
    """Name, label, and masks relative to the class, of every sample of bolt."""
    samples, _ = list_samples(data_path, "bolt", split)
    masks = [[m.relative_to(data_path / "bolt").as_posix() for m in s.mask_paths] for s in samples]
    return [(s.name, s.label, *paths) for s, paths in zip(samples, masks, strict=True)]


def test_classes_and_counts_are_those_of_the_paper():
    assert " ".join(mvtec.CLASS_NAMES) == (
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
        "transistor wood zipper"
    )
    assert (len(mvtec.OBJECTS), len(mvtec.TEXTURES)) == (10, 5)
    assert set(mvtec.OBJECTS + mvtec.TEXTURES) == set(mvtec.CLASS_NAMES)
    totals = [sum(column) for column in zip(*mvtec.COUNTS.values(), strict=True)]
    assert totals == [3629, 467, 1258]


def test_training_images_are_the_good_ones_only(tree):
    touch(tree / "bolt/train/crack/000.png")
    assert described(tree, "train") == [(f"good_{i:03}", 0) for i in range(5)]


def test_test_images_are_sorted_by_folder_and_file_and_paired_with_masks_by_stem(tree):
    # as the first file of its folder it would shift every pair by one
    touch(tree / "bolt/ground_truth/crack/000_another_mask.png")
    masks = tree / "bolt/ground_truth/stain"
    (masks / "001_mask.png").rename(masks / "001_mask.BMP")
    assert described(tree, "test") == [
        ("crack_000", 1, "ground_truth/crack/000_mask.png"),
        ("crack_001", 1, "ground_truth/crack/001_mask.png"),
        ("crack_002", 1, "ground_truth/crack/002_mask.png"),
        ("good_000", 0),
        ("good_001", 0),
        ("stain_000", 1, "ground_truth/stain/000_mask.png"),
        ("stain_001", 1, "ground_truth/stain/001_mask.BMP"),
        ("stain_002", 1, "ground_truth/stain/002_mask.png"),
    ]
    assert list_samples(tree, "bolt", "test")[1]


def test_hidden_and_other_files_and_folders_are_ignored(tree):
    before = described(tree, "test")
    touch(tree / "bolt/test/.checkpoints/000.png")
    touch(tree / "bolt/test/good/._000.png")
    touch(tree / "bolt/test/good/Thumbs.db")
    touch(tree / "bolt/test/readme.txt")
    assert described(tree, "test") == before


def test_without_ground_truth_there_are_no_masks_but_labels(tree):
    shutil.rmtree(tree / "bolt/ground_truth")
    assert described(tree, "test")[0] == ("crack_000", 1)
    assert not list_samples(tree, "bolt", "test")[1]


def test_images_in_test_itself_are_unlabelled(tree):
    shutil.rmtree(tree / "bolt/test")
    touch(tree / "bolt/test/7.png")
    assert described(tree, "test") == [("unlabelled_7", UNLABELLED)]
    assert not list_samples(tree, "bolt", "test")[1]


@pytest.mark.parametrize("removed", ["crack/001_mask.png", "crack"])
def test_missing_mask_is_reported(tree, removed):
    path = tree / "bolt/ground_truth" / removed
    path.unlink() if path.is_file() else shutil.rmtree(path)
    message = r"mask missing for .*crack/00.\.png: expected .*ground_truth/crack/00._mask\.png"
    with pytest.raises(FileNotFoundError, match=message):
        list_samples(tree, "bolt", "test")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/good", "test"], r"no images in .*train; expected good/\*\.png \(also .jpg"),
        (["train/good", "test/crack"], r"no images in .*train"),
        (["test/crack"], r"no images in .*test; expected <defect type>/\*\.png"),
        (["test"], r"no images in .*test; expected <defect type>/\*\.png"),
        ([], r"no folder .*test; a class needs training and test images"),
    ],
)
def test_missing_images_are_reported(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / "bolt" / folder).mkdir(parents=True)
    split = "train" if "train/good" in folders else "test"
    with pytest.raises(FileNotFoundError, match=message):
        list_samples(tmp_path, "bolt", split)


def test_each_folder_of_masks_is_listed_once(tree, monkeypatch):
    listed = []
    original = mvtec.list_images
    monkeypatch.setattr(mvtec, "list_images", lambda path: listed.append(path) or original(path))
    find_mask = mask_finder(tree / "bolt", "ground_truth/{defect_type}/{stem}_mask")
    images = [tree / f"bolt/test/crack/{i:03}.png" for i in range(3)]
    assert [find_mask("crack", image)[0].stem for image in images] == [
        "000_mask",
        "001_mask",
        "002_mask",
    ]
    assert listed == [tree / "bolt/ground_truth/crack"]


def test_of_two_masks_of_one_stem_the_first_is_taken(tree):
    touch(tree / "bolt/ground_truth/crack/001_mask.bmp")
    assert described(tree, "test")[1] == ("crack_001", 1, "ground_truth/crack/001_mask.bmp")
