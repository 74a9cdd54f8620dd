"""Which file is the mask of which image, by their names and folders."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from datasets.folders import find_name, fold, holds_masks, is_good, list_images, scan
from datasets.images import is_image
from datasets.notes import BESIDE, GOOD_MASKS, ORPHANS, Notes
from utils.system.errors import UserError

ENDINGS = ("_mask", "", "_gt", "_label", "_seg")  # of a mask's stem, after the image's
Masks = dict[Path, list[Path]]  # by a path without suffix


def _fold(stem: Path) -> Path:
    """A path without suffix in one spelling: folded, with underscores for hyphens and spaces."""
    return stem.parent / fold(stem.name).replace("-", "_").replace(" ", "_")


def _look_up(masks: Mapping[Path, list[Path]], stems: Sequence[Path]) -> list[Path]:
    """What is found under the first of several stems, as it is or else folded."""
    return next((masks[key] for key in chain(stems, map(_fold, stems)) if key in masks), [])


def _with_folded(masks: Masks) -> Masks:
    return {_fold(stem): paths for stem, paths in reversed(masks.items())} | masks


def missing_mask(image: Path, expected: Path) -> UserError:
    """The error to raise if an image has no mask."""
    return UserError(f"mask missing for {image}: expected {expected}.png")


def two_masks(masks: Sequence[Path]) -> UserError:
    """The error to raise if any of several files may be the mask of an image."""
    return UserError(f"{masks[0]} and {masks[1]} may both be the mask of one image: keep one")


def split_masks(folder: Path, paths: Sequence[Path], notes: Notes) -> tuple[list[Path], Masks]:
    """The images among the files of a folder, at any depth, and the masks beside them.

    A mask lies in a folder called as in folders.MASKS, or its stem is that of an image with one of
    ENDINGS. The masks are by the image's path without suffix.
    """
    places = {}  # by folder, the one without those of masks on its way
    for parent in {path.parent for path in paths}:
        names = parent.relative_to(folder).parts
        places[parent] = folder.joinpath(*(name for name in names if not holds_masks(name)))
    odd = {p for p in paths if places[p.parent] != p.parent or len(_bare_stems(p)) > 1}
    images = _with_folded({p.with_suffix(""): [p.with_suffix("")] for p in paths}) if odd else {}
    masks: Masks = {}
    for path in sorted(odd):
        place = places[path.parent]
        *bare, own = (place / stem for stem in _bare_stems(path))
        of = _look_up(images, bare) or _look_up(images, [own])
        if place != path.parent or of != [path.with_suffix("")]:
            notes.add(BESIDE, path)
            masks.setdefault((of or [place / path.stem])[0], []).append(path)
        else:
            odd.remove(path)
    return [path for path in paths if path not in odd], masks


def _bare_stems(path: Path) -> list[str]:
    """The stems that the image of a mask may have; the mask's own is the last."""
    folded = _fold(path.with_suffix("")).name
    found = [path.stem[: -len(end)] for end in ENDINGS if end and folded.endswith(end)]
    return [*filter(None, found), path.stem]


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
        self._listed: dict[str, tuple[Path, Masks]] = {}
        self._images: dict[Path, Path] = {}  # by mask

    def __call__(self, defect_type: str, image: Path, below: Path) -> tuple[Path, ...]:
        """The masks of an image, whose path below that of its defect type is given, too.

        It is a problem if there is none, or if one is another image's.
        """
        folder, listed = self._list(defect_type)
        stem = folder / below.with_suffix("")
        stems = [Path(f"{stem}{ending.partition('/')[0]}") for ending in self.endings]
        masks = _look_up(listed, stems)
        if not masks:
            self.notes.problems.append(missing_mask(image, Path(f"{stem}{self.endings[0]}")))
        for mask in masks:
            other = self._images.setdefault(mask, image)
            if other != image:
                problem = UserError(f"mask {mask} belongs to both {other} and {image}")
                self.notes.problems.append(problem)
        return tuple(masks)

    def note_unused(self, normal: str | None) -> None:
        """Note the masks that belong to no image, and those of good images."""
        if self.place == "{type}":
            names, files = self._content
            for name in names:
                self._list(name)
            for path in filter(is_image, files):
                if path not in self._images:
                    self.notes.add(ORPHANS, path)
        for name, (_, listed) in self._listed.items():
            kind = GOOD_MASKS if is_good(name, normal) else ORPHANS
            for mask in chain.from_iterable(listed.values()):
                if mask not in self._images:
                    self.notes.add(kind, mask)

    @cached_property
    def _content(self) -> tuple[list[str], list[Path]]:
        return scan(self.root)

    def _list(self, defect_type: str) -> tuple[Path, Masks]:
        """The folder of a defect type's masks, and the masks by the path with an image's stem."""
        if defect_type not in self._listed:
            name = find_name(defect_type, self._content[0]) or defect_type
            folder = self.root / self.place.format(type=name)
            loose = [] if folder.is_dir() else [*filter(is_image, self._content[1])]
            several = self.endings[0].startswith("/")
            masks: Masks = {}
            for path in loose or list_images(folder, None if several else self.notes):
                masks.setdefault(path.parent if several else path.with_suffix(""), []).append(path)
            if not several:
                self.notes.problems += [two_masks(p) for p in masks.values() if len(p) > 1]
                masks = {stem: paths[:1] for stem, paths in masks.items()}
            self._listed[defect_type] = (self.root if loose else folder), _with_folded(masks)
        return self._listed[defect_type]
