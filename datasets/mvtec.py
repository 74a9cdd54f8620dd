"""MVTec AD: its published counts, and the images of any data set whose folders are like its own.

    <data_path>/<class>/train/good/*.png
    <data_path>/<class>/test/<defect type>/*.png
    <data_path>/<class>/ground_truth/<defect type>/<stem>_mask.png

Reference: Bergmann et al., CVPR 2019; upstream's datasets/mvtec.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.folders import find_good, holds_masks, is_good, list_folders, list_images, scan
from datasets.images import IMAGE_SUFFIXES, is_image
from datasets.notes import IGNORED, LOOSE, UNREAD, Notes
from datasets.pairing import MaskFinder, key_of, missing_mask, split_masks, two_masks
from utils.system.errors import UserError

UNLABELLED = -1


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


class Sample(NamedTuple):
    """One image file with its label and masks."""

    path: Path
    defect_type: str  # "good", or the name of the image's folder
    label: int  # 0 for good, 1 for anomalous, UNLABELLED if it is not known
    mask_paths: tuple[Path, ...] = ()  # the defect is what any of them marks; none if there is none
    below: str = ""  # the image's folder below that of its defect type, with slashes

    @property
    def name(self) -> str:
        """A name for the image's results: defect type, folders below it, stem."""
        return "_".join([self.defect_type, *filter(None, self.below.split("/")), self.path.stem])

    @property
    def file(self) -> str:
        """The file name, with the folders below the defect type."""
        return f"{self.below}/{self.path.name}".removeprefix("/")


# of good images that all lie in one folder, those kept for testing: one in five, about as in MVTec
# AD, from the third on, so that at least two are left for training
HELD_OUT = slice(2, None, 5)


class Layout(NamedTuple):
    """How the folders of a data set are called. The default is MVTec AD's way."""

    train: str = "train"  # folder of a class that holds the folder of good training images
    test: str = "test"  # folder of a class that holds a folder of images for each defect type
    good: str | None = None  # name of the folders of good images; None: any in folders.GOOD
    below: str = ""  # folder of the images within that of their defect type
    types: tuple[str, ...] = ()  # the folders of test images, in this order; none: all there are
    # pattern of an image's mask, or first mask; "": folders.MASKS and pairing.ENDINGS
    masks: str = ""
    signs: tuple[str, ...] = ()  # each tells this layout from MVTec AD's: folders of a class

    @property
    def by_name(self) -> bool:
        """Whether folders are known by usual names; otherwise by their authors' alone."""
        return not self.masks

    @property
    def shape(self) -> str:
        """Paths of the training images, as error messages show them."""
        images = Path(self.train, self.good or "good", self.below, "*.png").as_posix()
        return f"<class>/{images}" if self.train else f"{images} or <class>/{images}"

    def list_classes(self, data_path: Path) -> list[str]:
        """The names of the folders in data_path that hold good training images, sorted.

        Without a folder for training, data_path itself may be the only class.
        """
        if not self.train and self._find_good(data_path):
            return [data_path.resolve().name]
        return [name for name in list_folders(data_path) if self._find_good(data_path / name)]

    def _find_good(self, folder: Path) -> str | None:
        """The name of the folder of good training images in that of a class, if there is one."""
        good = find_good(folder / self.train, self.good)
        return good if good and (folder / self.train / good / self.below).is_dir() else None

    def list_samples(
        self, data_path: Path, class_name: str, split: str, notes: Notes
    ) -> tuple[list[Sample], bool]:
        """The images of a class and split, "train" or "test", and whether defects are marked.

        Images in the test folder itself, if it has no folders, are unlabelled. What is not read,
        and problems with masks, are added to the notes.
        """
        is_class = not self.train and self._find_good(data_path)
        folder = data_path if is_class else data_path / class_name
        place = folder / (self.train if split == "train" else self.test)
        good = self._find_good(folder) or self.good or "good"
        types = self._list_types(place, split, good)
        find_masks = self._find_masks(folder, notes)
        if not types:
            paths = list_images(place, notes)
            require_images(paths, place, "<defect type>/*.png")
            return [Sample(path, "unlabelled", UNLABELLED) for path in paths], False
        if self.by_name:
            masks = find_masks and find_masks.root
            if self.train:
                note_unread(notes, folder, [self.train, self.test], masks)
            if self.train or split == "test":
                note_unread(notes, place, types, masks)
        samples, beside = self._read(place, types, find_masks if split == "test" else None, notes)
        if not self.train:
            samples = _choose(samples, split, place / good)
        return samples, find_masks is not None or beside

    def _list_types(self, place: Path, split: str, good: str) -> list[str]:
        """The folders of images to read."""
        if split == "train":
            return [good]
        if self.types:
            return list(self.types)
        if not place.is_dir():
            raise UserError(f"no folder {place}; a class needs training and test images")
        types = [name for name in list_folders(place) if not holds_masks(name)]
        # good images are the first where they are also those of training
        return types if self.train else sorted(types, key=lambda name: name != good)

    def _find_masks(self, folder: Path, notes: Notes) -> MaskFinder | None:
        """What finds the masks of a class; None if they can only lie beside the images."""
        if self.by_name:
            masks = find_mask_folder(folder, notes) or find_mask_folder(folder / self.test, notes)
            return MaskFinder(masks, notes) if masks else None
        root, _, place = self.masks.partition("{type}")
        place, _, ending = place.removesuffix(".png").partition("/{stem}")
        if any((folder / root).glob(f"*{place}")):
            return MaskFinder(folder / root, notes, f"{{type}}{place}", [ending])
        return None

    def _read(
        self, place: Path, types: Sequence[str], find_masks: MaskFinder | None, notes: Notes
    ) -> tuple[list[Sample], bool]:
        """The images in place/<defect type>, sorted within each, and whether masks lie beside."""
        found, beside = [], {}
        for defect_type in types:
            parent = place / defect_type / self.below
            images, masks = split_masks(parent, list_images(parent, notes), notes)
            found += [(defect_type, path, path.relative_to(parent)) for path in images]
            if not is_good(defect_type, self.good):
                beside |= masks
        first = types[0] if len(types) == 1 else "<defect type>"
        require_images(found, place, Path(first, self.below, "*.png"))
        samples = []
        for defect_type, path, relative in found:
            label = int(not is_good(defect_type, self.good))
            masks = beside.get(key_of(path.with_suffix("")), []) if label else []
            if len(masks) > 1:
                notes.problems.append(two_masks(masks))
            if label and not masks and find_masks:
                masks = find_masks(defect_type, path, relative)
            elif label and not masks and beside:
                notes.problems.append(missing_mask(path, path.with_name(f"{path.stem}_mask")))
            below = relative.parent.as_posix() if relative.parent.name else ""
            kind = defect_type if label else "good"
            samples.append(Sample(path, kind, label, tuple(masks), below))
        if find_masks:
            find_masks.note_unused()
        return samples, bool(beside)


