"""The layouts that data sets come in: how each names its classes and pairs images with masks.

Reference: BTAD (Mishra et al., ISIE 2021), VisA (Zou et al., ECCV 2022), MVTec LOCO AD (Bergmann
et al., IJCV 2022), MVTec 3D-AD (Bergmann et al., VISAPP 2022), as their authors distribute them.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets import folder, mvtec
from datasets.mvtec import (
    Sample,
    find_by_stem,
    find_folders_with,
    list_folders,
    list_images,
    mask_finder,
    read_folders,
)

AUTO = "auto"
VISA_SPLIT = Path("split_csv", "1cls.csv")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
VISA_LABELS = {("train", "normal"): 0, ("test", "normal"): 0, ("test", "anomaly"): 1}


class Layout(NamedTuple):
    """How a data set is read.

    Attributes:
        shape: of the training images' paths, in words.
        list_classes: gives the class names in a data_path, sorted.
        list_samples: gives the images of a data_path, class name and split ("train" or "test"),
            and whether the defects are marked.
    """

    shape: str
    list_classes: Callable[[Path], list[str]]
    list_samples: Callable[[Path, str, str], tuple[list[Sample], bool]]


def find_classes(data_path: Path, dataset: str = AUTO) -> tuple[Layout, list[str]]:
    """The layout of data_path and its classes, sorted.

    Args:
        data_path: of the data set.
        dataset: a key of LAYOUTS; AUTO is "mvtec" if that fits, else "folder".

    Raises:
        FileNotFoundError: if data_path is no folder or holds no class.
        ValueError: if data_path is a class itself, or as the layout raises it.
    """
    names = ("mvtec", "folder") if dataset == AUTO else (dataset,)
    wanted = " or ".join(f"{LAYOUTS[name].shape} (--dataset {name})" for name in names)
    if not data_path.is_dir():
        raise FileNotFoundError(f"no folder {data_path}; --data_path must hold {wanted}")
    if "mvtec" in names and (data_path / "train" / "good").is_dir():
        path = data_path.resolve()
        raise ValueError(
            f"{data_path} is itself a class; give --data_path {path.parent} "
            f"--class_name {path.name}"
        )
    for name in names:
        if class_names := LAYOUTS[name].list_classes(data_path):
            return LAYOUTS[name], class_names
    raise FileNotFoundError(f"no class in {data_path}; --data_path must hold {wanted}")


def list_btad_classes(data_path: Path) -> list[str]:
    """The folders that have train/ok."""
    return find_folders_with(data_path, "train/ok")


def list_btad(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """BTAD: train/ok, test/ok, test/ko; the masks in ground_truth/ko have the images' stems.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    images, masks = data_path / class_name / split, data_path / class_name / "ground_truth"
    find_masks = mask_finder(masks, "") if masks.is_dir() else None
    defect_types = ["ok"] if split == "train" else ["ok", "ko"]
    return read_folders(images, defect_types, find_masks, good="ok"), masks.is_dir()


def list_loco_classes(data_path: Path) -> list[str]:
    """The folders that have train/good."""
    return find_folders_with(data_path, "train/good")


def list_loco(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """MVTec LOCO AD: several masks per image, as ground_truth/<defect type>/<stem>/000.png.

    validation/good is not used: it is there to choose thresholds, published results learn from
    train/good alone.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    images, masks = data_path / class_name / split, data_path / class_name / "ground_truth"

    def find_masks(defect_type: str, path: Path) -> tuple[Path, ...]:
        found = list_images(masks / defect_type / path.stem)
        if not found:
            wanted = masks / defect_type / path.stem / "000.png"
            raise FileNotFoundError(f"mask missing for {path}: expected {wanted}")
        return tuple(found)

    defect_types = ["good"] if split == "train" else list_folders(images)
    has_masks = masks.is_dir()
    return read_folders(images, defect_types, find_masks if has_masks else None), has_masks


def list_mvtec3d_classes(data_path: Path) -> list[str]:
    """The folders that have train/good/rgb."""
    return find_folders_with(data_path, "train/good/rgb")


def list_mvtec3d(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """MVTec 3D-AD: <defect type>/rgb with masks of the same stem in <defect type>/gt.

    The point clouds in xyz are not used.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    images = data_path / class_name / split

    def find_masks(defect_type: str, path: Path) -> tuple[Path, ...]:
        return (find_by_stem(images / defect_type / "gt", path.stem, path),)

    defect_types = ["good"] if split == "train" else list_folders(images)
    has_masks = any((images / defect_type / "gt").is_dir() for defect_type in defect_types)
    samples = read_folders(images, defect_types, find_masks if has_masks else None, inside="rgb")
    return samples, has_masks


def list_visa_classes(data_path: Path) -> list[str]:
    """The objects that split_csv/1cls.csv names."""
    return sorted({row["object"] for row in _read_visa(data_path)})


def list_visa(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """VisA: the images and masks that split_csv/1cls.csv names for the one-class setup.

    Raises:
        FileNotFoundError: if the table, an image or a mask is missing.
        ValueError: if the table is damaged.
    """
    rows = [
        row for row in _read_visa(data_path) if (row["object"], row["split"]) == (class_name, split)
    ]
    if not rows:
        raise FileNotFoundError(f"{data_path / VISA_SPLIT} names no {split} images of {class_name}")
    has_masks = any(row["mask"] for row in rows)
    samples = []
    for row in rows:
        path, label = data_path / row["image"], VISA_LABELS[split, row["label"]]
        mask_paths = (data_path / row["mask"],) if label and row["mask"] else ()
        for file in (path, *mask_paths):
            if not file.is_file():
                raise FileNotFoundError(f"no file {file}, which {VISA_SPLIT} names; unpack all")
        if label and has_masks and not mask_paths:
            raise FileNotFoundError(f"mask missing for {path}: expected one in {VISA_SPLIT}")
        samples.append(Sample(path, row["label"] if label else "good", label, mask_paths))
    return sorted(samples, key=lambda sample: (sample.defect_type, sample.path)), has_masks


def _read_visa(data_path: Path) -> list[dict[str, str]]:
    path = data_path / VISA_SPLIT
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; it says which images VisA trains and tests on")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        try:
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is damaged ({error}); unpack it again") from error
    missing = [name for name in VISA_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; it must have {','.join(VISA_COLUMNS)}"
        )
    for row in rows:
        # its results go into folders of this name
        if Path(row["object"]).name != row["object"] or row["object"] in ("", ".."):
            raise ValueError(f"{path} names the class {row['object']!r}; it must be a plain name")
        if (row["split"], row["label"]) not in VISA_LABELS:
            raise ValueError(
                f"{path} calls {row['image']} {row['split']},{row['label']}; "
                f"accepted are {' '.join(map(','.join, VISA_LABELS))}"
            )
    return rows


LAYOUTS = {
    "mvtec": Layout("<class>/train/good/*.png", mvtec.list_classes, mvtec.list_samples),
    "folder": Layout("good/*.png or <class>/good/*.png", folder.list_classes, folder.list_samples),
    "btad": Layout("<class>/train/ok/*.png", list_btad_classes, list_btad),
    "visa": Layout(VISA_SPLIT.as_posix(), list_visa_classes, list_visa),
    "loco": Layout("<class>/train/good/*.png", list_loco_classes, list_loco),
    "mvtec3d": Layout("<class>/train/good/rgb/*.png", list_mvtec3d_classes, list_mvtec3d),
}
