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
    with pytest.raises(FileNotFoundError, match=r"no folder .*test; a class needs training and"):
        list_samples(tmp_path, "bolt", "test")
    (tmp_path / "bolt/test").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no images in .*test; expected <defect type>/"):
        list_samples(tmp_path, "bolt", "test")


def test_mask_may_have_any_suffix_and_the_first_of_two_is_taken(folder):
    masks = folder / "ground_truth/crack"
    (masks / "0_mask.png").rename(masks / "0_mask.TIFF")
    touch(masks / "1_mask.bmp")
    assert masks_of(folder) == [["0_mask.TIFF"], ["1_mask.bmp"], ["2_mask.png"]]


def test_each_folder_of_masks_is_listed_once(folder, monkeypatch):
    listed = []
    original = mvtec.list_images
    monkeypatch.setattr(mvtec, "list_images", lambda path: listed.append(path) or original(path))
    assert len(masks_of(folder)) == 3
    assert listed.count(folder / "ground_truth/crack") == 1
