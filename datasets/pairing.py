"""Which file is the mask of which image, by their names and folders."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from datasets.folders import find_name, fold, holds_masks, list_images, scan
from datasets.images import is_image
from datasets.notes import BESIDE, ORPHANS, Notes
from utils.system.errors import UserError

ENDINGS = ("_mask", "", "_gt", "_label", "_seg")  # of a mask's stem, after the image's
Masks = dict[Path, list[Path]]  # by the key of their image, or of their own path


def key_of(stem: Path) -> Path:
    """A path without suffix in one spelling: folded, with underscores for hyphens and spaces."""
    return stem.parent / fold(stem.name).replace("-", "_").replace(" ", "_")


def missing_mask(image: Path, expected: Path) -> UserError:
    """The error to raise if an image has no mask."""
    return UserError(f"mask missing for {image}: expected {expected}.png")


def two_masks(masks: Sequence[Path]) -> UserError:
    """The error to raise if any of several files may be the mask of an image."""
    return UserError(f"{masks[0]} and {masks[1]} may both be the mask of one image: keep one")


def split_masks(folder: Path, paths: Sequence[Path], notes: Notes) -> tuple[list[Path], Masks]:
    """The images among the files of a folder, at any depth, and the masks beside them.

    A mask lies in a folder called as in folders.MASKS, or its stem is that of an image with one of
    ENDINGS. The masks are by the key of their image.
    """
    keys = {key_of(path.with_suffix("")) for path in paths}
    images, masks = [], {}
    for path in paths:
        names = path.parent.relative_to(folder).parts
        place = folder.joinpath(*(name for name in names if not holds_masks(name)))
        *bare, own = (place / stem for stem in _stems_of_image(path))
        key = next((key for key in bare if key in keys), own)
        if place == path.parent and key == own:
            images.append(path)
        else:
            notes.add(BESIDE, path)
            masks.setdefault(key, []).append(path)
    return images, masks


def _stems_of_image(path: Path) -> list[str]:
    """The stems, in one spelling, that the image of a mask may have; the mask's own is the last."""
    own = key_of(path.with_suffix("")).name
    found = [own.removesuffix(end) for end in ENDINGS if end and own.endswith(end)]
    return [*filter(None, found), own]


class MaskFinder:
    """Finds the masks of an image in a folder of masks, root; lists each folder once.

    They lie in the folder of their defect type, whose place below root is in terms of {type}, or
    in root itself. The stem of a mask is the image's with one of the endings, the expected one
    first; if that begins with a slash, an image has all masks in the folder that has its stem.
    """

    def __init__(
        self, root: Path, notes: Notes, place: str = "{type}", endings: Iterable[str] = ENDINGS
    ) -> None:
        self.root, self.notes, self.place, self.endings = root, notes, place, tuple(endings)
        self._folders, files = scan(root)
        self._files = [*filter(is_image, files)]
        self._listed: dict[str, tuple[Path, Masks]] = {}
        self._images: dict[Path, Path] = {}  # by mask

    def __call__(self, defect_type: str, image: Path, below: Path) -> list[Path]:
        """The masks of an image, whose path below that of its defect type is given, too.

        It is a problem if there is none, or if one is another image's.
        """
        folder, listed = self._list(defect_type)
        stem = folder / below.with_suffix("")
        keys = [key_of(Path(f"{stem}{ending.partition('/')[0]}")) for ending in self.endings]
        masks = next((listed[key] for key in keys if key in listed), [])
        if not masks:
            self.notes.problems.append(missing_mask(image, Path(f"{stem}{self.endings[0]}")))
        for mask in masks:
            other = self._images.setdefault(mask, image)
            if other != image:
                problem = UserError(f"mask {mask} belongs to both {other} and {image}")
                self.notes.problems.append(problem)
        return masks

    def note_unused(self) -> None:
        """Note the masks that belong to no defective image."""
        masks: list[Path] = []
        if self.place == "{type}":  # root holds masks alone
            masks += self._files
            for name in self._folders:
                self._list(name)
        for _, listed in self._listed.values():
            masks += chain.from_iterable(listed.values())
        for mask in masks:
            if mask not in self._images:
                self.notes.add(ORPHANS, mask)

    def _list(self, defect_type: str) -> tuple[Path, Masks]:
        """The folder of a defect type's masks, and the masks by their key, or their folder's."""
        if defect_type not in self._listed:
            name = find_name(defect_type, self._folders) or defect_type
            folder = self.root / self.place.format(type=name)
            loose = [] if folder.is_dir() else self._files
            several = self.endings[0].startswith("/")
            masks: Masks = {}
            for path in loose or list_images(folder, None if several else self.notes):
                stem = path.parent if several else path.with_suffix("")
                masks.setdefault(key_of(stem), []).append(path)
            if not several:
                self.notes.problems += [two_masks(p) for p in masks.values() if len(p) > 1]
            self._listed[defect_type] = (self.root if loose else folder), masks
        return self._listed[defect_type]
