import re
from pathlib import Path

import numpy as np
import pytest

from datasets.dataset import choose_classes, load_splits
from datasets.images import Preprocessing
from datasets.layouts import LAYOUTS, VISA_SPLIT, find_classes
from tests.conftest import write_image

GREY = np.full((40, 40), 90, dtype=np.uint8)
UNTOUCHED = Preprocessing(0, 0)


def write_all(folder: Path, *names: str) -> None:
    for name in names:
        write_image(folder / name, GREY)


def mask(left: int) -> np.ndarray:
    """A mask (40, 40) of ten columns."""
    pixels = np.zeros((40, 40), dtype=np.uint8)
    pixels[:, left : left + 10] = 255
    return pixels


def load(data_path: Path, dataset: str):
    """The training and the test images of the first class, as --dataset reads them."""
    layout, class_names = choose_classes(data_path, None, dataset)
    return load_splits(data_path, class_names[0], layout, UNTOUCHED)


def described(data_path: Path, dataset) -> list[tuple]:
    """Name, label, and masks relative to data_path, of every sample."""
    return [
        (s.name, s.label, *(path.relative_to(data_path).as_posix() for path in s.mask_paths))
        for s in dataset.samples
    ]


def write_visa(folder: Path, *rows: str) -> None:
    (folder / VISA_SPLIT).parent.mkdir(exist_ok=True)
    (folder / VISA_SPLIT).write_text("\n".join(("object,split,label,image,mask", *rows)) + "\n")


@pytest.fixture
def btad(tmp_path):
    for name in ("01/train/ok/0000.bmp", "01/train/ok/0001.bmp", "01/test/ok/0000.bmp"):
        write_image(tmp_path / name, GREY)
    write_all(tmp_path, "01/test/ko/0000.bmp", "01/test/ko/0001.bmp", "02/train/ok/0000.png")
    write_image(tmp_path / "01/ground_truth/ko/0000.png", mask(0))
    write_image(tmp_path / "01/ground_truth/ko/0001.bmp", mask(10))
    return tmp_path


@pytest.fixture
def visa(tmp_path):
    images, masks = "candle/Data/Images", "candle/Data/Masks/Anomaly/000.png"
    write_all(tmp_path, *(f"{images}/Normal/{i:04}.JPG" for i in range(3)))
    write_all(tmp_path, f"{images}/Anomaly/000.JPG", f"{images}/Normal/unused.JPG")
    write_image(tmp_path / masks, (mask(5) > 0).astype(np.uint8))
    write_visa(
        tmp_path,
        "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
        f"candle,test,normal,{images}/Normal/0002.JPG,",
        f"candle,train,normal,{images}/Normal/0001.JPG,",
        f"candle,train,normal,{images}/Normal/0000.JPG,",
        f"candle,test,anomaly,{images}/Anomaly/000.JPG,{masks}",
    )
    return tmp_path


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


@pytest.fixture
def mvtec3d(tmp_path):
    folder = tmp_path / "bagel"
    write_all(folder, "train/good/rgb/000.png", "train/good/rgb/001.png")
    write_all(folder, "validation/good/rgb/000.png", "test/good/rgb/000.png")
    write_all(folder, "test/hole/rgb/000.png", "test/crack/rgb/000.png")
    write_image(folder / "test/good/gt/000.png", mask(40))
    write_image(folder / "test/hole/gt/000.png", mask(5))
    write_image(folder / "test/crack/gt/000.png", mask(15))
    (folder / "test/hole/xyz").mkdir()
    (folder / "test/hole/xyz/000.tiff").write_text("no image that Pillow reads")
    return tmp_path


def test_mvtec_is_found_first(tree):
    (tree / "notes").mkdir()
    write_all(tree, "other/good/000.png", ".hidden/train/good/000.png")
    assert find_classes(tree) == (LAYOUTS["mvtec"], ["bolt", "weave"])


def test_layout_that_is_named_is_taken(tree):
    write_all(tree, "other/good/000.png")
    assert find_classes(tree, "folder") == (LAYOUTS["folder"], ["other"])


