import re
import shutil
from pathlib import Path

import pytest

from datasets.layouts import LAYOUTS, VISA_COLUMNS, VISA_SPLIT, find_classes
from datasets.notes import LOOSE, UNREAD, Notes

# files of a class called bolt, and its samples: name, and masks of the defects
TREES = {
    "mvtec": (
        ["train/good/0.png", "train/bad/0.png", "test/good/0.png", "test/a/0.png", "test/a/1.png"]
        + [f"ground_truth/a/{name}.png" for name in ("0_another_mask", "0_mask", "1_mask")],
        [("good_0",)],
        [("a_0", "ground_truth/a/0_mask.png"), ("a_1", "ground_truth/a/1_mask.png"), ("good_0",)],
    ),
    "folder": (
        [f"good/{i}.png" for i in range(8)]
        + ["b/0.png", "a/0.JPG", "ground_truth/a/0_mask.png", "ground_truth/b/0_mask.bmp"],
        [(f"good_{i}",) for i in (0, 1, 3, 4, 5, 6)],
        # one in five of the good images is kept for testing
        [("good_2",), ("good_7",)]
        + [("a_0", "ground_truth/a/0_mask.png"), ("b_0", "ground_truth/b/0_mask.bmp")],
    ),
    "btad": (
        ["train/ok/0.bmp", "test/ok/0.bmp", "test/ko/0.bmp", "ground_truth/ko/0.png"],
        [("good_0",)],
        [("good_0",), ("ko_0", "ground_truth/ko/0.png")],
    ),
    "loco": (
        ["train/good/0.png", "validation/good/0.png", "test/good/0.png", "test/logical/0.png"]
        + ["ground_truth/logical/0/000.png", "ground_truth/logical/0/001.png"],
        [("good_0",)],
        [("good_0",), ("logical_0", *(f"ground_truth/logical/0/00{i}.png" for i in (0, 1)))],
    ),
    "mvtec3d": (
        ["train/good/rgb/0.png", "test/good/rgb/0.png", "test/good/gt/0.png"]
        + ["test/hole/rgb/0.png", "test/hole/gt/0.png", "test/hole/xyz/0.tiff"],
        [("good_0",)],
        [("good_0",), ("hole_0", "test/hole/gt/0.png")],
    ),
    "mvtec_ad_2": (
        ["train/good/0_regular.png", "validation/good/0_regular.png", "test_private/0_regular.png"]
        + ["test_private_mixed/0_mixed.png"]
        + [f"test_public/{name}.png" for name in ("good/0_regular", "bad/0_regular", "bad/1")]
        + [f"test_public/ground_truth/bad/{name}_mask.png" for name in ("0_regular", "1")],
        [("good_0_regular",)],
        [("bad_0_regular", "test_public/ground_truth/bad/0_regular_mask.png")]
        + [("bad_1", "test_public/ground_truth/bad/1_mask.png"), ("good_0_regular",)],
    ),
}
every_layout = pytest.mark.parametrize("dataset", TREES)


