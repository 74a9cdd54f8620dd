import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.dataset import choose_classes, load_splits
from datasets.images import Preprocessing
from datasets.layouts import LAYOUTS, VISA_SPLIT, find_classes
from tests.conftest import write_image

GREY = np.full((40, 40), 90, dtype=np.uint8)


def write_all(folder, *names):
    for name in names:
        write_image(folder / name, GREY)


def mask(left):
    """A mask (40, 40) of ten columns."""
    pixels = np.zeros((40, 40), dtype=np.uint8)
    pixels[:, left : left + 10] = 255
    return pixels


def load(data_path, dataset):
    """The training and the test images of the first class, as --dataset reads them."""
    layout, class_names = choose_classes(data_path, None, dataset)
    return load_splits(data_path, class_names[0], layout, Preprocessing(0, 0))


def described(data_path, dataset):
    """Name, label, and masks relative to data_path, of every sample."""
    return [
        (s.name, s.label, *(path.relative_to(data_path).as_posix() for path in s.mask_paths))
        for s in dataset.samples
    ]


# finding the layout


def test_auto_prefers_mvtec_and_a_named_layout_is_taken(tree):
    (tree / "notes").mkdir()
    write_all(tree, "other/good/000.png", ".hidden/train/good/000.png")
    assert find_classes(tree) == (LAYOUTS["mvtec"], ["bolt", "weave"])
    assert find_classes(tree, "folder") == (LAYOUTS["folder"], ["other"])


def test_class_given_as_data_path_is_refused_with_the_options(tree):
    message = f"bolt is itself a class; give --data_path {tree} --class_name bolt"
    with pytest.raises(ValueError, match=re.escape(message)):
        find_classes(tree / "bolt")


@pytest.mark.parametrize("dataset", ["auto", "folder", "btad", "loco", "mvtec3d"])
def test_folder_without_classes_is_refused_with_what_is_expected(tmp_path, dataset):
    names = ["mvtec", "folder"] if dataset == "auto" else [dataset]
    shapes = [f"{LAYOUTS[name].shape} (--dataset {name})" for name in names]
    message = re.escape(f"no class in {tmp_path}; --data_path must hold {' or '.join(shapes)}")
    with pytest.raises(FileNotFoundError, match=message):
        find_classes(tmp_path, dataset)


@pytest.mark.parametrize("name", ["nowhere", "bolt/train/good/000.png"])
def test_data_path_that_is_no_folder_is_refused(tree, name):
    with pytest.raises(FileNotFoundError, match=rf"no folder .*{name}; --data_path must hold"):
        find_classes(tree / name)


# the folder layout


@pytest.fixture
def parts(tmp_path):
    """A folder with 12 good images and three defects of two types, with masks."""
    folder = tmp_path / "my parts é"
    write_all(folder, *(f"good/{i:03}.png" for i in range(12)))
    for name in ("scratch/000", "scratch/001", "dent/000"):
        write_all(folder, f"{name}.png", f"ground_truth/{name}_mask.png")
    return folder


def test_a_folder_is_a_class_named_after_itself(parts, monkeypatch):
    assert choose_classes(parts, None) == (LAYOUTS["folder"], ["my parts é"])
    monkeypatch.chdir(parts)
    assert choose_classes(Path("."), None)[1] == ["my parts é"]
    assert len(load(Path("."), "folder")[0]) == 10


def test_folders_in_a_folder_are_its_classes(parts):
    shutil.copytree(parts, parts.parent / "another")
    shutil.copytree(parts, parts.parent / ".hidden")
    (parts.parent / "empty").mkdir()
    assert choose_classes(parts.parent, None) == (LAYOUTS["folder"], ["another", "my parts é"])
    train, test = load(parts.parent, "folder")
    assert (len(train), len(test)) == (10, 5)
    assert all("another" in sample.path.parts for sample in (*train.samples, *test.samples))