@pytest.mark.parametrize("dataset", ["auto", "mvtec"])
def test_class_given_as_data_path_is_refused_with_the_options(tree, dataset):
    message = f"bolt is itself a class; give --data_path {tree} --class_name bolt"
    with pytest.raises(ValueError, match=re.escape(message)):
        find_classes(tree / "bolt", dataset)


def test_folder_in_no_layout_is_refused_with_both_shapes(tmp_path):
    (tmp_path / "000.png").write_text("")
    with pytest.raises(
        FileNotFoundError,
        match=r"no class in .*; --data_path must hold <class>/train/good/\*\.png "
        r"\(--dataset mvtec\) or good/\*\.png or <class>/good/\*\.png \(--dataset folder\)",
    ):
        find_classes(tmp_path)


@pytest.mark.parametrize("dataset", [name for name in LAYOUTS if name != "visa"])
def test_folder_without_classes_is_refused_with_the_shape_of_the_layout(tmp_path, dataset):
    shape = re.escape(LAYOUTS[dataset].shape)
    with pytest.raises(FileNotFoundError, match=rf"no class in .* must hold {shape} \(--dataset"):
        find_classes(tmp_path, dataset)


@pytest.mark.parametrize("name", ["nowhere", "bolt/train/good/000.png"])
def test_data_path_that_is_no_folder_is_refused(tree, name):
    with pytest.raises(FileNotFoundError, match=rf"no folder .*{name}; --data_path must hold"):
        find_classes(tree / name)


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
    np.testing.assert_array_equal(test[1][2], mask(0) > 0)


def test_btad_without_masks_has_none(btad):
    for path in (btad / "01/ground_truth/ko").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*ko/0000\.bmp: expected"):
        load(btad, "btad")
    (btad / "01/ground_truth/ko").rmdir()
    (btad / "01/ground_truth").rmdir()
    assert not load(btad, "btad")[1].has_masks


def test_visa_is_read_by_its_table(visa):
    train, test = load(visa, "visa")
    assert choose_classes(visa, None, "visa")[1] == ["candle", "pcb1"]
    assert described(visa, train) == [("good_0000", 0), ("good_0001", 0)]
    assert described(visa, test) == [
        ("anomaly_000", 1, "candle/Data/Masks/Anomaly/000.png"),
        ("good_0002", 0),
    ]
    assert test.has_masks
    np.testing.assert_array_equal(test[0][2], mask(5) > 0)


def test_visa_without_its_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*split_csv/1cls\.csv; it says which"):
        load(tmp_path, "visa")


def test_visa_table_without_a_column_is_refused(visa):
    (visa / VISA_SPLIT).write_text("object,split,label,image\ncandle,train,normal,a.png\n")
    with pytest.raises(ValueError, match=r"1cls\.csv lacks the columns mask; it must have object,"):
        load(visa, "visa")


@pytest.mark.parametrize("words", ["train,anomaly", "test,bad", "val,normal"])
def test_visa_table_with_another_label_is_refused(visa, words):
    write_visa(visa, f"candle,{words},a.png,")
    with pytest.raises(
        ValueError, match=rf"1cls\.csv calls a\.png {words}; accepted are train,nor"
    ):
        load(visa, "visa")


@pytest.mark.parametrize("name", ["", "..", "../candle", "/tmp/candle"])
def test_visa_class_that_is_no_plain_name_is_refused(visa, name):
    write_visa(visa, f"{name},train,normal,a.png,")
    with pytest.raises(ValueError, match=r"1cls\.csv names the class '.*'; it must be a plain"):
        load(visa, "visa")


@pytest.mark.parametrize("cell", [b"x" * 140_000, b"\xff"])
def test_visa_table_that_is_no_text_is_refused(visa, cell):
    with (visa / VISA_SPLIT).open("ab") as file:
        file.write(cell)
    with pytest.raises(ValueError, match=r"1cls\.csv is damaged \(.*unpack it again"):
        load(visa, "visa")


def test_visa_table_without_test_images_is_refused(visa):
    write_visa(visa, "candle,train,normal,candle/Data/Images/Normal/0000.JPG,")
    with pytest.raises(FileNotFoundError, match=r"1cls\.csv names no test images of candle"):
        load(visa, "visa")