def touch(*paths):
    """Make empty files: nothing here decodes images."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(data_path, dataset, split="test", class_name="bolt"):
    """Name, and masks relative to the class, of every sample; and whether there are masks."""
    notes = Notes()
    samples, has_masks = LAYOUTS[dataset].list_samples(data_path, class_name, split, notes)
    for problem in notes.problems:
        raise problem
    # what else authors' folders hold is known
    assert LAYOUTS[dataset].by_name or not notes.counts().keys() & {LOOSE.what, UNREAD.what}
    folder = data_path / class_name
    found = []
    for sample in samples:
        assert sample.label == (sample.defect_type != "good")
        masks = [path.relative_to(folder).as_posix() for path in sample.mask_paths]
        found.append((sample.name, *masks))
    return found, has_masks


@pytest.fixture
def folder(tmp_path, dataset):
    """A class in the layout called dataset, with what has to be ignored."""
    folder = tmp_path / "bolt"
    touch(*(folder / name for name in TREES[dataset][0]))
    touch(*(path.parent / ".0.png" for path in list(folder.rglob("*.*"))))
    touch(folder / "notes.txt", tmp_path / "notes/readme.txt", tmp_path / ".hidden/bolt.png")
    return folder


@every_layout
def test_classes_and_samples_are_found(folder, dataset):
    _, in_train, in_test = TREES[dataset]
    assert find_classes(folder.parent, dataset) == (LAYOUTS[dataset], ["bolt"])
    assert read(folder.parent, dataset, "train")[0] == in_train
    assert read(folder.parent, dataset) == (in_test, True)


@every_layout
def test_defects_have_all_their_masks_or_none(folder, dataset):
    in_test = TREES[dataset][2]
    masks = [mask for sample in in_test for mask in sample[1:]]
    for mask in masks:
        (folder / mask).unlink()
    expected = Path(masks[0]).with_suffix("")
    message = rf"mask missing for .*0(_regular)?\.(png|JPG|bmp): expected .*{expected}"
    with pytest.raises(ValueError, match=message):
        read(folder.parent, dataset)
    for path in [*folder.glob("**/ground_truth"), *folder.glob("test/*/gt")]:
        shutil.rmtree(path)
    assert read(folder.parent, dataset) == ([sample[:1] for sample in in_test], False)


@every_layout
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_images_are_reported(folder, dataset, split):
    layout = LAYOUTS[dataset]
    parent = folder / (layout.train if split == "train" else layout.test)
    for path in parent.rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"no images in {parent}; expected .*\*\.png \(al"):
        read(folder.parent, dataset, split)


# which layout


def test_auto_prefers_mvtec(tmp_path):
    touch(tmp_path / "b/good/0.png", tmp_path / ".c/train/good/0.png")
    assert find_classes(tmp_path) == (LAYOUTS["folder"], ["b"])
    touch(tmp_path / "d/train/good/0.png", tmp_path / "a/train/good/0.png")
    assert find_classes(tmp_path) == (LAYOUTS["mvtec"], ["a", "d"])
    assert find_classes(tmp_path, "folder") == (LAYOUTS["folder"], ["b"])


@pytest.mark.parametrize(
    ("dataset", "paths"),
    [
        ("mvtec3d", ["bolt/train/good/rgb/0.png", "bolt/train/good/xyz/0.tiff"]),
        ("loco", ["bolt/train/good/0.png", "bolt/ground_truth/logical_anomalies/000/000.png"]),
        ("mvtec_ad_2", ["bolt/train/good/0.png", "bolt/test_public/good/0.png"]),
        ("mvtec_ad_2", ["bolt/train/good/0.png", "bolt/test_private/0.png"]),
        # as people convert it
        ("mvtec", ["bolt/train/good/0.png", "bolt/ground_truth/logical_anomalies/000_mask.png"]),
        ("mvtec", ["bolt/train/good/rgb/0.png", "bolt/test/anomalies/0.png"]),
    ],
)
def test_auto_recognises_the_folders_of_a_data_sets_authors(tmp_path, dataset, paths):
    touch(*(tmp_path / path for path in paths))
    assert find_classes(tmp_path) == (LAYOUTS[dataset], ["bolt"])
    assert find_classes(tmp_path, "mvtec") == (LAYOUTS["mvtec"], ["bolt"])
    assert find_classes(tmp_path, normal="good")[0].shape == LAYOUTS["mvtec"].shape


@pytest.mark.parametrize("dataset", ["auto", *TREES])
def test_folder_without_classes_is_refused_with_what_is_expected(tmp_path, dataset):
    names = ["mvtec", "folder"] if dataset == "auto" else [dataset]
    shapes = " or ".join(f"{LAYOUTS[name].shape} (--dataset {name})" for name in names)
    with pytest.raises(ValueError, match=re.escape(f"--data_path must hold {shapes}")):
        find_classes(tmp_path, dataset)
    touch(tmp_path / "file")
    with pytest.raises(ValueError, match="no folder .*file; --data_path must hold"):
        find_classes(tmp_path / "file", dataset)


# the folder layout


def test_a_folder_with_good_images_is_a_class_named_after_itself(tmp_path, monkeypatch):
    touch(tmp_path / "my parts é/good/0.png")
    monkeypatch.chdir(tmp_path / "my parts é")
    assert find_classes(Path("."))[1] == ["my parts é"]


def test_nothing_to_test_on_is_refused(tmp_path):
    touch(tmp_path / "bolt/good/0.png", tmp_path / "bolt/good/1.png", tmp_path / "bolt/dent/notes")
    assert len(read(tmp_path, "folder", "train")[0]) == 2
    with pytest.raises(ValueError, match=r"nothing to test on in .*; give at least 3"):
        read(tmp_path, "folder")


# VisA


@pytest.fixture
def visa(tmp_path):
    """VisA with two classes; the masks of candle are images/mask.png."""
    write_visa(
        tmp_path,
        "pcb1,train,normal,pcb1/images/0.JPG,",
        "candle,test,normal,candle/images/2.JPG,",
        "candle,train,normal,candle/images/1.JPG,",
        "candle,train,normal,candle/images/0.JPG,",
        "candle,test,anomaly,candle/images/bad.JPG,candle/mask.png",
    )
    touch(*(tmp_path / f"candle/images/{name}.JPG" for name in ("0", "1", "2", "bad", "unused")))
    touch(tmp_path / "candle/mask.png")
    return tmp_path


def write_visa(folder, *rows, columns=VISA_COLUMNS):
    touch(folder / VISA_SPLIT)
    text = "\n".join((",".join(columns), *rows, ""))
    (folder / VISA_SPLIT).write_text(text, encoding="utf-8", errors="surrogateescape")


def read_visa(data_path, split="test"):
    return read(data_path, "visa", split, find_classes(data_path, "visa")[1][0])


def test_visa_is_read_by_its_table(visa):
    assert find_classes(visa, "visa")[1] == ["candle", "pcb1"]
    assert find_classes(visa) == find_classes(visa, "visa")
    assert read_visa(visa, "train")[0] == [("good_0",), ("good_1",)]
    assert read_visa(visa) == ([("anomaly_bad", "mask.png"), ("good_2",)], True)


def test_visa_has_all_masks_or_none(visa):
    table = (visa / VISA_SPLIT).read_text()
    (visa / VISA_SPLIT).write_text(table.replace("candle/mask.png", ""))
    assert read_visa(visa) == ([("anomaly_bad",), ("good_2",)], False)
    touch(visa / "candle/images/worse.JPG")
    (visa / VISA_SPLIT).write_text(table + "candle,test,anomaly,candle/images/worse.JPG,\n")
    with pytest.raises(ValueError, match=r"mask missing for .*worse\.JPG: expected one in"):
        read_visa(visa)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("candle/images/2.JPG", r"2\.JPG, which split_csv/1cls\.csv names; unpack all"),
        ("candle/mask.png", r"mask\.png, which split_csv/1cls\.csv names; unpack all"),
        (VISA_SPLIT, r"split_csv/1cls\.csv; it says which images"),
    ],
)
def test_visa_file_that_does_not_exist_is_refused(visa, name, message):
    (visa / name).unlink()
    with pytest.raises(ValueError, match=f"no file .*{message}"):
        read_visa(visa)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,anomaly,a.png,", "is damaged in line 2, or lacks one of the columns"),
        ("candle,val,normal,a.png,", "is damaged in line 2"),
        (",train,normal,a.png,", "is damaged in line 2"),
        ("..,train,normal,a.png,", "is damaged in line 2"),
        ("../b,train,normal,a.png,", "is damaged in line 2"),
        (f"candle,train,normal,{'x' * 140_000},", r"is damaged \(.*unpack it again"),
        ("candle,train,normal,a,", "names no test images of candle"),
        ("candle,train,normal,a", "lacks one of the columns object,split,label,image,mask; unpack"),
    ],
)
def test_table_of_visa_that_is_damaged_or_incomplete_is_refused(tmp_path, row, message):
    write_visa(tmp_path, row, columns=VISA_COLUMNS[: row.count(",") + 1])
    with pytest.raises(ValueError, match=rf"1cls\.csv .*{message}"):
        read_visa(tmp_path)


# masks and images of MVTec AD's layout


def list_mvtec(folder):
    return LAYOUTS["mvtec"].list_samples(folder.parent, folder.name, "test", Notes())


def test_an_empty_test_folder_is_reported(tmp_path):
    (tmp_path / "bolt/test").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*test; expected <defect type>/"):
        list_mvtec(tmp_path / "bolt")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["000", "001"], ["000-mask", "001_MASK"]),
        (["m\u00fcller"], ["mu\u0308ller_mask"]),
        (["a-b"], ["A b_gt"]),
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
    samples, _ = list_mvtec(folder)
    found = {sample.path.stem: [path.stem for path in sample.mask_paths] for sample in samples}
    assert found == {image: [mask] for image, mask in zip(images, masks, strict=True)}
