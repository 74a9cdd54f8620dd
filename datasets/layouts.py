"""The data sets that can be read, and which one a folder holds.

Reference: BTAD (Mishra et al., ISIE 2021), VisA (Zou et al., ECCV 2022), MVTec LOCO AD (Bergmann
et al., IJCV 2022), MVTec 3D-AD (Bergmann et al., VISAPP 2022), MVTec AD 2 (Heckler-Kram et al.,
2025), as their authors distribute them.
"""

import csv
from pathlib import Path

from datasets.folders import find_good, holds_masks, list_folders, readable
from datasets.mvtec import Layout, Sample
from datasets.notes import Notes
from utils.system.errors import UserError

AUTO = "auto"
MOST_SEEN = 10  # folders that an error message names
VISA_SPLIT = Path("split_csv", "1cls.csv")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
VISA_LABELS = {("train", "normal"): 0, ("test", "normal"): 0, ("test", "anomaly"): 1}


class Visa:
    """VisA: the images and masks that split_csv/1cls.csv names for the one-class setup."""

    by_name = False
    signs = ()
    shape = VISA_SPLIT.as_posix()

    def list_classes(self, data_path: Path) -> list[str]:
        """The objects that the table names."""
        return sorted({row["object"] for row in _read_visa(data_path)})

    def list_samples(
        self, data_path: Path, class_name: str, split: str, _: Notes
    ) -> tuple[list[Sample], bool]:
        """As Layout.list_samples."""
        key = class_name, split
        rows = [row for row in _read_visa(data_path) if (row["object"], row["split"]) == key]
        if not rows:
            raise UserError(f"{data_path / VISA_SPLIT} names no {split} images of {class_name}")
        has_masks = any(row["mask"] for row in rows)
        samples = []
        for row in rows:
            path, label = data_path / row["image"], VISA_LABELS[row["split"], row["label"]]
            masks = (data_path / row["mask"],) if label and row["mask"] else ()
            for file in (path, *masks):
                if not file.is_file():
                    raise UserError(f"no file {file}, which {VISA_SPLIT} names; unpack all")
            if label and has_masks and not masks:
                raise UserError(f"mask missing for {path}: expected one in {VISA_SPLIT}")
            samples.append(Sample(path, row["label"] if label else "good", label, masks))
        return sorted(samples, key=lambda sample: (sample.defect_type, sample.path)), has_masks


# of LOCO and MVTec AD 2, validation/good is not used: it is meant for choosing thresholds, and
# published results are trained on train/good alone; nor are the point clouds of MVTec 3D-AD, and
# the images of MVTec AD 2 that have no labels
LAYOUTS: dict[str, Layout | Visa] = {
    "mvtec": Layout(),
    "folder": Layout(train="", test=""),
    "btad": Layout(good="ok", types=("ok", "ko"), masks="ground_truth/{type}/{stem}.png"),
    "visa": Visa(),
    "loco": Layout(
        good="good",
        masks="ground_truth/{type}/{stem}/000.png",
        signs=("ground_truth/logical_anomalies/000",),
    ),
    "mvtec3d": Layout(
        good="good",
        below="rgb",
        masks="test/{type}/gt/{stem}.png",
        signs=("train/good/xyz",),
    ),
    "mvtec_ad_2": Layout(
        test="test_public",
        good="good",
        masks="test_public/ground_truth/{type}/{stem}_mask.png",
        signs=("test_public/good", "test_private", "test_private_mixed"),
    ),
}
BY_NAME = [name for name, layout in LAYOUTS.items() if layout.by_name]


@readable()
def find_classes(
    data_path: Path, dataset: str = AUTO, normal: str | None = None
) -> tuple[Layout | Visa, list[str]]:
    """The layout of data_path, a key of LAYOUTS or AUTO, and its classes, sorted.

    AUTO is the one whose signs or table are there, else "mvtec" if that fits, else "folder". The
    folders of good images are called normal; None takes those in folders.GOOD.
    """
    names = [dataset]
    if dataset == AUTO:
        sign = normal is None and _find_sign(data_path)
        names = [sign] if sign else BY_NAME
    layouts = [LAYOUTS[name] for name in names]
    if normal is not None:
        if not layouts[0].by_name:
            raise UserError(f"--normal is for --dataset {' or '.join(BY_NAME)}; leave it out")
        layouts = [layout._replace(good=normal) for layout in layouts]
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
    for name, layout in LAYOUTS.items():
        if any((folder / sign).is_dir() for folder in classes for sign in layout.signs):
            return name
    return None


def _describe(data_path: Path) -> str:
    """The folders that may hold good images under another name, for an error message."""
    folders = [data_path / name for name in list_folders(data_path) if not holds_masks(name)]
    seen = []
    for place in (data_path, *(folder / "train" for folder in folders), *folders):
        names = [name for name in list_folders(place) if not holds_masks(name)]
        seen += [f"{place} holds {', '.join(names[:MOST_SEEN])}"] if names else []
    if not seen:
        return ""
    return f". {', '.join(seen[:2])}: say which has the good images with --normal NAME"


def _read_visa(data_path: Path) -> list[dict[str, str]]:
    """The rows of VisA's table of images, checked."""
    path = data_path / VISA_SPLIT
    if not path.is_file():
        raise UserError(f"no file {path}; it says which images VisA trains and tests on")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            rows = list(csv.DictReader(file, restval=""))
        except csv.Error as error:
            raise UserError(f"{path} is damaged ({error}); unpack it again") from error
    for number, row in enumerate(rows, 2):  # 1 is the heading
        name, key = row.get("object", ""), (row.get("split"), row.get("label"))
        # the class names a folder of the results
        is_plain = Path(name).name == name and name not in ("", "..")
        if not (row.keys() >= set(VISA_COLUMNS) and is_plain and key in VISA_LABELS):
            raise UserError(
                f"{path} is damaged in line {number}, or lacks one of the columns "
                f"{','.join(VISA_COLUMNS)}; unpack it again"
            )
    return rows
