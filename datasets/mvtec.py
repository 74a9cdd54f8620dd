"""MVTec AD and any folder in its layout: which images there are, and how each is loaded.

Reference: Bergmann et al., CVPR 2019; upstream's datasets/mvtec.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

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
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# shorter side after resizing, and side of the centre crop (paper, section IV-B; upstream)
RESIZE = 256
CROP = 224
UNLABELLED = -1


class Sample(NamedTuple):
    """One image file: label 0 for good, 1 for anomalous, UNLABELLED where nothing tells.

    No mask_path means no defect pixels.
    """

    path: Path
    defect_type: str
    label: int
    mask_path: Path | None

    @property
    def name(self) -> str:
        """The sample's name among those of its class and split."""
        return f"{self.defect_type}_{self.path.stem}"


class MVTecDataset:
    """The images of one class and split, ordered by folder and file name.

    Args:
        data_path: folder that holds one folder per class.
        class_name: a folder of data_path with train/good, test/<defect type> and, for pixel
            metrics, ground_truth/<defect type>/<stem>_mask.png. Images in test itself, without
            folders, are taken as unlabelled.
        split: "train" (only good images) or "test".

    Attributes:
        samples: one Sample per image.
        has_masks: whether defects are marked; False without labels or a ground_truth folder.

    Raises:
        FileNotFoundError: if the folder, its images or a mask are missing.
        ValueError: if two images share a name, or a mask differs from its image in size.
    """

    def __init__(self, data_path: Path, class_name: str, split: str) -> None:
        assert split in ("train", "test")
        self.class_name = class_name
        self.split = split
        self.has_masks = (data_path / class_name / "ground_truth").is_dir()
        self.samples = _list_samples(data_path / class_name, split, self.has_masks)
        self.has_masks &= all(sample.label != UNLABELLED for sample in self.samples)
        _check_names(self.samples)
        _check_mask_sizes(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, CROP, CROP) uint8 RGB, its label and its mask (CROP, CROP) bool.

        Raises:
            ValueError: if the image or the mask cannot be read; the message names the file.
        """
        sample = self.samples[index]
        image = load_image(sample.path)
        if sample.mask_path is None:
            mask = np.zeros(image.shape[1:], dtype=bool)
        else:
            mask = load_mask(sample.mask_path)
        return image, sample.label, mask


def find_classes(data_path: Path) -> list[str]:
    """The names of the folders of data_path that are in MVTec layout, sorted.

    Raises:
        FileNotFoundError: if data_path is no folder or holds no such class.
    """
    if not data_path.is_dir():
        raise FileNotFoundError(
            f"no folder {data_path}; --data_path must hold <class>/train/good/*.png"
        )
    names = sorted(path.name for path in data_path.iterdir() if (path / "train" / "good").is_dir())
    if not names:
        raise FileNotFoundError(
            f"no class in {data_path}; --data_path must hold <class>/train/good/*.png"
        )
    return names


def choose_classes(data_path: Path, class_names: Sequence[str] | None) -> list[str]:
    """The classes to run, checked: class_names, or MVTec AD's 15 without any.

    Raises:
        FileNotFoundError: if data_path holds no class.
        ValueError: if a class is not there.
    """
    there = find_classes(data_path)
    missing = [name for name in class_names or CLASS_NAMES if name not in there]
    if missing and class_names is None:
        raise ValueError(
            f"{data_path} lacks {', '.join(missing)} of MVTec AD's 15 classes; "
            f"it holds {', '.join(there)}: choose from these with --class_name"
        )
    if missing:
        raise ValueError(
            f"unknown class {', '.join(map(repr, missing))} in {data_path}; "
            f"choose from {', '.join(there)}"
        )
    return list(dict.fromkeys(class_names or CLASS_NAMES))


def load_splits(data_path: Path, class_name: str) -> tuple[MVTecDataset, MVTecDataset]:
    """The training and the test images of a class.

    Raises:
        FileNotFoundError, ValueError: as MVTecDataset, or if there is a single training image.
    """
    train = MVTecDataset(data_path, class_name, "train")
    if len(train) < 2:
        raise ValueError(
            f"{train.samples[0].path} is the only training image of {class_name}; "
            "a covariance needs at least 2"
        )
    return train, MVTecDataset(data_path, class_name, "test")


def load_image(path: Path) -> np.ndarray:
    """An image file as (3, CROP, CROP) uint8 RGB: shorter side to RESIZE, then the centre.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    image = to_rgb(open_image(path), path)
    image = _centre_crop(resize(image, Image.Resampling.LANCZOS))
    return np.array(image).transpose(2, 0, 1)