def test_own_images_are_split_and_paired_with_masks(parts):
    (parts / ".cache").mkdir()
    write_all(parts, ".cache/000.png")
    train, test = load(parts, "folder")
    assert described(parts, train) == [(f"good_{i:03}", 0) for i in range(12) if i not in (2, 7)]
    assert described(parts, test) == [
        ("good_002", 0),
        ("good_007", 0),
        ("dent_000", 1, "ground_truth/dent/000_mask.png"),
        ("scratch_000", 1, "ground_truth/scratch/000_mask.png"),
        ("scratch_001", 1, "ground_truth/scratch/001_mask.png"),
    ]
    assert test.has_masks
    (parts / "ground_truth/dent/000_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*dent/000\.png: expected .*"):
        load(parts, "folder")
    shutil.rmtree(parts / "ground_truth")
    _, test = load(parts, "folder")
    assert described(parts, test)[2:] == [("dent_000", 1), ("scratch_000", 1), ("scratch_001", 1)]
    assert not test.has_masks


@pytest.mark.parametrize(("count", "n_train", "n_test"), [(3, 2, 1), (7, 6, 1), (8, 6, 2)])
def test_one_good_image_in_five_is_kept_for_testing(tmp_path, count, n_train, n_test):
    write_all(tmp_path, *(f"good/{i}.png" for i in range(count)))
    train, test = load(tmp_path, "folder")
    assert (len(train), len(test)) == (n_train, n_test)


@pytest.mark.parametrize("names", [["good/0.png", "good/1.png"], ["good/0.png", "dent/notes.bmp"]])
def test_nothing_to_test_on_is_refused(tmp_path, names):
    write_all(tmp_path, *names)
    (tmp_path / "dent/notes.bmp").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"nothing to test on in .*; give at least 3"):
        load(tmp_path, "folder")


# BTAD


@pytest.fixture
def btad(tmp_path):
    write_all(tmp_path, "01/train/ok/0000.bmp", "01/train/ok/0001.bmp", "01/test/ok/0000.bmp")
    write_all(tmp_path, "01/test/ko/0000.bmp", "01/test/ko/0001.bmp", "02/train/ok/0000.png")
    write_all(tmp_path, "01/ground_truth/ko/0000.png", "01/ground_truth/ko/0001.bmp")
    return tmp_path


def test_btad_is_read(btad):
    train, test = load(btad, "btad")
    assert choose_classes(btad, None, "btad")[1] == ["01", "02"]
    assert described(btad, train) == [("good_0000", 0), ("good_0001", 0)]
    assert described(btad, test) == [
        ("good_0000", 0),
        ("ko_0000", 1, "01/ground_truth/ko/0000.png"),
        ("ko_0001", 1, "01/ground_truth/ko/0001.bmp"),
    ]
    assert test.has_masks


def test_btad_may_have_no_masks_at_all_but_not_some(btad):
    (btad / "01/ground_truth/ko/0000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*ko/0000\.bmp: expected"):
        load(btad, "btad")
    shutil.rmtree(btad / "01/ground_truth")
    assert not load(btad, "btad")[1].has_masks


# MVTec LOCO AD


@pytest.fixture
def loco(tmp_path):
    folder = tmp_path / "breakfast_box"
    write_all(folder, "train/good/000.png", "train/good/001.png", "validation/good/000.png")
    write_all(folder, "test/good/000.png", "test/logical_anomalies/000.png")
    write_all(folder, "test/structural_anomalies/000.png")
    write_image(folder / "ground_truth/logical_anomalies/000/000.png", mask(0))
    write_image(folder / "ground_truth/logical_anomalies/000/001.png", mask(25))
    write_image(folder / "ground_truth/structural_anomalies/000/000.png", mask(5))
    return tmp_path


def test_loco_is_read_with_all_masks_of_an_image_and_without_validation(loco):
    train, test = load(loco, "loco")
    assert described(loco, train) == [("good_000", 0), ("good_001", 0)]
    truth = "breakfast_box/ground_truth"
    logical = [f"{truth}/logical_anomalies/000/{name}.png" for name in ("000", "001")]
    assert described(loco, test) == [
        ("good_000", 0),
        ("logical_anomalies_000", 1, *logical),
        ("structural_anomalies_000", 1, f"{truth}/structural_anomalies/000/000.png"),
    ]
    assert test.has_masks
    np.testing.assert_array_equal(test[1][2], (mask(0) | mask(25)) > 0)


