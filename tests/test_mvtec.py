import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from datasets import mvtec
from datasets.mvtec import (
    CLASS_NAMES,
    MVTecDataset,
    choose_classes,
    find_classes,
    load_image,
    load_mask,
    load_splits,
)
from tests.conftest import TREE_CLASSES, TREE_N_DEFECT, TREE_N_GOOD, TREE_N_TRAIN, write_image

SIZES = [(40, 40), (64, 48), (48, 64), (37, 53), (101, 67), (256, 256), (300, 257), (225, 501)]


def noise(width: int, height: int, *channels: int) -> np.ndarray:
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def assert_colour(pixels: np.ndarray, colour: tuple[int, ...]) -> None:
    """All pixels of an image (3, H, W) have this colour."""
    np.testing.assert_array_equal(pixels, np.broadcast_to(colour, (224, 224, 3)).T)


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


def test_classes_are_found_sorted(tree):
    assert find_classes(tree) == ["bolt", "weave"]


def test_folder_without_training_images_is_no_class(tree):
    (tree / "licence").mkdir()
    assert find_classes(tree) == ["bolt", "weave"]


def test_missing_data_folder_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; --data_path must hold"):
        find_classes(tmp_path / "nowhere")


def test_data_path_that_is_a_file_is_reported(tree):
    with pytest.raises(FileNotFoundError, match=r"no folder .*000\.png; --data_path must hold"):
        find_classes(tree / "bolt/train/good/000.png")


def test_folder_without_classes_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no class in .*; --data_path must hold <class>/"):
        find_classes(tmp_path)


def test_chosen_classes_keep_their_order(tree):
    assert choose_classes(tree, ["weave", "bolt"]) == ["weave", "bolt"]


def test_class_named_twice_is_run_once(tree):
    assert choose_classes(tree, ["weave", "bolt", "weave"]) == ["weave", "bolt"]


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
    assert choose_classes(tmp_path, None) == list(CLASS_NAMES)


@pytest.mark.parametrize("class_name", TREE_CLASSES)
def test_splits_have_all_images(tree, class_name):
    train, test = load_splits(tree, class_name)
    assert (len(train), len(test)) == (TREE_N_TRAIN, TREE_N_GOOD + 2 * TREE_N_DEFECT)


def test_samples_are_ordered_by_folder_and_file(tree):
    names = [sample.name for sample in MVTecDataset(tree, "bolt", "test").samples]
    assert names == [
        *("crack_000", "crack_001", "crack_002"),
        *("good_000", "good_001"),
        *("stain_000", "stain_001", "stain_002"),
    ]


def test_only_good_images_have_label_0(tree):
    labels = [label for _, label, _ in MVTecDataset(tree, "bolt", "test")]
    assert labels == [1, 1, 1, 0, 0, 1, 1, 1]


def test_training_images_are_the_good_ones(tree):
    write_image(tree / "bolt/train/crack/000.png", noise(48, 48, 3))
    labels = [(s.defect_type, s.label) for s in MVTecDataset(tree, "bolt", "train").samples]
    assert labels == [("good", 0)] * TREE_N_TRAIN


def test_item_is_an_rgb_image_and_a_mask_of_the_crop(tree):
    image, _, mask = MVTecDataset(tree, "weave", "test")[0]
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == (
        (3, 224, 224),
        np.uint8,
        (224, 224),
        bool,
    )


def test_mask_lies_on_the_defect(tree):
    image, _, mask = MVTecDataset(tree, "bolt", "test")[0]
    assert image[:, mask].mean() > 230
    assert image[:, ~mask].mean() < 140


def test_good_image_has_an_empty_mask(tree):
    test = MVTecDataset(tree, "bolt", "test")
    assert test.samples[3].name == "good_000"
    assert not test[3][2].any()


def test_mask_is_paired_by_stem_not_by_position(tree):
    # as first of the folder it would shift every pair by one
    decoy = tree / "bolt/ground_truth/crack/000_another_mask.png"
    write_image(decoy, np.zeros((48, 48), dtype=np.uint8))
    masks = [s.mask_path.name for s in MVTecDataset(tree, "bolt", "test").samples[:3]]
    assert masks == ["000_mask.png", "001_mask.png", "002_mask.png"]