def load_mask(path: Path) -> np.ndarray:
    """A mask file as (CROP, CROP) bool, True where any channel is above 0.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    mask = open_image(path).convert("RGB")
    mask = _centre_crop(resize(mask, Image.Resampling.NEAREST))
    return np.asarray(mask).any(axis=2)


def _list_samples(folder: Path, split: str, has_masks: bool) -> list[Sample]:
    defect_types = ["good"] if split == "train" else _list_folders(folder / split)
    samples = []
    if not defect_types:
        paths = _list_images(folder / split)
        samples = [Sample(path, "unlabelled", UNLABELLED, None) for path in paths]
    for defect_type in defect_types:
        for path in _list_images(folder / split / defect_type):
            good = defect_type == "good"
            mask_path = None if good or not has_masks else _find_mask(folder, defect_type, path)
            samples.append(Sample(path, defect_type, 0 if good else 1, mask_path))
    if not samples:
        wanted = "good/*.png" if split == "train" else "<defect type>/*.png"
        raise FileNotFoundError(
            f"no images in {folder / split}; expected {wanted} "
            f"(also {', '.join(IMAGE_SUFFIXES[1:])})"
        )
    return samples


def _list_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; a class needs train/good and test/*")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _find_mask(folder: Path, defect_type: str, image_path: Path) -> Path:
    masks = folder / "ground_truth" / defect_type
    stem = f"{image_path.stem}_mask"
    for path in _list_images(masks):
        if path.stem == stem:
            return path
    raise FileNotFoundError(f"mask missing for {image_path}: expected {masks / stem}.png")


def _check_names(samples: Sequence[Sample]) -> None:
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.name in seen:
            raise ValueError(
                f"{seen[sample.name]} and {sample.path} would share the name {sample.name}: "
                "rename one"
            )
        seen[sample.name] = sample.path


def _check_mask_sizes(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.mask_path is not None:
            image_size, mask_size = _size(sample.path), _size(sample.mask_path)
            if image_size != mask_size:
                raise ValueError(
                    f"mask {sample.mask_path} is {mask_size[0]}x{mask_size[1]} pixels but its "
                    f"image {sample.path} is {image_size[0]}x{image_size[1]}; they must be equal"
                )


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def open_image(path: Path) -> Image.Image:
    """The decoded file, in whatever mode it has.

    Raises:
        ValueError: if it cannot be read as an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
    return ValueError(f"cannot read image {path}: {reason}; replace the file or take it away")


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """The image in 8-bit RGB; 16-bit grey is scaled, transparency is dropped.

    Raises:
        ValueError: if its pixels are floating-point; the message names path.
    """
    if image.mode == "F":
        raise ValueError(
            f"cannot read image {path}: floating-point pixels have no fixed range; "
            "save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it
        pixels = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if image.mode == "P":
        # by way of RGBA Pillow does not warn of transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The image with its shorter side at RESIZE."""
    width, height = image.size
    short = min(width, height)
    size = (RESIZE * width // short, RESIZE * height // short)
    return image.resize(size, resample)


def _centre_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    return image.crop((left, top, left + CROP, top + CROP))
