"""The training and test images of the chosen classes, checked before any slow work."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from datasets.copies import first_copies_of_files
from datasets.folders import find_name, readable
from datasets.images import describe_header, is_jpeg, load_image, read_size
from datasets.layouts import AUTO, LAYOUTS, Layout, Visa, find_classes
from datasets.masks import is_black_and_white, load_mask
from datasets.mvtec import CLASS_NAMES, UNLABELLED, Sample
from datasets.notes import COPIES, IGNORED, MASK_LIKE, NEAR_COPIES, Notes
from datasets.preprocessing import (
    DEFAULT,
    Preprocessing,
    check_preprocessing,
    crop_place,
    preprocessed_size,
    window_size,
)
from datasets.region import place_region, read_region, region_files
from utils.system.errors import UserError
from utils.system.files import make_unique, shorten

LABELS = {0: "normal", 1: "defective", UNLABELLED: "unlabelled"}

MOST_SAMPLED = 256  # training images that suffice to see how the part lies


@dataclass(frozen=True)
class ImageDataset:
    """The images of one class and split."""

    class_name: str
    split: str  # "train" (only good images) or "test"
    samples: Sequence[Sample]
    has_masks: bool  # whether defects are marked
    preprocessing: Preprocessing  # of images and masks alike
    invert_masks: bool = False  # whether masks mark the background
    # on the class; reading images adds to them
    notes: Notes = field(default_factory=Notes, compare=False)
    region: Path | None = None  # file of the region of interest, if there is one

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def names(self) -> list[str]:
        """A unique name for each image's results, short enough for a file's."""
        taken: set[str] = set()
        return [make_unique(shorten(sample.name), taken) for sample in self.samples]

    @property
    def image_size(self) -> tuple[int, int]:
        """H and W of the preprocessed images, without their context."""
        size = read_size(self.samples[0].path, self.preprocessing.exif)
        return crop_place(size, self.preprocessing)[2:]

    @property
    def window_size(self) -> tuple[int, int]:
        """H and W of what the network sees: of the preprocessed images with their context."""
        size = read_size(self.samples[0].path, self.preprocessing.exif)
        return window_size(size, self.preprocessing)[::-1]

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of an image and its mask."""
        return 4 * prod(self.window_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, H, W) uint8 RGB, its label and its mask (H, W) bool."""
        sample = self.samples[index]
        image = load_image(sample.path, self.preprocessing, self.notes)
        side = self.preprocessing.crop
        mask = np.zeros((side, side) if side else image.shape[1:], dtype=bool)
        for path in sample.mask_paths:
            mask |= load_mask(path, self.preprocessing, self.invert_masks, self.notes)
        group = "train" if self.split == "train" else LABELS[sample.label]
        self.notes.add_image(group, sample.path, image)
        return image, sample.label, mask

    def read_region(self, preprocessing: Preprocessing, align: str) -> np.ndarray | None:
        """The region of interest (H, W) bool of what the network sees; None without one.

        With align "on" it is drawn on the template, which is all that the network sees; with "off"
        on an image as it is given, which the preprocessing of a view that is not aligned takes;
        with "auto" on the one whose size it has.
        """
        if self.region is None:
            return None
        white = read_region(self.region, preprocessing.exif)
        size, template_size = white.shape[::-1], self.window_size[::-1]
        if align != "off" and size == template_size:
            return place_region(white, preprocessing, self.region, on_window=True)
        if align == "on":
            expected = {f"the template of {self.class_name}": template_size}
        else:
            paths = [sample.path for sample in self.samples]
            expected = {f"the image {path}": read_size(path, preprocessing.exif) for path in paths}
        for drawn_on, expected_size in expected.items():
            if size != expected_size:
                raise UserError(
                    f"region {self.region} is {_show(size)} pixels but {drawn_on} is "
                    f"{_show(expected_size)}; they must be equal"
                )
        return place_region(white, preprocessing, self.region)

    def sample(self, most: int = MOST_SAMPLED) -> "ImageDataset":
        """At most so many of the images, spread evenly."""
        n = min(len(self), most)
        return replace(self, samples=[self.samples[i * len(self) // n] for i in range(n)])

    def find_copies(self) -> list[int]:
        """For each image the number of the first one whose file has the same content; a note."""
        copy_of = first_copies_of_files([sample.path for sample in self.samples])
        for number, first in enumerate(copy_of):
            if first != number:
                self.notes.add(COPIES, self.samples[number].path)
        return copy_of

    def note_near_copies(self, numbers: Iterable[int]) -> None:
        """Note the images that turned out to be nearly copies of others."""
        for number in numbers:
            self.notes.add(NEAR_COPIES, self.samples[number].path)


Splits = tuple[ImageDataset, ImageDataset]


def load_all(options: Any) -> list[Splits]:
    """The training and test images of all chosen classes; raises the first of their problems.

    The options have data_path, dataset, class_name, normal, preprocessing, invert_masks, region,
    unaligned and align.
    """
    path, prepared = options.data_path, (options.preprocessing, options.invert_masks)
    layout, chosen = choose_classes(path, options.class_name, options.dataset, options.normal)
    regions = region_files(options.region, chosen)
    loaded = []
    for name in chosen:
        splits = load_splits(path, name, layout, *prepared, regions.get(name))
        for problem in find_problems(*splits):
            raise problem
        for split in splits:
            split.read_region(options.unaligned, options.align)
        loaded.append(splits)
    return loaded


def choose_classes(
    data_path: Path,
    class_names: Sequence[str] | None,
    dataset: str = AUTO,
    normal: str | None = None,
) -> tuple[Layout | Visa, list[str]]:
    """The layout of data_path and the classes to run.

    Without class_names these are MVTec AD's 15 if one of them is there in its layout, else all.
    """
    layout, found = find_classes(data_path, dataset, normal)
    if class_names is None:
        is_mvtec = layout == LAYOUTS["mvtec"] and not set(CLASS_NAMES).isdisjoint(found)
        class_names = CLASS_NAMES if is_mvtec else found
    names = [find_name(name, found) for name in class_names]
    missing = [wanted for wanted, name in zip(class_names, names, strict=True) if name is None]
    if missing:
        raise UserError(
            f"no class {', '.join(map(repr, missing))} in {data_path}; choose from "
            f"{', '.join(found)} with --class_name"
        )
    return layout, list(dict.fromkeys(names))  # without repetitions


def load_splits(
    data_path: Path,
    class_name: str,
    layout: Layout | Visa = LAYOUTS["mvtec"],
    preprocessing: Preprocessing = DEFAULT,
    invert_masks: bool = False,
    region: Path | None = None,
) -> Splits:
    """The training and test images of a class, by the names of files alone, unchecked."""
    check_preprocessing(preprocessing)
    notes, splits = Notes(), []
    for split in ("train", "test"):
        samples, has_masks = [], False
        try:
            with readable():
                samples, has_masks = layout.list_samples(data_path, class_name, split, notes)
        except UserError as problem:
            notes.problems.append(problem)
        read = samples, has_masks, preprocessing, invert_masks, notes, region
        splits.append(ImageDataset(class_name, split, *read))
    return tuple(splits)


def find_problems(train: ImageDataset, test: ImageDataset) -> Iterator[UserError]:
    """Yield what a run refuses in a class, before any image is decoded; adds to the notes."""
    yield from train.notes.problems
    if len(train) == 1:
        yield UserError(
            f"{train.samples[0].path} is the only training image of {train.class_name}; "
            "a covariance needs at least 2"
        )
    yield from _find_odd_sizes([*train.samples, *test.samples], train.preprocessing)
    yield from _find_masks_among(train, test)


def describe(train: ImageDataset, test: ImageDataset) -> str:
    """One line on what of a class's files is taken, from their names and one header."""
    header = describe_header(train.samples[0].path, train.preprocessing.exif)
    parts = [f"{test.class_name}: {len(train)} training images ({header})"]
    for label, word in LABELS.items():
        counts = Counter(s.defect_type for s in test.samples if s.label == label)
        if counts:
            folders = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            parts.append(f"{counts.total()} {word} test images ({folders})")
    n_masks = sum(len(sample.mask_paths) for sample in test.samples)
    n_ignored = test.notes.counts().get(IGNORED.what, 0)
    parts += [f"{n_masks} masks", f"{n_ignored} files ignored"]
    return "; ".join(parts)


