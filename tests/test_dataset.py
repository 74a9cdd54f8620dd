import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datasets.dataset import choose_classes, describe, find_problems, load_all, load_splits
from datasets.layouts import LAYOUTS
from datasets.mvtec import CLASS_NAMES
from datasets.notes import Notes
from datasets.preprocessing import DEFAULT, WHOLE, Preprocessing
from tests.helpers import write_image


def grey(width, height, value=90):
    return np.full((height, width), value, dtype=np.uint8)


# classes


def test_classes_are_run_once_in_the_order_given(tree):
    assert choose_classes(tree, ["weave", "bolt", "weave"])[1] == ["weave", "bolt"]
    options = {"data_path": tree, "dataset": "auto", "class_name": ["weave", "bolt"]}
    options |= {"normal": None, "invert_masks": False, "preprocessing": DEFAULT}
    options |= {"region": None, "unaligned": DEFAULT, "align": "off"}
    splits = load_all(SimpleNamespace(**options))
    assert [(train.class_name, train.split, len(train)) for train, _ in splits] == [
        ("weave", "train", 5),
        ("bolt", "train", 5),
    ]
    assert [(test.split, len(test)) for _, test in splits] == [("test", 8)] * 2


def test_default_classes_are_mvtec_s_15_in_its_layout_and_all_in_others(tmp_path):
    for class_name in (*reversed(CLASS_NAMES), "own"):
        (tmp_path / class_name / "train/good").mkdir(parents=True)
    assert choose_classes(tmp_path, None)[1] == list(CLASS_NAMES)
    assert choose_classes(tmp_path, None, "loco")[1] == sorted([*CLASS_NAMES, "own"])


def test_a_class_is_found_whatever_its_case_and_unicode_form(tmp_path):
    for name in ("m\u00fcller", "bolt", "Bolt"):
        (tmp_path / name / "good").mkdir(parents=True)
    assert choose_classes(tmp_path, ["Mu\u0308ller", "Bolt"])[1] == ["m\u00fcller", "Bolt"]
    with pytest.raises(ValueError, match="no class 'BOLT', 'x' in .*; choose from Bolt, bolt"):
        choose_classes(tmp_path, ["BOLT", "bolt", "x"])


def test_missing_mvtec_classes_are_reported_with_the_option_if_one_is_there(tree):
    assert choose_classes(tree, None)[1] == ["bolt", "weave"]
    (tree / "bolt").rename(tree / "zipper")
    message = "no class 'bottle', .* 'wood' in .* from weave, zipper with --class_name"
    with pytest.raises(ValueError, match=message):
        choose_classes(tree, None)


# images


def test_item_is_an_rgb_image_its_label_and_the_mask_of_the_defect(tree):
    test = load_splits(tree, "bolt")[1]
    image, label, mask = test[0]
    assert (image.shape, image.dtype, label) == ((3, 224, 224), np.uint8, 1)
    assert (mask.shape, mask.dtype) == ((224, 224), bool)
    assert image[:, mask].mean() > 230
    assert image[:, ~mask].mean() < 140


def test_several_masks_of_an_image_are_united_and_must_all_have_its_size(tmp_path):
    masks = tmp_path / "bolt/ground_truth/bad/0"
    for name in ("train/good/0", "train/good/1", "test/bad/0"):
        write_image(tmp_path / f"bolt/{name}.png", grey(40, 40))
    for number in (0, 1):
        pixels = grey(40, 40, 0)
        pixels[10 * number] = 255
        write_image(masks / f"00{number}.png", pixels)
    arguments = (tmp_path, "bolt", LAYOUTS["loco"], Preprocessing(0, 0))
    _, _, mask = load_splits(*arguments)[1][0]
    np.testing.assert_array_equal(mask, (np.arange(40) == 0)[:, None] | (pixels > 0))
    write_image(masks / "001.png", grey(40, 39))
    (problem,) = find_problems(*load_splits(*arguments))
    assert re.search(r"mask .*001\.png is 40x39 pixels but its image .*40x40", str(problem))


def test_image_size_is_height_and_width_as_preprocessed(tree):
    # the images of weave are 64 x 40 pixels
    for preprocessing, size in (((0, 0), (40, 64)), ((80, 0), (80, 128)), ((256, 224), (224, 224))):
        train, _ = load_splits(tree, "weave", preprocessing=Preprocessing(*preprocessing))
        assert train.image_size == size == train[0][0].shape[1:]


def test_what_is_taken_is_described_in_a_line(tree):
    assert describe(*load_splits(tree, "bolt")) == (
        "bolt: 5 training images (48x48, RGB, 8 bits); 2 normal test images (good 2); "
        "6 defective test images (crack 3, stain 3); 6 masks; 0 files ignored"
    )
    write_image(tree / "bolt/train/good/000.png", grey(64, 40).astype(np.uint16))
    (tree / "bolt/test").rename(tree / "bolt/validation")
    write_image(tree / "bolt/test/0.png", grey(48, 48))
    assert describe(*load_splits(tree, "bolt")) == (
        "bolt: 5 training images (64x40, grey, 16 bits); "
        "1 unlabelled test images (unlabelled 1); 0 masks; 0 files ignored"
    )


# checks


def test_names_of_images_are_unique_and_not_too_long(tree):
    for name in ("good_a/b", "good/a_b", "good/a/B", "good/c/" + "ä" * 100):
        write_image(tree / f"bolt/test/{name}.png", grey(48, 48))
    write_image(tree / "bolt/ground_truth/good_a/b_mask.png", grey(48, 48))
    _, test = load_splits(tree, "bolt")
    names = test.names
    assert names[2:7] == ["crack_002", "good_000", "good_001", "good_a_B", "good_a_b_2"]
    assert names[8] == "good_a_b_3"
    assert max(len(name.encode()) for name in names) <= 200
    assert len(set(names)) == len(test) == 12


def test_images_that_end_in_different_sizes_are_refused(tmp_path):
    def load(*preprocessing):
        layout = LAYOUTS["folder"]
        return load_splits(tmp_path, tmp_path.name, layout, Preprocessing(*preprocessing))

    for i in range(6):
        write_image(tmp_path / f"good/{i}.png", grey(40, 40))
    write_image(tmp_path / "dent/0.png", grey(44, 60))
    names = r"good/0\.png and .*dent/0\.png"
    for resize, crop, context, sizes in [
        (0, 0, 0, "40x40 and 44x60"),
        (64, 48, 9, "64x64 and 64x66"),
        (64, 48, WHOLE, "64x64 and 64x87"),
    ]:
        (problem,) = find_problems(*load(resize, crop, False, 16, context))
        assert re.search(f"{names} would have {sizes} pixels; all .*: give a --crop", str(problem))
    problem = next(find_problems(*load(0, 41)))
    assert re.search(r"good/0\.png has 40x40 pixels for the network, which needs 41", str(problem))
    for preprocessing in ((0, 32), (64, 48)):
        _, test = load(*preprocessing)
        assert {image.shape for image, _, _ in test} == {(3, *test.image_size)}


@pytest.mark.parametrize(
    ("correlation", "lowest", "noted"),
    [(0.95, 0.99, False), (0.93, 0.99, True), (0.45, 0.72, False), (0.43, 0.72, True)],
)
def test_another_part_is_noted_well_below_all_training_images(correlation, lowest, noted):
    notes = Notes()
    notes.add_pose(Path("a.png"), correlation, lowest)
    assert len(list(notes.sentences())) == noted
