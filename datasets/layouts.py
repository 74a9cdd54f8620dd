"""The layouts of other data sets: how each names its classes and pairs images with masks.

Reference: BTAD (Mishra et al., ISIE 2021), VisA (Zou et al., ECCV 2022), MVTec LOCO AD (Bergmann
et al., IJCV 2022), MVTec 3D-AD (Bergmann et al., VISAPP 2022), as their authors distribute them.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import mvtec
from datasets.folders import (
    find_good,
    holds_masks,
    list_folders,
    list_folders_with,
    list_images,
)
from datasets.mvtec import (
    MaskFinder,
    Sample,
    find_mask_folder,
    missing_mask,
    note_unread,
    read_folders,
)
from datasets.notes import Notes
from utils.system.errors import UserError

AUTO = "auto"
BY_NAME = ("mvtec", "folder")  # layouts in which folders are known by usual names
MOST_SEEN = 10  # folders that an error message names
# good images of the folder layout that are kept for testing: one in five, about as in MVTec AD,
# from the third on, so that at least two are left for training
HELD_OUT = slice(2, None, 5)
# folders of a class that tell its layout from those in BY_NAME
SIGNS = {"mvtec3d": "train/good/xyz", "loco": "ground_truth/logical_anomalies/000"}
VISA_SPLIT = Path("split_csv", "1cls.csv")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
VISA_LABELS = {("train", "normal"): 0, ("test", "normal"): 0, ("test", "anomaly"): 1}


class Layout(NamedTuple):
    """How a data set is read.

    Attributes:
        shape: paths of the training images, as error messages show them.
        list_classes: returns the class names in a data_path, sorted.
        list_samples: returns the images of a data_path, class name and split ("train" or "test"),
            and whether the defects are marked; adds to the Notes given last.
    """

    shape: str
    list_classes: Callable[[Path], list[str]]
    list_samples: Callable[[Path, str, str, Notes], tuple[list[Sample], bool]]


def find_classes(
    data_path: Path, dataset: str = AUTO, normal: str | None = None
) -> tuple[Layout, list[str]]:
    """The layout of data_path and its classes, sorted.

    Args:
        data_path: of the data set.
        dataset: a key of LAYOUTS; AUTO means that of SIGNS or VISA_SPLIT if there is one, else
            "mvtec" if that fits, else "folder".
        normal: name of the folders of good images; None takes those in folders.GOOD.

    Raises:
        FileNotFoundError: if data_path is not a folder or has no class.
        ValueError: if data_path is itself a class, the layout's files are damaged, or the layout
            has its own name for good images.
    """
    names = (dataset,)
    if dataset == AUTO:
        sign = normal is None and data_path.is_dir() and _find_sign(data_path)
        names = (sign,) if sign else BY_NAME
    layouts = [LAYOUTS[name] for name in names]
    if normal is not None:
        if dataset not in (AUTO, *BY_NAME):
            raise UserError(f"--normal is for --dataset {' or '.join(BY_NAME)}; leave it out")
        layouts = [_with_normal(layout, normal) for layout in layouts]
    expected = " or ".join(
        f"{layout.shape} (--dataset {name})" for name, layout in zip(names, layouts, strict=True)
    )
    if not data_path.is_dir():
        raise UserError(f"no folder {data_path}; --data_path must hold {expected}")
    if "mvtec" in names and find_good(data_path / "train", normal):
        path = data_path.resolve()
        raise UserError(
            f"{data_path} is itself a class; give --data_path {path.parent} "
            f"--class_name {path.name}"
        )
    for layout in layouts:
        if class_names := layout.list_classes(data_path):
            return layout, class_names
    raise UserError(
        f"no class in {data_path}; --data_path must hold {expected}{_describe(data_path)}"
    )


def _find_sign(data_path: Path) -> str | None:
    """The layout whose authors' folders are in data_path."""
    if (data_path / VISA_SPLIT).is_file():
        return "visa"
    classes = [data_path / name for name in list_folders(data_path)]
    found = (name for name, sign in SIGNS.items() if any((c / sign).is_dir() for c in classes))
    return next(found, None)


def _with_normal(layout: Layout, normal: str) -> Layout:
    """The layout where the folders of good images have this name."""
    return Layout(
        layout.shape.replace("good", normal),
        partial(layout.list_classes, normal=normal),
        partial(layout.list_samples, normal=normal),
    )