@pytest.mark.parametrize("name", ["Images/Normal/0002.JPG", "Masks/Anomaly/000.png"])
def test_visa_file_that_is_not_there_is_refused(visa, name):
    (visa / "candle/Data" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file .*{name}, which split_csv/1cls\.csv"):
        load(visa, "visa")


def test_visa_anomaly_without_a_mask_is_refused_if_others_have_one(visa):
    write_all(visa, "candle/Data/Images/Anomaly/001.JPG")
    with (visa / VISA_SPLIT).open("a") as file:
        file.write("candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,\n")
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*001\.JPG: expected one in"):
        load(visa, "visa")


def test_visa_without_masks_has_none(visa):
    table = (visa / VISA_SPLIT).read_text()
    (visa / VISA_SPLIT).write_text(table.replace("candle/Data/Masks/Anomaly/000.png", ""))
    _, test = load(visa, "visa")
    assert not test.has_masks
    assert described(visa, test)[0] == ("anomaly_000", 1)


def test_loco_is_read_with_several_masks(loco):
    train, test = load(loco, "loco")
    # validation/good is not among them
    assert described(loco, train) == [("good_000", 0), ("good_001", 0)]
    truth = "breakfast_box/ground_truth"
    logical = [f"{truth}/logical_anomalies/000/{name}.png" for name in ("000", "001")]
    assert described(loco, test) == [
        ("good_000", 0),
        ("logical_anomalies_000", 1, *logical),
        ("structural_anomalies_000", 1, f"{truth}/structural_anomalies/000/000.png"),
    ]
    assert test.has_masks


def test_several_masks_are_united(loco):
    _, test = load(loco, "loco")
    np.testing.assert_array_equal(test[1][2], (mask(0) | mask(25)) > 0)


def test_each_of_several_masks_must_have_the_size_of_the_image(loco):
    path = loco / "breakfast_box/ground_truth/logical_anomalies/000/001.png"
    write_image(path, mask(0)[:39])
    with pytest.raises(ValueError, match=r"mask .*001\.png is 40x39 pixels but its image .*40x40"):
        load(loco, "loco")


def test_loco_image_without_masks_is_refused(loco):
    (loco / "breakfast_box/ground_truth/structural_anomalies/000/000.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"mask missing for .*000\.png: expected .*_anomalies/000/000\.png"
    ):
        load(loco, "loco")


def test_mvtec3d_is_read_without_its_point_clouds(mvtec3d):
    train, test = load(mvtec3d, "mvtec3d")
    assert described(mvtec3d, train) == [("good_000", 0), ("good_001", 0)]
    assert described(mvtec3d, test) == [
        ("crack_000", 1, "bagel/test/crack/gt/000.png"),
        ("good_000", 0),
        ("hole_000", 1, "bagel/test/hole/gt/000.png"),
    ]
    assert test.has_masks
    np.testing.assert_array_equal(test[2][2], mask(5) > 0)


def test_mvtec3d_image_without_a_mask_is_refused(mvtec3d):
    (mvtec3d / "bagel/test/hole/gt/000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask missing for .*hole/rgb/000\.png: expected"):
        load(mvtec3d, "mvtec3d")


@pytest.mark.parametrize(
    ("dataset", "folder", "wanted"),
    [
        ("btad", "01/train/ok", r"01/train; expected ok/\*\.png \(also"),
        ("loco", "breakfast_box/train/good", r"breakfast_box/train; expected good/\*\.png"),
        ("mvtec3d", "bagel/train/good/rgb", r"bagel/train; expected good/rgb/\*\.png"),
        ("mvtec3d", "bagel/test/*/rgb", r"bagel/test; expected <defect type>/rgb/\*\.png"),
    ],
)
def test_empty_folder_is_refused(request, dataset, folder, wanted):
    data_path = request.getfixturevalue(dataset)
    paths = list(data_path.glob(f"{folder}/*"))
    assert paths
    for path in paths:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no images in .*{wanted}"):
        load(data_path, dataset)
