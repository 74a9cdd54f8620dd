import os

import pytest

from datasets import mvtec
from datasets.mvtec import UNLABELLED, list_samples


@pytest.fixture
def folder(tmp_path):
    """A class with three defective images and their masks, all empty files."""
    for name in ["train/good/0.png", *(f"test/crack/{i}.png" for i in range(3))]:
        touch(tmp_path / "bolt" / name)
    for i in range(3):
        touch(tmp_path / f"bolt/ground_truth/crack/{i}_mask.png")
    return tmp_path / "bolt"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def masks_of(folder):
    return [
        [path.name for path in sample.mask_paths]
        for sample in list_samples(folder.parent, folder.name, "test")[0]
    ]


def test_classes_and_counts_are_those_of_the_paper():
    assert " ".join(mvtec.CLASS_NAMES) == (
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
        "transistor wood zipper"
    )
    assert (len(mvtec.OBJECTS), len(mvtec.TEXTURES)) == (10, 5)
    assert set(mvtec.OBJECTS + mvtec.TEXTURES) == set(mvtec.CLASS_NAMES)
    totals = [sum(column) for column in zip(*mvtec.COUNTS.values(), strict=True)]
    assert totals == [3629, 467, 1258]


def test_hidden_folders_are_ignored(folder):
    touch(folder / "test/.checkpoints/0.png")
    assert len(masks_of(folder)) == 3


def test_images_in_test_itself_are_unlabelled(tmp_path):
    touch(tmp_path / "bolt/test/7.png")
    touch(tmp_path / "bolt/ground_truth/crack/7_mask.png")
    (sample,), has_masks = list_samples(tmp_path, "bolt", "test")
    assert (sample.name, sample.label, has_masks) == ("unlabelled_7", UNLABELLED, False)


def test_empty_and_missing_test_folder_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*test; a class needs training and"):
        list_samples(tmp_path, "bolt", "test")
    (tmp_path / "bolt/test").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*test; expected <defect type>/"):
        list_samples(tmp_path, "bolt", "test")


def test_mask_may_have_any_suffix_but_one_only(folder):
    masks = folder / "ground_truth/crack"
    (masks / "0_mask.png").rename(masks / "0_mask.TIFF")
    assert masks_of(folder) == [["0_mask.TIFF"], ["1_mask.png"], ["2_mask.png"]]
    touch(masks / "1_mask.bmp")
    with pytest.raises(ValueError, match=r"1_mask\.bmp and .*1_mask\.png may both be the mask of"):
        masks_of(folder)


def test_folders_are_listed_as_often_for_many_images_as_for_few(tmp_path, monkeypatch):
    listed, original = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or original(path))
    counts = []
    for n in (5, 50):
        folder = tmp_path / str(n) / "bolt"
        for name in ("train/good/{}", "test/crack/{}", "ground_truth/crack/{}_mask"):
            for i in range(n):
                touch(folder / f"{name.format(i)}.png")
        listed.clear()
        assert len(list_samples(folder.parent, "bolt", "test")[0]) == n
        counts.append(len(listed))
    assert counts[0] == counts[1] > 2
