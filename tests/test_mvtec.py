import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets import mvtec
from datasets.dataset import ImageDataset, choose_classes, load_splits
from datasets.mvtec import CLASS_NAMES
from tests.conftest import TREE_CLASSES, TREE_N_DEFECT, TREE_N_GOOD, TREE_N_TRAIN, write_image


def load(tree: Path, class_name: str, split: str) -> ImageDataset:
    return load_splits(tree, class_name)[split == "test"]


def noise(width: int, height: int, *channels: int) -> np.ndarray:
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_class_names_are_the_15_of_mvtec_sorted():
    assert CLASS_NAMES == (
        "bottle",
        "cable",
        "capsule",
        "carpet",
        "grid",
        "hazelnut",
        "leather",
        "metal_nut",
        "pill",
        "screw",
        "tile",
        "toothbrush",
        "transistor",
        "wood",
        "zipper",
    )


def test_ten_classes_are_objects_and_five_are_textures():
    assert (len(mvtec.OBJECTS), len(mvtec.TEXTURES)) == (10, 5)


def test_chosen_classes_keep_their_order(tree):
    assert choose_classes(tree, ["weave", "bolt"])[1] == ["weave", "bolt"]


def test_class_named_twice_is_run_once(tree):
    assert choose_classes(tree, ["weave", "bolt", "weave"])[1] == ["weave", "bolt"]


def test_unknown_class_is_reported_with_those_there(tree):
    with pytest.raises(
        ValueError, match=r"unknown class 'botl', 'wave' in .*; choose from bolt, weave$"
    ):
        choose_classes(tree, ["botl", "bolt", "wave"])


def test_missing_mvtec_classes_are_reported_with_the_option(tree):
    with pytest.raises(
        ValueError, match=r"lacks bottle, .*, zipper of .* holds bolt, weave: .*--class_name"
    ):
        choose_classes(tree, None)


def test_without_names_the_15_classes_are_chosen(tmp_path):
    for class_name in reversed(CLASS_NAMES):
        (tmp_path / class_name / "train/good").mkdir(parents=True)
    assert choose_classes(tmp_path, None)[1] == list(CLASS_NAMES)


@pytest.mark.parametrize("class_name", TREE_CLASSES)
def test_splits_have_all_images(tree, class_name):
    train, test = load_splits(tree, class_name)
    assert (len(train), len(test)) == (TREE_N_TRAIN, TREE_N_GOOD + 2 * TREE_N_DEFECT)


def test_samples_are_ordered_by_folder_and_file(tree):
    names = [sample.name for sample in load(tree, "bolt", "test").samples]
    assert names == [
        *("crack_000", "crack_001", "crack_002"),
        *("good_000", "good_001"),
        *("stain_000", "stain_001", "stain_002"),
    ]


def test_only_good_images_have_label_0(tree):
    labels = [label for _, label, _ in load(tree, "bolt", "test")]
    assert labels == [1, 1, 1, 0, 0, 1, 1, 1]


def test_training_images_are_the_good_ones(tree):
    write_image(tree / "bolt/train/crack/000.png", noise(48, 48, 3))
    labels = [(s.defect_type, s.label) for s in load(tree, "bolt", "train").samples]
    assert labels == [("good", 0)] * TREE_N_TRAIN


def test_item_is_an_rgb_image_and_a_mask_of_the_crop(tree):
    image, _, mask = load(tree, "weave", "test")[0]
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == (
        (3, 224, 224),
        np.uint8,
        (224, 224),
        bool,
    )


def test_mask_lies_on_the_defect(tree):
    image, _, mask = load(tree, "bolt", "test")[0]
    assert image[:, mask].mean() > 230
    assert image[:, ~mask].mean() < 140


def test_good_image_has_an_empty_mask(tree):
    test = load(tree, "bolt", "test")
    assert test.samples[3].name == "good_000"
    assert not test[3][2].any()


def test_mask_is_paired_by_stem_not_by_position(tree):
    # as first of the folder it would shift every pair by one
    decoy = tree / "bolt/ground_truth/crack/000_another_mask.png"
    write_image(decoy, np.zeros((48, 48), dtype=np.uint8))
    masks = [s.mask_paths[0].name for s in load(tree, "bolt", "test").samples[:3]]
    assert masks == ["000_mask.png", "001_mask.png", "002_mask.png"]


def test_missing_mask_is_reported(tree):
    (tree / "bolt/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"mask missing for .*crack/001\.png: expected .*ground_truth/crack/001_mask\.png",
    ):
        load(tree, "bolt", "test")


def test_missing_folder_of_masks_is_reported(tree):
    shutil.rmtree(tree / "bolt/ground_truth/stain")
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*stain/000\.png"):
        load(tree, "bolt", "test")


