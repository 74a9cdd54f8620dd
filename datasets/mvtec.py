"""MVTec AD: its classes, its published counts, and the images of any folder in its layout.

    <data_path>/<class>/train/good/*.png
    <data_path>/<class>/test/<defect type>/*.png
    <data_path>/<class>/ground_truth/<defect type>/<stem>_mask.png

Other usual names of folders and masks, as in folders.py, are taken as well.

Reference: Bergmann et al., CVPR 2019; upstream's datasets/mvtec.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.folders import (
    MASK_ENDINGS,
    find_good,
    holds_masks,
    is_good,
    list_folders,
    list_images,
    scan,
    split_masks,
)
from datasets.images import IMAGE_SUFFIXES, is_image
from datasets.notes import GOOD_MASKS, LOOSE, ORPHANS, UNREAD, Notes
from utils.system.errors import UserError


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
        below: the image's folder below that of its defect type, with slashes.
    """

    path: Path
    defect_type: str
    label: int
    mask_paths: tuple[Path, ...] = ()
    below: str = ""

    @property
    def name(self) -> str:
        """A name for the image's results: defect type, folders below it, stem."""
        return "_".join([self.defect_type, *filter(None, self.below.split("/")), self.path.stem])

    @property
    def file(self) -> str:
        """The file name, with the folders below the defect type."""
        return f"{self.below}/{self.path.name}".removeprefix("/")


# returns the masks of an image: of its defect type, its path, and its path below that folder
FindMasks = Callable[[str, Path, Path], tuple[Path, ...]]


def list_samples(
    data_path: Path,
    class_name: str,
    split: str,
    notes: Notes | None = None,
    normal: str | None = None,
) -> tuple[list[Sample], bool]:
    """The images of a class and split, and whether their defects are marked.

    Images in test itself, if it has no folders, are unlabelled. There are no masks without a
    folder of masks, in the class or in test, or masks beside the images.

    Args:
        data_path: of the data set.
        class_name: of the class.
        split: "train" or "test".
        notes: gets what is not read.
        normal: name of the folders of good images; None takes those in folders.GOOD.

    Raises:
        FileNotFoundError: if the folder, its images or a mask are missing.
        ValueError: if a mask may be one of two files, or belongs to two images.
    """
    notes = notes or Notes()
    folder = data_path / class_name
    masks = find_mask_folder(folder, notes) or find_mask_folder(folder / "test", notes)
    if split == "train":
        good = find_good(folder / split, normal) or "good"
        note_unread(notes, folder, ["train", "test"], masks)
        note_unread(notes, folder / split, [good])
        return read_folders(folder / split, [good], notes, normal=normal)[0], masks is not None
    defect_types = [name for name in list_folders(folder / split) if not holds_masks(name)]
    if not defect_types:
        paths = list_images(folder / split, notes)
        require_images(paths, folder / split, "<defect type>/*.png")
        return [Sample(path, "unlabelled", UNLABELLED) for path in paths], False
    note_unread(notes, folder / split, defect_types, masks)
    find_masks = masks and MaskFinder(masks, notes)
    return read_folders(folder / split, defect_types, notes, find_masks, normal)


def find_mask_folder(folder: Path, notes: Notes) -> Path | None:
    """The folder of masks in a folder, by its name; None if there is none."""
    names = filter(holds_masks, list_folders(folder) if folder.is_dir() else ())
    found = sorted(names, key=lambda name: name != "ground_truth")
    if len(found) > 1 and found[0] != "ground_truth":
        notes.refuse(
            ValueError(f"{folder} has several folders of masks, {', '.join(found)}: keep one")
        )
    return folder / found[0] if found else None


def note_unread(
    notes: Notes, folder: Path, known: Sequence[str], masks: Path | None = None
) -> None:
    """Note the images in a folder itself, and its folders that are neither known nor masks."""
    names, files = scan(folder) if folder.is_dir() else ((), ())
    for path in filter(is_image, files):
        notes.add(LOOSE, path)
    for name in names:
        if name not in known and folder / name != masks and scan(folder / name) != ([], []):
            notes.add(UNREAD, folder / name)