def _describe(data_path: Path) -> str:
    """The folders that may hold good images under another name, for an error message."""

    def names_in(folder: Path) -> list[str]:
        names = list_folders(folder) if folder.is_dir() else []
        return [name for name in names if not holds_masks(name)][:MOST_SEEN]

    names = names_in(data_path)
    places = [data_path, *(data_path / name / "train" for name in names)]
    places += [data_path / name for name in names]
    seen = [(place, found) for place in places if (found := names_in(place))]
    if not seen:
        return ""
    described = (f"{place} holds {', '.join(found)}" for place, found in seen[:2])
    return f". {', '.join(described)}: say which has the good images with --normal NAME"


def list_mvtec_classes(data_path: Path, normal: str | None = None) -> list[str]:
    """The names of the folders in data_path whose folder train has good images, by its name."""
    names = list_folders(data_path)
    return [name for name in names if find_good(data_path / name / "train", normal)]


def list_folder_classes(data_path: Path, normal: str | None = None) -> list[str]:
    """The name of data_path itself if it has a folder of good images, else of those that do."""
    if find_good(data_path, normal):
        return [data_path.resolve().name]
    return [name for name in list_folders(data_path) if find_good(data_path / name, normal)]


def list_folder(
    data_path: Path,
    class_name: str,
    split: str,
    notes: Notes | None = None,
    normal: str | None = None,
) -> tuple[list[Sample], bool]:
    """Images of one's own: good/*.png, and optionally defects in <defect type>/*.png beside it.

    Masks are ground_truth/<defect type>/<stem>_mask.png, if there is a folder of masks, or lie
    beside the images. Arguments and other names are those of mvtec.list_samples.

    Raises:
        FileNotFoundError: if there are no images, none is left for testing or a mask is missing.
        ValueError: as mvtec.list_samples.
    """
    notes = notes or Notes()
    folder = data_path if find_good(data_path, normal) else data_path / class_name
    name = find_good(folder, normal) or "good"
    masks = find_mask_folder(folder, notes)
    good, _ = read_folders(folder, [name], notes, normal=normal)
    samples, has_masks = good[HELD_OUT], masks is not None
    if split == "train":
        del good[HELD_OUT]
        return good, has_masks
    defect_types = [n for n in list_folders(folder) if n != name and not holds_masks(n)]
    note_unread(notes, folder, [name, *defect_types], masks)
    find_masks = masks and MaskFinder(masks, notes)
    if any(list_images(folder / defect_type) for defect_type in defect_types):
        defects, has_masks = read_folders(folder, defect_types, notes, find_masks, normal)
        samples += defects
    elif find_masks:
        find_masks.note_unused(normal)
    if not samples:
        raise UserError(
            f"nothing to test on in {folder}; give at least 3 images in {name}, or a folder of "
            "defects beside it"
        )
    return samples, has_masks


def list_btad(
    data_path: Path, class_name: str, split: str, notes: Notes | None = None
) -> tuple[list[Sample], bool]:
    """BTAD: train/ok, test/ok and test/ko; the masks in ground_truth/ko have the images' stems.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    notes = notes or Notes()
    folder = data_path / class_name
    masks = folder / "ground_truth"
    if split == "train":
        return read_folders(folder / split, ["ok"], notes, normal="ok")
    find_masks = MaskFinder(masks, notes, endings=("",)) if masks.is_dir() else None
    return read_folders(folder / split, ["ok", "ko"], notes, find_masks, normal="ok")


def list_loco(
    data_path: Path, class_name: str, split: str, notes: Notes | None = None
) -> tuple[list[Sample], bool]:
    """MVTec LOCO AD: several masks per image, as ground_truth/<defect type>/<stem>/000.png.

    validation/good is not used: it is meant for choosing thresholds, and published results are
    trained on train/good alone.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    notes = notes or Notes()
    images, masks = data_path / class_name / split, data_path / class_name / "ground_truth"

    def find_masks(defect_type: str, path: Path, _: Path) -> tuple[Path, ...]:
        found = list_images(masks / defect_type / path.stem, notes)
        if not found:
            notes.refuse(missing_mask(path, masks / defect_type / path.stem / "000"))
        return tuple(found)

    defect_types = ["good"] if split == "train" else list_folders(images)
    return read_folders(images, defect_types, notes, find_masks if masks.is_dir() else None)


