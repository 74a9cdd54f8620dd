"""The training and the test images of the classes to run, checked before anything slow."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datasets.images import (
    DEFAULT,
    Preprocessing,
    check_preprocessing,
    load_image,
    load_mask,
    preprocessed_size,
    read_size,
    resized_size,
)
from datasets.layouts import AUTO, LAYOUTS, Layout, find_classes
from datasets.mvtec import CLASS_NAMES, Sample

LOSSY_SUFFIXES = (".jpg", ".jpeg")


class ImageDataset:
    """The images of one class and split.

    Args:
        class_name: of the class.
        split: "train" (only good images) or "test".
        samples: one Sample per image.
        has_masks: whether defects are marked.
        preprocessing: of images and masks alike.

    Attributes: as the arguments.
    """

    def __init__(
        self,
        class_name: str,
        split: str,
        samples: Sequence[Sample],
        has_masks: bool,
        preprocessing: Preprocessing,
    ) -> None:
        self.class_name = class_name
        self.split = split
        self.samples = samples
        self.has_masks = has_masks
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_size(self) -> tuple[int, int]:
        """H and W of the preprocessed images.

        Raises:
            ValueError: if the first image cannot be read.
        """
        resize, crop = self.preprocessing
        if crop:
            return crop, crop
        width, height = resized_size(read_size(self.samples[0].path), resize)
        return height, width

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, H, W) uint8 RGB, its label and its mask (H, W) bool.

        Raises:
            ValueError: if the image or a mask cannot be read, or a mask marks no pixel; the
                message names the file.
        """
        sample = self.samples[index]
        image = load_image(sample.path, self.preprocessing)
        mask = np.zeros(image.shape[1:], dtype=bool)
        for path in sample.mask_paths:
            mask |= load_mask(path, self.preprocessing)
        return image, sample.label, mask


Splits = tuple[ImageDataset, ImageDataset]


def load_all(
    data_path: Path, dataset: str, class_names: Sequence[str] | None, preprocessing: Preprocessing
) -> list[Splits]:
    """The training and the test images of every class to run.

    Args:
        data_path: of the data set.
        dataset: AUTO or a key of LAYOUTS.
        class_names: as in choose_classes.
        preprocessing: of all images.

    Raises:
        FileNotFoundError, ValueError: as choose_classes and load_splits.
    """
    layout, chosen = choose_classes(data_path, class_names, dataset)
    return [load_splits(data_path, name, layout, preprocessing) for name in chosen]


def choose_classes(
    data_path: Path, class_names: Sequence[str] | None, dataset: str = AUTO
) -> tuple[Layout, list[str]]:
    """The layout and the classes to run, checked.

    Without class_names they are MVTec AD's 15 in its layout, and all there are in any other.

    Raises:
        FileNotFoundError: if data_path holds no class.
        ValueError: if a class is not there.
    """
    layout, there = find_classes(data_path, dataset)
    if class_names is None:
        class_names = CLASS_NAMES if layout is LAYOUTS["mvtec"] else there
        missing = [name for name in class_names if name not in there]
        if missing:
            raise ValueError(
                f"{data_path} lacks {', '.join(missing)} of MVTec AD's 15 classes; "
                f"it holds {', '.join(there)}: choose from these with --class_name"
            )
    unknown = [name for name in class_names if name not in there]
    if unknown:
        raise ValueError(
            f"unknown class {', '.join(map(repr, unknown))} in {data_path}; "
            f"choose from {', '.join(there)}"
        )
    return layout, list(dict.fromkeys(class_names))


def load_splits(
    data_path: Path,
    class_name: str,
    layout: Layout = LAYOUTS["mvtec"],
    preprocessing: Preprocessing = DEFAULT,
) -> Splits:
    """The training and the test images of a class.

    Raises:
        FileNotFoundError: if the folder, its images or a mask are missing.
        ValueError: if there is a single training image, two images share a name, a mask is a
            JPEG or differs from its image in size, or preprocessing does not suit the images.
    """
    check_preprocessing(preprocessing)
    train, test = (
        ImageDataset(
            class_name, split, *layout.list_samples(data_path, class_name, split), preprocessing
        )
        for split in ("train", "test")
    )
    if len(train) < 2:
        raise ValueError(
            f"{train.samples[0].path} is the only training image of {class_name}; "
            "a covariance needs at least 2"
        )
    _check_names(train.samples)
    _check_names(test.samples)
    _check_sizes([*train.samples, *test.samples], preprocessing)
    return train, test


def _check_names(samples: Iterable[Sample]) -> None:
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.name in seen:
            raise ValueError(
                f"{seen[sample.name]} and {sample.path} would share the name {sample.name}: "
                "rename one"
            )
        seen[sample.name] = sample.path


def _check_sizes(samples: Iterable[Sample], preprocessing: Preprocessing) -> None:
    """Refuse masks unlike their images and images unlike one another, reading headers alone."""
    # then all images end in the size of the crop, whatever they are
    safe = all(preprocessing)
    first: tuple[Path, tuple[int, int]] | None = None
    for sample in samples:
        if safe and not sample.mask_paths:
            continue
        size = read_size(sample.path)
        _check_mask_sizes(sample, size)
        seen = preprocessed_size(sample.path, size, preprocessing)
        first = first or (sample.path, seen)
        if seen != first[1]:
            raise ValueError(
                f"{first[0]} and {sample.path} would have {_show(first[1])} and {_show(seen)} "
                "pixels; all images of a class must have one size: give a --crop"
            )


def _check_mask_sizes(sample: Sample, size: tuple[int, int]) -> None:
    for path in sample.mask_paths:
        if path.suffix.lower() in LOSSY_SUFFIXES:
            raise ValueError(
                f"mask {path} is a JPEG, which blurs its edges, and whatever is above 0 counts as "
                "defect; save it as PNG in black and white"
            )
        mask_size = read_size(path)
        if mask_size != size:
            raise ValueError(
                f"mask {path} is {_show(mask_size)} pixels but its image {sample.path} is "
                f"{_show(size)}; they must be equal"
            )


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