def read_folders(
    folder: Path,
    defect_types: Sequence[str],
    notes: Notes,
    find_masks: FindMasks | None = None,
    normal: str | None = None,
    subfolder: str = "",
) -> tuple[list[Sample], bool]:
    """The images of folder/<defect type>, sorted by path within each, and whether there are masks.

    Args:
        folder: of the split.
        defect_types: the folders to read, in this order; one that does not exist has no images.
        notes: gets what is not read.
        find_masks: returns the masks of an image; None if masks can only lie beside the images.
        normal: as in list_samples.
        subfolder: where the images are within the folder of a defect type.

    Raises:
        FileNotFoundError: if there is no image, or a mask is missing.
    """
    found, beside = [], {}
    for defect_type in defect_types:
        place = folder / defect_type / subfolder
        images, masks = split_masks(place, list_images(place, notes), notes)
        found += [(defect_type, path, path.relative_to(place)) for path in images]
        if not is_good(defect_type, normal):
            beside |= masks
    only_good = all(is_good(name, normal) for name in defect_types)
    first = defect_types[0] if only_good else "<defect type>"
    require_images(found, folder, Path(first, subfolder, "*.png"))

    samples = []
    for defect_type, path, relative in found:
        label = int(not is_good(defect_type, normal))
        mask_paths = beside.get(path.with_suffix(""), ()) if label else ()
        if len(mask_paths) > 1:
            notes.refuse(two_masks(*mask_paths[:2]))
        if label and not mask_paths and find_masks:
            mask_paths = find_masks(defect_type, path, relative)
        elif label and not mask_paths and beside:
            notes.refuse(missing_mask(path, path.with_name(f"{path.stem}_mask")))
        below = relative.parent.as_posix() if relative.parent.name else ""
        samples.append(
            Sample(path, defect_type if label else "good", label, tuple(mask_paths), below)
        )
    if isinstance(find_masks, MaskFinder):
        find_masks.note_unused(normal)
    return samples, find_masks is not None or bool(beside)


def require_images(found: Sequence, folder: Path, expected: str | Path) -> None:
    """Refuse a folder in which no images were found.

    Raises:
        FileNotFoundError: if found is empty.
    """
    if not found:
        raise UserError(
            f"no images in {folder}; expected {expected} (also {', '.join(IMAGE_SUFFIXES[1:])})"
        )


def missing_mask(image: Path, expected: Path) -> UserError:
    """The error to raise if an image has no mask."""
    return UserError(f"mask missing for {image}: expected {expected}.png")


def two_masks(first: Path, second: Path) -> UserError:
    """The error to raise if either of two files may be the mask of an image."""
    return UserError(f"{first} and {second} may both be the mask of one image: keep one")


class MaskFinder:
    """Finds the mask of an image in a folder of masks; lists each folder once.

    Args:
        root: the folder of masks. They lie in the folder of their defect type, or in root itself.
        notes: gets masks that belong to no image.
        place: of the folder of a defect type below root, in terms of {defect_type}.
        endings: of a mask's stem after the image's, the expected one first.
    """

    def __init__(
        self,
        root: Path,
        notes: Notes,
        place: str = "{defect_type}",
        endings: Sequence[str] = MASK_ENDINGS,
    ) -> None:
        self.root, self.notes, self.place, self.endings = root, notes, place, endings
        self._listed: dict[str, tuple[Path, dict[Path, Path]]] = {}
        self._images: dict[Path, Path] = {}  # by mask

    def __call__(self, defect_type: str, image: Path, relative: Path) -> tuple[Path, ...]:
        """The mask of an image; refuses if there is none, or if it is another image's."""
        folder, masks = self._list(defect_type)
        stem = folder / relative.with_suffix("")
        expected = (stem.with_name(stem.name + ending) for ending in self.endings)
        mask = next((masks[path] for path in expected if path in masks), None)
        if mask is None:
            self.notes.refuse(missing_mask(image, stem.with_name(stem.name + self.endings[0])))
            return ()
        other = self._images.setdefault(mask, image)
        if other != image:
            self.notes.refuse(UserError(f"mask {mask} belongs to both {other} and {image}"))
        return (mask,)

    def note_unused(self, normal: str | None) -> None:
        """Note the masks that belong to no image, and those of good images."""
        if self.place == "{defect_type}":
            names, files = scan(self.root)
            for name in names:
                self._list(name)
            for path in filter(is_image, files):
                if path not in self._images:
                    self.notes.add(ORPHANS, path)
        for name, (_, masks) in self._listed.items():
            kind = GOOD_MASKS if is_good(name, normal) else ORPHANS
            for mask in masks.values():
                if mask not in self._images:
                    self.notes.add(kind, mask)

    def _list(self, defect_type: str) -> tuple[Path, dict[Path, Path]]:
        """The folder of a defect type's masks, and the masks by their path without suffix."""
        if defect_type not in self._listed:
            folder = self.root / self.place.format(defect_type=defect_type)
            loose = [] if folder.is_dir() else [*filter(is_image, scan(self.root)[1])]
            masks: dict[Path, Path] = {}
            for path in loose or list_images(folder, self.notes):
                other = masks.setdefault(path.with_suffix(""), path)
                if other != path:
                    self.notes.refuse(two_masks(other, path))
            self._listed[defect_type] = (self.root if loose else folder), masks
        return self._listed[defect_type]