def list_mvtec3d(
    data_path: Path, class_name: str, split: str, notes: Notes | None = None
) -> tuple[list[Sample], bool]:
    """MVTec 3D-AD: images in <defect type>/rgb, masks of the same stem in <defect type>/gt.

    The point clouds in xyz are not used.

    Raises:
        FileNotFoundError: if the images or a mask are missing.
    """
    notes = notes or Notes()
    folder = data_path / class_name / split
    defect_types = ["good"] if split == "train" else list_folders(folder)
    has_masks = any((folder / defect_type / "gt").is_dir() for defect_type in defect_types)
    find_masks = MaskFinder(folder, notes, "{defect_type}/gt", [""]) if has_masks else None
    return read_folders(folder, defect_types, notes, find_masks, subfolder="rgb")


def list_visa_classes(data_path: Path) -> list[str]:
    """The objects that split_csv/1cls.csv names."""
    return sorted({row["object"] for row in _read_visa(data_path)})


def list_visa(
    data_path: Path, class_name: str, split: str, _: Notes | None = None
) -> tuple[list[Sample], bool]:
    """VisA: the images and masks that split_csv/1cls.csv names for the one-class setup.

    Raises:
        FileNotFoundError: if the table, an image or a mask is missing.
        ValueError: if the table is damaged.
    """
    rows = [
        row for row in _read_visa(data_path) if (row["object"], row["split"]) == (class_name, split)
    ]
    if not rows:
        raise UserError(f"{data_path / VISA_SPLIT} names no {split} images of {class_name}")
    has_masks = any(row["mask"] for row in rows)
    samples = [_visa_sample(data_path, row, has_masks) for row in rows]
    return sorted(samples, key=lambda sample: (sample.defect_type, sample.path)), has_masks


def _visa_sample(data_path: Path, row: dict[str, str], has_masks: bool) -> Sample:
    path, label = data_path / row["image"], VISA_LABELS[row["split"], row["label"]]
    mask_paths = (data_path / row["mask"],) if label and row["mask"] else ()
    for file in (path, *mask_paths):
        if not file.is_file():
            raise UserError(f"no file {file}, which {VISA_SPLIT} names; unpack all")
    if label and has_masks and not mask_paths:
        raise UserError(f"mask missing for {path}: expected one in {VISA_SPLIT}")
    return Sample(path, row["label"] if label else "good", label, mask_paths)


def _read_visa(data_path: Path) -> list[dict[str, str]]:
    """The rows of VisA's table of images, checked."""
    path = data_path / VISA_SPLIT
    if not path.is_file():
        raise UserError(f"no file {path}; it says which images VisA trains and tests on")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        try:
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is damaged ({error}); unpack it again") from error
    missing = [name for name in VISA_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}; it must have {','.join(VISA_COLUMNS)}"
        )
    for row in rows:
        # the class names a folder of the results
        if Path(row["object"]).name != row["object"] or row["object"] in ("", ".."):
            raise UserError(f"{path} names the class {row['object']!r}; it must be a plain name")
        if (row["split"], row["label"]) not in VISA_LABELS:
            raise UserError(
                f"{path} calls {row['image']} {row['split']},{row['label']}; "
                f"accepted are {' '.join(map(','.join, VISA_LABELS))}"
            )
    return rows


def _layout_by_folder(training_folder: str, list_samples: Callable) -> Layout:
    """A layout whose classes are the folders that have the training folder."""
    return Layout(
        f"<class>/{training_folder}/*.png",
        partial(list_folders_with, subfolder=training_folder),
        list_samples,
    )


LAYOUTS = {
    "mvtec": Layout("<class>/train/good/*.png", list_mvtec_classes, mvtec.list_samples),
    "folder": Layout("good/*.png or <class>/good/*.png", list_folder_classes, list_folder),
    "btad": _layout_by_folder("train/ok", list_btad),
    "visa": Layout(VISA_SPLIT.as_posix(), list_visa_classes, list_visa),
    "loco": _layout_by_folder("train/good", list_loco),
    "mvtec3d": _layout_by_folder("train/good/rgb", list_mvtec3d),
}