def test_mask_may_have_another_suffix(tree):
    path = tree / "bolt/ground_truth/crack/001_mask.png"
    path.rename(path.with_suffix(".PNG"))
    assert load(tree, "bolt", "test").samples[1].mask_paths == (path.with_suffix(".PNG"),)


def test_mask_of_another_size_is_reported(tree):
    write_image(tree / "bolt/ground_truth/crack/001_mask.png", noise(48, 40))
    with pytest.raises(
        ValueError,
        match=r"mask .*001_mask\.png is 48x40 pixels but its image .*001\.png is 48x48",
    ):
        load(tree, "bolt", "test")


def test_unreadable_mask_is_reported_before_the_run(tree):
    (tree / "bolt/ground_truth/crack/001_mask.png").write_text("mask")
    with pytest.raises(ValueError, match=r"cannot read image .*001_mask\.png: not an image"):
        load(tree, "bolt", "test")


def test_without_ground_truth_folder_there_are_no_masks(tree):
    shutil.rmtree(tree / "bolt/ground_truth")
    assert not load(tree, "bolt", "test").has_masks


def test_without_ground_truth_folder_a_defect_keeps_its_label(tree):
    shutil.rmtree(tree / "bolt/ground_truth")
    _, label, mask = load(tree, "bolt", "test")[0]
    assert label == 1
    assert not mask.any()


def test_with_ground_truth_folder_there_are_masks(tree):
    assert load(tree, "bolt", "test").has_masks


def test_hidden_files_are_ignored(tree):
    (tree / "bolt/train/good/._000.png").write_text("not an image")
    assert len(load(tree, "bolt", "train")) == TREE_N_TRAIN


def test_hidden_folders_are_ignored(tree):
    write_image(tree / "bolt/test/.checkpoints/000.png", noise(48, 48))
    assert len(load(tree, "bolt", "test")) == TREE_N_GOOD + 2 * TREE_N_DEFECT


def test_other_files_are_ignored(tree):
    (tree / "bolt/train/good/Thumbs.db").write_text("not an image")
    (tree / "bolt/test/readme.txt").write_text("not a folder")
    assert [len(split) for split in load_splits(tree, "bolt")] == [TREE_N_TRAIN, 8]


@pytest.mark.parametrize(
    "suffix", [".PNG", ".jpg", ".JPG", ".jpeg", ".Jpeg", ".bmp", ".BMP", ".tif", ".TIFF"]
)
def test_image_format_is_taken_in_any_letter_case(tree, suffix):
    path = write_image(tree / f"bolt/train/good/zzz{suffix}", noise(48, 48, 3))
    train = load(tree, "bolt", "train")
    assert train.samples[-1].path == path
    assert train[TREE_N_TRAIN][0].shape == (3, 224, 224)


def test_empty_training_folder_is_reported(tree):
    shutil.rmtree(tree / "bolt/train/good")
    (tree / "bolt/train/good").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*train; expected good/\*\.png \("):
        load_splits(tree, "bolt")


def test_single_training_image_is_reported(tree):
    shutil.rmtree(tree / "bolt/train/good")
    write_image(tree / "bolt/train/good/007.png", noise(48, 48))
    with pytest.raises(ValueError, match=r"007\.png is the only training image of bolt; .* 2"):
        load_splits(tree, "bolt")


def test_missing_test_folder_is_reported(tree):
    shutil.rmtree(tree / "bolt/test")
    with pytest.raises(FileNotFoundError, match=r"no folder .*test; a class needs training and"):
        load_splits(tree, "bolt")


def test_empty_test_folder_is_reported(tree):
    shutil.rmtree(tree / "bolt/test")
    (tree / "bolt/test/crack").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"no images in .*test; expected <defect type>/\*\.png"
    ):
        load_splits(tree, "bolt")


def test_two_images_of_one_name_are_reported(tree):
    write_image(tree / "bolt/train/good/001.jpg", noise(48, 48))
    with pytest.raises(
        ValueError, match=r"001\.jpg and .*001\.png would share the name good_001: rename one"
    ):
        load(tree, "bolt", "train")


def test_images_of_two_defect_types_may_not_share_a_name(tree):
    write_image(tree / "weave/test/good_a/b.png", noise(64, 40))
    write_image(tree / "weave/test/good/a_b.png", noise(64, 40))
    write_image(tree / "weave/ground_truth/good_a/b_mask.png", noise(64, 40))
    with pytest.raises(ValueError, match="would share the name good_a_b"):
        load(tree, "weave", "test")


def test_item_of_a_truncated_file_names_the_file(tree):
    truncate(tree / "bolt/train/good/002.png")
    train = load(tree, "bolt", "train")
    with pytest.raises(ValueError, match=r"cannot read image .*good/002\.png"):
        train[2]
