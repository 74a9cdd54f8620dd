import os

import pytest

from datasets import mvtec
from datasets.layouts import LAYOUTS
from datasets.mvtec import UNLABELLED
from datasets.notes import Notes


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def list_test(folder):
    return LAYOUTS["mvtec"].list_samples(folder.parent, folder.name, "test", Notes())


def test_classes_and_counts_are_those_of_the_paper():
    assert " ".join(mvtec.CLASS_NAMES) == (
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
        "transistor wood zipper"
    )
    assert (len(mvtec.OBJECTS), len(mvtec.TEXTURES)) == (10, 5)
    assert set(mvtec.OBJECTS + mvtec.TEXTURES) == set(mvtec.CLASS_NAMES)
    totals = [sum(column) for column in zip(*mvtec.COUNTS.values(), strict=True)]
    assert totals == [3629, 467, 1258]


def test_images_in_test_itself_are_unlabelled(tmp_path):
    touch(tmp_path / "bolt/test/7.png")
    touch(tmp_path / "bolt/ground_truth/crack/7_mask.png")
    (sample,), has_masks = list_test(tmp_path / "bolt")
    assert (sample.name, sample.label, has_masks) == ("unlabelled_7", UNLABELLED, False)


def test_an_empty_test_folder_is_reported(tmp_path):
    (tmp_path / "bolt/test").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*test; expected <defect type>/"):
        list_test(tmp_path / "bolt")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["000", "001"], ["000-mask", "001_MASK"]),
        (["m\u00fcller"], ["mu\u0308ller_mask"]),
        (["A", "a"], ["A_mask", "a_mask"]),  # as it is comes first
        (["a-b", "a_b"], ["a-b_gt", "a_b_gt"]),
        (["good_mask", "x"], ["good_mask_mask", "X seg"]),
    ],
)
@pytest.mark.parametrize("place", ["ground_truth/Crack", "test/crack"])
def test_masks_are_paired_whatever_their_case_and_unicode_form(tmp_path, images, masks, place):
    folder = tmp_path / "bolt"
    for stem in images:
        touch(folder / f"test/crack/{stem}.png")
    for stem in masks:
        touch(folder / place / f"{stem}.png")
    samples, _ = list_test(folder)
    found = {sample.path.stem: [path.stem for path in sample.mask_paths] for sample in samples}
    assert found == {image: [mask] for image, mask in zip(images, masks, strict=True)}


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
        assert len(list_test(folder)[0]) == n
        counts.append(len(listed))
    assert counts[0] == counts[1] > 2