def test_missing_mask_is_reported(tree):
    (tree / "bolt/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"mask missing for .*crack/001\.png: expected .*ground_truth/crack/001_mask\.png",
    ):
        MVTecDataset(tree, "bolt", "test")


def test_missing_folder_of_masks_is_reported(tree):
    shutil.rmtree(tree / "bolt/ground_truth/stain")
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*stain/000\.png"):
        MVTecDataset(tree, "bolt", "test")


def test_mask_may_have_another_suffix(tree):
    path = tree / "bolt/ground_truth/crack/001_mask.png"
    path.rename(path.with_suffix(".PNG"))
    assert MVTecDataset(tree, "bolt", "test").samples[1].mask_path == path.with_suffix(".PNG")


def test_mask_of_another_size_is_reported(tree):
    write_image(tree / "bolt/ground_truth/crack/001_mask.png", noise(48, 40))
    with pytest.raises(
        ValueError,
        match=r"mask .*001_mask\.png is 48x40 pixels but its image .*001\.png is 48x48",
    ):
        MVTecDataset(tree, "bolt", "test")


def test_unreadable_mask_is_reported_before_the_run(tree):
    (tree / "bolt/ground_truth/crack/001_mask.png").write_text("mask")
    with pytest.raises(ValueError, match=r"cannot read image .*001_mask\.png: not an image"):
        MVTecDataset(tree, "bolt", "test")


def test_without_ground_truth_folder_there_are_no_masks(tree):
    shutil.rmtree(tree / "bolt/ground_truth")
    assert not MVTecDataset(tree, "bolt", "test").has_masks


def test_without_ground_truth_folder_a_defect_keeps_its_label(tree):
    shutil.rmtree(tree / "bolt/ground_truth")
    _, label, mask = MVTecDataset(tree, "bolt", "test")[0]
    assert label == 1
    assert not mask.any()


def test_with_ground_truth_folder_there_are_masks(tree):
    assert MVTecDataset(tree, "bolt", "test").has_masks


def test_hidden_files_are_ignored(tree):
    (tree / "bolt/train/good/._000.png").write_text("not an image")
    assert len(MVTecDataset(tree, "bolt", "train")) == TREE_N_TRAIN


def test_hidden_folders_are_ignored(tree):
    write_image(tree / "bolt/test/.checkpoints/000.png", noise(48, 48))
    assert len(MVTecDataset(tree, "bolt", "test")) == TREE_N_GOOD + 2 * TREE_N_DEFECT


def test_other_files_are_ignored(tree):
    (tree / "bolt/train/good/Thumbs.db").write_text("not an image")
    (tree / "bolt/test/readme.txt").write_text("not a folder")
    assert [len(split) for split in load_splits(tree, "bolt")] == [TREE_N_TRAIN, 8]


@pytest.mark.parametrize(
    "suffix", [".PNG", ".jpg", ".JPG", ".jpeg", ".Jpeg", ".bmp", ".BMP", ".tif", ".TIFF"]
)
def test_image_format_is_taken_in_any_letter_case(tree, suffix):
    path = write_image(tree / f"bolt/train/good/zzz{suffix}", noise(48, 48, 3))
    train = MVTecDataset(tree, "bolt", "train")
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
    with pytest.raises(FileNotFoundError, match=r"no folder .*test; a class needs train/good and"):
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
        MVTecDataset(tree, "bolt", "train")


def test_images_of_two_defect_types_may_not_share_a_name(tree):
    write_image(tree / "weave/test/good_a/b.png", noise(64, 40))
    write_image(tree / "weave/test/good/a_b.png", noise(64, 40))
    write_image(tree / "weave/ground_truth/good_a/b_mask.png", noise(64, 40))
    with pytest.raises(ValueError, match="would share the name good_a_b"):
        MVTecDataset(tree, "weave", "test")