def test_each_of_several_masks_must_have_the_size_of_the_image(loco):
    path = loco / "breakfast_box/ground_truth/logical_anomalies/000/001.png"
    write_image(path, mask(0)[:39])
    with pytest.raises(ValueError, match=r"mask .*001\.png is 40x39 pixels but its image .*40x40"):
        load(loco, "loco")


def test_loco_image_without_masks_is_refused(loco):
    (loco / "breakfast_box/ground_truth/structural_anomalies/000/000.png").unlink()
    message = r"mask missing for .*000\.png: expected .*_anomalies/000/000\.png"
    with pytest.raises(FileNotFoundError, match=message):
        load(loco, "loco")
    shutil.rmtree(loco / "breakfast_box/ground_truth")
    assert not load(loco, "loco")[1].has_masks


# MVTec 3D-AD


@pytest.fixture
def mvtec3d(tmp_path):
    folder = tmp_path / "bagel"
    write_all(folder, "train/good/rgb/000.png", "train/good/rgb/001.png")
    write_all(
        folder, "validation/good/rgb/000.png", "test/good/rgb/000.png", "test/good/gt/000.png"
    )
    write_all(folder, "test/hole/rgb/000.png", "test/crack/rgb/000.png")
    write_all(folder, "test/hole/gt/000.png", "test/crack/gt/000.png")
    (folder / "test/hole/xyz").mkdir()
    (folder / "test/hole/xyz/000.tiff").write_text("no image that Pillow reads")
    return tmp_path


def test_mvtec3d_is_read_without_its_point_clouds(mvtec3d):
    train, test = load(mvtec3d, "mvtec3d")
    assert described(mvtec3d, train) == [("good_000", 0), ("good_001", 0)]
    assert described(mvtec3d, test) == [
        ("crack_000", 1, "bagel/test/crack/gt/000.png"),
        ("good_000", 0),
        ("hole_000", 1, "bagel/test/hole/gt/000.png"),
    ]
    assert test.has_masks
    (mvtec3d / "bagel/test/hole/gt/000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*hole/rgb/000\.png: expected"):
        load(mvtec3d, "mvtec3d")


# VisA


@pytest.fixture
def visa(tmp_path):
    images, masks = "candle/Data/Images", "candle/Data/Masks/Anomaly"
    write_all(tmp_path, *(f"{images}/Normal/{i:04}.JPG" for i in range(3)))
    write_all(tmp_path, f"{images}/Anomaly/000.JPG", f"{masks}/000.png")
    write_all(tmp_path, f"{images}/Normal/unused.JPG")
    write_visa(
        tmp_path,
        "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
        f"candle,test,normal,{images}/Normal/0002.JPG,",
        f"candle,train,normal,{images}/Normal/0001.JPG,",
        f"candle,train,normal,{images}/Normal/0000.JPG,",
        f"candle,test,anomaly,{images}/Anomaly/000.JPG,{masks}/000.png",
    )
    return tmp_path


def write_visa(folder, *rows, header="object,split,label,image,mask"):
    (folder / VISA_SPLIT).parent.mkdir(exist_ok=True)
    (folder / VISA_SPLIT).write_text("\n".join((header, *rows)) + "\n")


def test_visa_is_read_by_its_table(visa):
    train, test = load(visa, "visa")
    assert choose_classes(visa, None, "visa")[1] == ["candle", "pcb1"]
    assert described(visa, train) == [("good_0000", 0), ("good_0001", 0)]
    assert described(visa, test) == [
        ("anomaly_000", 1, "candle/Data/Masks/Anomaly/000.png"),
        ("good_0002", 0),
    ]
    assert test.has_masks


def test_visa_without_masks_has_none(visa):
    table = (visa / VISA_SPLIT).read_text()
    (visa / VISA_SPLIT).write_text(table.replace("candle/Data/Masks/Anomaly/000.png", ""))
    _, test = load(visa, "visa")
    assert not test.has_masks
    assert described(visa, test)[0] == ("anomaly_000", 1)