def _choose(samples: list[Sample], split: str, good: Path) -> list[Sample]:
    """The samples of a split, where the good images of both lie in one folder."""
    normal = [sample for sample in samples if not sample.label]
    held_out = normal[HELD_OUT]
    if split == "train":
        return [sample for sample in normal if sample not in held_out]
    chosen = held_out + [sample for sample in samples if sample.label]
    if not chosen:
        raise UserError(
            f"nothing to test on in {good.parent}; give at least 3 images in {good.name}, or a "
            "folder of defects beside it"
        )
    return chosen


def find_mask_folder(folder: Path, notes: Notes) -> Path | None:
    """The folder of masks in a folder, by its name; None if there is none."""
    names = filter(holds_masks, list_folders(folder))
    found = [name for name in names if not _lacks_images(folder / name)]
    found.sort(key=lambda name: name != "ground_truth")
    if len(found) > 1 and found[0] != "ground_truth":
        problem = f"{folder} has several folders of masks, {', '.join(found)}: keep one"
        notes.problems.append(UserError(problem))
    return folder / found[0] if found else None


def note_unread(notes: Notes, folder: Path, known: Sequence[str], masks: Path | None) -> None:
    """Note the images in a folder itself, and its folders that are neither known nor masks."""
    names, files = scan(folder, notes)
    for path in filter(is_image, files):
        notes.add(LOOSE, path)
    for name in names:
        path = folder / name
        if name not in known and path != masks and scan(path, notes) != ([], []):
            notes.add(UNREAD, path)


def _lacks_images(folder: Path) -> bool:
    """Whether a folder has files at some depth, none of which is an image."""
    files = Notes()
    return not list_images(folder, files) and IGNORED.what in files.counts()


def require_images(found: Sequence, folder: Path, expected: str | Path) -> None:
    """Refuse a folder in which no images were found."""
    if not found:
        raise UserError(
            f"no images in {folder}; expected {expected} (also {', '.join(IMAGE_SUFFIXES[1:])})"
        )