def _find_odd_sizes(samples: Iterable[Sample], preprocessing: Preprocessing) -> Iterator[UserError]:
    """Masks that differ from their image in size, and images that differ from each other.

    Only the headers of the files are read.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for sample in samples:
        try:
            original_size = read_size(sample.path, preprocessing.exif)
            _check_mask_sizes(sample, original_size, preprocessing.exif)
            size = preprocessed_size(sample.path, original_size, preprocessing)
        except UserError as problem:
            yield problem
            continue
        first = first or (sample.path, size)
        if size != first[1]:
            yield UserError(
                f"{first[0]} and {sample.path} would have {_show(first[1])} and {_show(size)} "
                "pixels; all images of a class must have one size: give a --crop, a smaller "
                "--context or --align off"
            )


def _check_mask_sizes(sample: Sample, size: tuple[int, int], exif: bool) -> None:
    for path in sample.mask_paths:
        if is_jpeg(path):
            raise UserError(
                f"mask {path} is a JPEG, which blurs its edges, and whatever is above 0 counts as "
                "defect; save it as PNG in black and white"
            )
        mask_size = read_size(path, exif)
        if mask_size != size:
            turned = mask_size == size[::-1] and read_size(sample.path, not exif) == mask_size
            advice = f"; {'leave out' if exif else 'give'} --exif" if turned else ""
            raise UserError(
                f"mask {path} is {_show(mask_size)} pixels but its image {sample.path} is "
                f"{_show(size)}; they must be equal{advice}"
            )


def _find_masks_among(train: ImageDataset, test: ImageDataset) -> Iterator[UserError]:
    """Defective images in black and white, unless all are: yield a folder of these, note others."""
    if any(is_black_and_white(sample.path) for sample in train.samples[:1]):
        return
    defective = (sample for sample in test.samples if sample.label)
    for defect_type, group in groupby(defective, lambda sample: sample.defect_type):
        paths = [sample.path for sample in group]
        like_masks = [path for path in paths if is_black_and_white(path)]
        if like_masks == paths:
            yield UserError(
                f"are the images in the folder {defect_type} of {test.class_name} masks? they are "
                "all black and white; call it ground_truth and the folders in it as the defects, "
                "or take it away"
            )
        else:
            for path in like_masks:
                test.notes.add(MASK_LIKE, path)


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
