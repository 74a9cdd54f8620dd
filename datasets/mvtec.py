"""MVTec AD: its classes, its published counts, and the images of any folder in its layout.

    <data_path>/<class>/train/good/*.png
    <data_path>/<class>/test/<defect type>/*.png
    <data_path>/<class>/ground_truth/<defect type>/<stem>_mask.png

Reference: Bergmann et al., CVPR 2019; upstream's datasets/mvtec.py.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from datasets.images import IMAGE_SUFFIXES, is_image


class Counts(NamedTuple):
    """How many images a class has: training, good test and defective test images."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} training, {self.good} good and {self.defective} defective test images"


# Bergmann et al., CVPR 2019, table 2: 3629 for training, 467 + 1258 for testing
COUNTS = {
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "carpet": Counts(280, 28, 89),
    "grid": Counts(264, 21, 57),
    "hazelnut": Counts(391, 40, 70),
    "leather": Counts(245, 32, 92),
    "metal_nut": Counts(220, 22, 93),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "tile": Counts(230, 33, 84),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "wood": Counts(247, 19, 60),
    "zipper": Counts(240, 32, 119),
}
CLASS_NAMES = tuple(COUNTS)
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = tuple(name for name in CLASS_NAMES if name not in TEXTURES)
UNLABELLED = -1


class Sample(NamedTuple):
    """One image file with its label and masks.

    Attributes:
        path: of the image.
        defect_type: "good", or the name of the image's folder.
        label: 0 for good, 1 for anomalous, UNLABELLED if it is not known.
        mask_paths: the defect is what any of these masks marks; none if no pixel is marked.
    """

    path: Path
    defect_type: str
    label: int
    mask_paths: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """A name for the image's results; unique among those of its class and split."""
        return f"{self.defect_type}_{self.path.stem}"


FindMasks = Callable[[str, Path], tuple[Path, ...]]


def list_samples(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """The images of a class and split, and whether their defects are marked.

    Images in test itself, if it has no folders, are unlabelled. Without a ground_truth folder
    there are no masks.

    Raises:
        FileNotFoundError: if the folder, its images or a mask are missing.
    """
    folder = data_path / class_name
    has_masks = (folder / "ground_truth").is_dir()
    if split == "train":
        return read_folders(folder / split, ["good"]), has_masks
    defect_types = list_folders(folder / split)
    if not defect_types:
        paths = list_images(folder / split)
        require_images(paths, folder / split, "<defect type>/*.png")
        return [Sample(path, "unlabelled", UNLABELLED) for path in paths], False
    find_masks = mask_finder(folder, "ground_truth/{defect_type}/{stem}_mask")
    return read_folders(folder / split, defect_types, find_masks if has_masks else None), has_masks


def read_folders(
    folder: Path,
    defect_types: Iterable[str],
    find_masks: FindMasks | None = None,
    good: str = "good",
    subfolder: str = "",
) -> list[Sample]:
    """The images of folder/<defect type>, sorted by file name within each defect type.

    Args:
        folder: of the split.
        defect_types: the folders to read, in this order; one that does not exist has no images.
        find_masks: returns the masks of a defect type and image; None if there are no masks.
        good: the folder of the good images.
        subfolder: where the images are within the folder of a defect type.

    Raises:
        FileNotFoundError: if there is no image, or find_masks raises it.
    """
    samples = []
    for defect_type in defect_types:
        for path in list_images(folder / defect_type / subfolder):
            if defect_type == good:
                samples.append(Sample(path, "good", 0))
            else:
                mask_paths = find_masks(defect_type, path) if find_masks else ()
                samples.append(Sample(path, defect_type, 1, mask_paths))
    expected = Path(good if folder.name == "train" else "<defect type>", subfolder, "*.png")
    require_images(samples, folder, expected)
    return samples


def require_images(found: Sequence, folder: Path, expected: str | Path) -> None:
    """Refuse a folder in which no images were found.

    Raises:
        FileNotFoundError: if found is empty.
    """
    if not found:
        raise FileNotFoundError(
            f"no images in {folder}; expected {expected} (also {', '.join(IMAGE_SUFFIXES[1:])})"
        )


def mask_finder(folder: Path, pattern: str) -> FindMasks:
    """A function that returns the mask of an image; it lists each folder of masks once.

    Args:
        folder: of the class.
        pattern: path of a mask below folder, without suffix, in terms of {defect_type} and
            {stem}, the image's. A mask may have any suffix of an image.

    Returns:
        The function of defect type and image; it raises FileNotFoundError if there is no mask.
    """

    @cache
    def masks_by_stem(masks: Path) -> dict[str, Path]:
        # of two masks that differ in their suffix only, the first one counts
        return {path.stem: path for path in reversed(list_images(masks))}

    def find_mask(defect_type: str, image: Path) -> tuple[Path]:
        expected = folder / pattern.format(defect_type=defect_type, stem=image.stem)
        mask = masks_by_stem(expected.parent).get(expected.name)
        if mask is None:
            raise FileNotFoundError(f"mask missing for {image}: expected {expected}.png")
        return (mask,)

    return find_mask


def list_folders_with(data_path: Path, subfolder: str) -> list[str]:
    """The names of the folders in data_path that have such a subfolder, sorted."""
    return [name for name in list_folders(data_path) if (data_path / name / subfolder).is_dir()]


def list_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones.

    Raises:
        FileNotFoundError: if folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; a class needs training and test images")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, sorted, without hidden ones; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if is_image(p) and not p.name.startswith("."))