def test_visa_without_its_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*split_csv/1cls\.csv; it says which"):
        load(tmp_path, "visa")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,anomaly,a.png,", r"calls a\.png train,anomaly; accepted are train,normal"),
        ("candle,val,normal,a.png,", r"calls a\.png val,normal; accepted are train,normal"),
        (",train,normal,a.png,", "names the class ''; it must be a plain name"),
        ("..,train,normal,a.png,", r"names the class '\.\.'; it must be a plain name"),
        ("../candle,train,normal,a.png,", r"names the class '\.\./candle'; it must be a plain"),
        (f"candle,train,normal,{'x' * 140_000},", r"is damaged \(.*unpack it again"),
        ("candle,train,normal,\udcff,", r"is damaged \(.*unpack it again"),
    ],
)
def test_damaged_row_of_visa_s_table_is_refused(visa, row, message):
    with (visa / VISA_SPLIT).open("a", errors="surrogateescape") as file:
        file.write(row + "\n")
    with pytest.raises(ValueError, match=rf"1cls\.csv {message}"):
        load(visa, "visa")


def test_visa_table_without_a_column_is_refused(visa):
    write_visa(visa, "candle,train,normal,a.png", header="object,split,label,image")
    with pytest.raises(ValueError, match=r"1cls\.csv lacks the columns mask; it must have object,"):
        load(visa, "visa")


def test_visa_table_without_test_images_is_refused(visa):
    write_visa(visa, "candle,train,normal,candle/Data/Images/Normal/0000.JPG,")
    with pytest.raises(FileNotFoundError, match=r"1cls\.csv names no test images of candle"):
        load(visa, "visa")


@pytest.mark.parametrize("name", ["Images/Normal/0002.JPG", "Masks/Anomaly/000.png"])
def test_visa_file_that_does_not_exist_is_refused(visa, name):
    (visa / "candle/Data" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file .*{name}, which split_csv/1cls\.csv"):
        load(visa, "visa")


def test_visa_anomaly_without_a_mask_is_refused_if_others_have_one(visa):
    write_all(visa, "candle/Data/Images/Anomaly/001.JPG")
    with (visa / VISA_SPLIT).open("a") as file:
        file.write("candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,\n")
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*001\.JPG: expected one in"):
        load(visa, "visa")


# any names

STEMS = st.text("ab01_ é-.{}", min_size=1, max_size=6).filter(
    lambda name: name[0] not in ". " and name[-1] not in ". "
)
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])
FILES = st.dictionaries(STEMS, SUFFIXES, min_size=1, max_size=8)  # suffixes by stem
DEFECT_TYPES = st.text("abc _{}", min_size=1, max_size=4).filter(lambda name: name.strip() == name)
TREES = st.dictionaries(DEFECT_TYPES, FILES, min_size=1, max_size=3)
# folder of test images, mask of an image
PATHS = {
    "mvtec": ("test/{}", "ground_truth/{}/{}_mask.png"),
    "loco": ("test/{}", "ground_truth/{}/{}/000.png"),
    "mvtec3d": ("test/{}/rgb", "test/{}/gt/{}.png"),
}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("dataset", PATHS)
@settings(deadline=None, max_examples=30, derandomize=True)
@given(good=FILES, defects=TREES)
def test_images_of_any_names_are_read_in_order_with_their_masks(dataset, good, defects):
    folder, mask_path = PATHS[dataset]
    tree = defects | {"good": good}
    with tempfile.TemporaryDirectory() as data_path:
        root = Path(data_path, "bolt")
        for defect_type, files in tree.items():
            for name in (*map("".join, files.items()), ".hidden.png", "notes.txt", "png"):
                touch(root / folder.format(defect_type) / name)
        for defect_type, files in defects.items():
            for stem in (*files, "decoy"):
                touch(root / mask_path.format(defect_type, stem))
        samples, has_masks = LAYOUTS[dataset].list_samples(Path(data_path), "bolt", "test")
    found = [(s.defect_type, s.path.name, s.label, s.mask_paths) for s in samples]
    assert has_masks
    assert found == [
        (
            kind,
            stem + suffix,
            int(kind != "good"),
            () if kind == "good" else (root / mask_path.format(kind, stem),),
        )
        for kind, files in sorted(tree.items())
        for stem, suffix in sorted(files.items(), key="".join)
    ]
