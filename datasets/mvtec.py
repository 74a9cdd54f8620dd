"""MVTec AD and any folder in its layout: which classes and images there are.

Reference: Bergmann et al., CVPR 2019; upstream's datasets/mvtec.py.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from datasets.images import IMAGE_SUFFIXES

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)
CLASS_NAMES = tuple(sorted(TEXTURES + OBJECTS))
UNLABELLED = -1


class Sample(NamedTuple):
    """One image file: label 0 for good, 1 for anomalous, UNLABELLED where nothing tells.

    The defect is what any of the masks marks; no mask_paths means no defect pixels.
    """

    path: Path
    defect_type: str
    label: int
    mask_paths: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The sample's name among those of its class and split."""
        return f"{self.defect_type}_{self.path.stem}"


FindMasks = Callable[[str, Path], tuple[Path, ...]]


def list_classes(data_path: Path) -> list[str]:
    """The names of the folders of data_path that have train/good, sorted."""
    return find_folders_with(data_path, "train/good")


def list_samples(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """The images of train/good or test/<defect type>, and whether their defects are marked.

    Images in test itself, without folders, are unlabelled. Masks are
    ground_truth/<defect type>/<stem>_mask.png; without a ground_truth folder there are none.

    Raises:
        FileNotFoundError: if the folder, its images or a mask are missing.
    """
    folder = data_path / class_name
    masks = folder / "ground_truth"
    if split == "train":
        return read_folders(folder / split, ["good"]), masks.is_dir()
    defect_types = list_folders(folder / split)
    if not defect_types:
        paths = list_images(folder / split)
        require(paths, folder / split, "<defect type>/*.png")
        return [Sample(path, "unlabelled", UNLABELLED) for path in paths], False
    find_masks = mask_finder(masks, "_mask") if masks.is_dir() else None
    return read_folders(folder / split, defect_types, find_masks), masks.is_dir()


def read_folders(
    folder: Path,
    defect_types: Iterable[str],
    find_masks: FindMasks | None = None,
    good: str = "good",
    inside: str = "",
) -> list[Sample]:
    """The images of folder/<defect type>, ordered by defect type as given and file name.

    Args:
        folder: of the split.
        defect_types: folders to read; one that is not there holds nothing.
        find_masks: gives the masks of a defect type and image; None if there are none.
        good: the defect type that is none.
        inside: folder within each defect type's that holds the images.

    Raises:
        FileNotFoundError: if there is no image, or as find_masks raises it.
    """
    samples = []
    for defect_type in defect_types:
        for path in list_images(folder / defect_type / inside):
            if defect_type == good:
                samples.append(Sample(path, "good", 0))
            else:
                mask_paths = find_masks(defect_type, path) if find_masks else ()
                samples.append(Sample(path, defect_type, 1, mask_paths))
    wanted = Path(good if folder.name == "train" else "<defect type>", inside, "*.png")
    require(samples, folder, wanted)
    return samples


def require(found: list, folder: Path, wanted: str | Path) -> None:
    """Refuse a folder in which no images were found.

    Raises:
        FileNotFoundError: if found is empty.
    """
    if not found:
        raise FileNotFoundError(
            f"no images in {folder}; expected {wanted} (also {', '.join(IMAGE_SUFFIXES[1:])})"
        )


def mask_finder(masks: Path, ending: str) -> FindMasks:
    """A function that finds the mask masks/<defect type>/<stem><ending>, of any image suffix."""

    def find(defect_type: str, image_path: Path) -> tuple[Path, ...]:
        return (find_by_stem(masks / defect_type, image_path.stem + ending, image_path),)

    return find


def find_by_stem(folder: Path, stem: str, image_path: Path) -> Path:
    """The mask of this stem in folder, of any image suffix.

    Raises:
        FileNotFoundError: if it is not there; the message names the image.
    """
    for path in list_images(folder):
        if path.stem == stem:
            return path
    raise FileNotFoundError(f"mask missing for {image_path}: expected {folder / stem}.png")


def find_folders_with(data_path: Path, inside: str) -> list[str]:
    """The names of the folders of data_path that hold the folder inside, sorted."""
    paths = data_path.iterdir()
    return sorted(p.name for p in paths if not p.name.startswith(".") and (p / inside).is_dir())


def list_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder but hidden ones, sorted.

    Raises:
        FileNotFoundError: if folder is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; a class needs training and test images")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder but hidden ones, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(filter(is_image, folder.iterdir()))


def is_image(path: Path) -> bool:
    """Whether the name says so, and is not hidden; a broken link counts, a pipe does not."""
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or not path.exists())