@pytest.mark.parametrize("size", SIZES)
def test_image_is_resized_and_cropped_as_torchvision_does(tmp_path, size):
    pixels = noise(*size, 3)
    path = write_image(tmp_path / "image.png", pixels)
    transform = Compose([Resize(256, InterpolationMode.LANCZOS), CenterCrop(224)])
    expected = np.array(transform(Image.fromarray(pixels))).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(path), expected)


@pytest.mark.parametrize("size", SIZES)
def test_mask_is_resized_and_cropped_as_torchvision_does(tmp_path, size):
    pixels = np.where(noise(*size) > 200, 255, 0).astype(np.uint8)
    path = write_image(tmp_path / "mask.png", pixels)
    transform = Compose([Resize(256, InterpolationMode.NEAREST), CenterCrop(224)])
    expected = np.array(transform(Image.fromarray(pixels))) == 255
    np.testing.assert_array_equal(load_mask(path), expected)


@pytest.mark.parametrize("on", [1, 253, 254, 255])
def test_mask_is_true_where_it_is_not_black(tmp_path, on):
    pixels = np.zeros((224, 224), dtype=np.uint8)
    pixels[50:100, 60:160] = on
    # a frame that the crop takes away, so that nothing is resized
    path = write_image(tmp_path / "mask.png", np.pad(pixels, 16))
    mask = load_mask(path)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, pixels > 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_mask_of_any_mode_is_read(tmp_path, mode):
    grey = Image.fromarray(np.pad(np.full((64, 64), 255, dtype=np.uint8), 96))
    grey.convert(mode).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == mode
    mask = load_mask(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask, np.pad(np.ones((64, 64), dtype=bool), 80))


def test_mask_in_one_colour_channel_is_read(tmp_path):
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[:, :, 2] = 1
    assert load_mask(write_image(tmp_path / "mask.png", pixels)).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 9), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("RGBA", (10, 200, 30, 128), (10, 200, 30)),
    ],
)
def test_image_of_any_mode_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (40, 40), colour).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert image.mode == mode
    assert_colour(load_image(tmp_path / "image.png"), expected)


@pytest.mark.parametrize("settings", [{}, {"transparency": 1}])
def test_palette_image_becomes_rgb(tmp_path, settings):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "image.png", **settings)
    assert_colour(load_image(tmp_path / "image.png"), (10, 200, 30))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (128, 0), (129, 1), (25700, 100), (65535, 255)]
)
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix, value, expected):
    # 257 steps of 16 bits are one of 8 bits: 128 / 257 < 0.5 < 129 / 257
    path = write_image(tmp_path / f"image{suffix}", np.full((40, 40), value, dtype=np.uint16))
    assert_colour(load_image(path), (expected,) * 3)


def test_big_endian_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    path = write_image(tmp_path / "image.tif", np.full((40, 40), 25700, dtype=">u2"))
    assert_colour(load_image(path), (100, 100, 100))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    # full magenta and yellow without cyan and black are red
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "image.jpg", quality=100)
    assert_colour(load_image(tmp_path / "image.jpg"), (255, 0, 0))


def test_floating_point_image_is_refused(tmp_path):
    path = write_image(tmp_path / "image.tif", np.zeros((40, 40), dtype=np.float32))
    with pytest.raises(ValueError, match=r"image\.tif: floating-point pixels .* 8 or 16 bits"):
        load_image(path)


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_file_is_reported(tmp_path, load, suffix):
    path = write_image(tmp_path / f"image{suffix}", noise(64, 64, 3))
    truncate(path)
    with pytest.raises(ValueError, match=rf"cannot read image .*image\{suffix}: .*; replace the"):
        load(path)


def test_file_that_is_no_image_is_reported(tmp_path):
    (tmp_path / "image.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: not an image; replace"):
        load_image(tmp_path / "image.png")


def test_huge_image_is_reported(tmp_path, monkeypatch):
    path = write_image(tmp_path / "image.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: .*4096 pixels"):
        load_image(path)


def test_item_of_a_truncated_file_names_the_file(tree):
    truncate(tree / "bolt/train/good/002.png")
    train = MVTecDataset(tree, "bolt", "train")
    with pytest.raises(ValueError, match=r"cannot read image .*good/002\.png"):
        train[2]
