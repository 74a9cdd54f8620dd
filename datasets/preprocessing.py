"""The sizes of images: resized, cropped at the centre, and maps laid back over the original.

Reference: Defard et al., arXiv 2011.08785, section IV-B; upstream's datasets/mvtec.py.
"""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.system.errors import UserError

# shorter side after resizing, and side of the centre crop (paper, section IV-B; upstream)
RESIZE = 256
CROP = 224
BIT_DEPTHS = (10, 12, 14, 16)
SMALLEST = 32  # pixels on a side: layer3 has 2 x 2 patches then
LARGEST = 8192  # pixels of the shorter side: its square is about where Pillow begins to warn


class Preprocessing(NamedTuple):
    """How an image file is read, and the sizes to which it is resized and cropped at its centre.

    Attributes:
        resize: pixels of the shorter side; 0 keeps the size.
        crop: side of the square; 0 keeps the whole image, whatever its shape.
        exif: whether images are turned as their EXIF orientation says.
        bit_depth: bits that are used of the 16 of a grey image, one of BIT_DEPTHS.
    """

    resize: int = RESIZE
    crop: int = CROP
    exif: bool = False
    bit_depth: int = 16


DEFAULT = Preprocessing()


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Refuse sizes with which no image could be preprocessed.

    Raises:
        ValueError: if the crop is larger than the resized image, either is below SMALLEST or
            resize is above LARGEST.
    """
    resize, crop = preprocessing.resize, preprocessing.crop
    if preprocessing.bit_depth not in BIT_DEPTHS:
        raise UserError(
            f"bit_depth {preprocessing.bit_depth} is none of {', '.join(map(str, BIT_DEPTHS))}"
        )
    if resize > LARGEST:
        raise UserError(
            f"--resize {resize} is too large; give at most {LARGEST}, or 0 to keep the size"
        )
    for name, side in (("resize", resize), ("crop", crop)):
        if 0 < side < SMALLEST:
            raise UserError(f"--{name} {side} is too small; give {SMALLEST} or more, or 0 for none")
    if resize and crop > resize:
        raise UserError(
            f"--crop {crop} is larger than --resize {resize}; "
            "give a smaller --crop, or 0 to cut nothing"
        )


def preprocessed_size(
    path: Path | str, size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int]:
    """Width and height after preprocessing.

    Args:
        path: of the image, for error messages.
        size: width and height of the image.
        preprocessing: of the image.

    Raises:
        ValueError: if the crop is larger than the image, or a side ends below SMALLEST.
    """
    width, height = size = resized_size(size, preprocessing.resize)
    if preprocessing.crop > min(size):
        raise UserError(
            f"--crop {preprocessing.crop} is larger than {path}, {width}x{height} pixels; "
            "give a smaller --crop, or 0 to cut nothing"
        )
    if preprocessing.crop:
        return preprocessing.crop, preprocessing.crop
    if min(size) < SMALLEST:
        raise UserError(
            f"{path} has {width}x{height} pixels for the network, which needs {SMALLEST} on each "
            "side; give a larger --resize"
        )
    return size


def resize(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The image with its shorter side resized to side pixels; unchanged if side is 0."""
    return image.resize(resized_size(image.size, side), resample) if side else image


def resized_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height that resize gives; the longer side is rounded down, as in torchvision."""
    width, height = size
    short = min(size)
    return (side * width // short, side * height // short) if side else size


def check_resized(size: tuple[int, int], side: int, path: Path | str) -> None:
    """Raise a ValueError for a long narrow image that resizing would make huge."""
    width, height = resized_size(size, side)
    if side and width * height > LARGEST**2:
        raise UserError(
            f"{path}, {size[0]}x{size[1]} pixels, would have {width}x{height} after --resize "
            f"{side}; give a smaller --resize, or cut the image"
        )


def resize_and_crop(
    image: Image.Image, preprocessing: Preprocessing, resample: Image.Resampling
) -> Image.Image:
    """The centre crop of the resized image."""
    (width, height), side = image.size, preprocessing.resize
    # Pillow resizes the crop alone, which is faster. The pixels are the same only if the image is
    # square (its shape decides which axis goes first) and the box is exact in Pillow's float32.
    if side and width == height and 256 * width % side == 0:
        part = crop_box(image.size, preprocessing)
        return image.resize([preprocessing.crop or side] * 2, resample, part)
    image = resize(image, side, resample)
    return image.crop(_centre(image.size, preprocessing.crop))


def _centre(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the centre crop; of the whole image if side is 0."""
    width, height = size
    if not side:
        return 0, 0, width, height
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side


class Box(NamedTuple):
    """A rectangle of an image by its edges, in pixels, also fractions of pixels."""

    left: float
    top: float
    right: float
    bottom: float


def crop_box(size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """The part of an original image that remains after resizing and cropping.

    Args:
        size: width and height of the original image.
        preprocessing: of the image.

    Returns:
        The edges of the crop in pixels of the original image.
    """
    resized = resized_size(size, preprocessing.resize)
    edges = _centre(resized, preprocessing.crop)
    return Box(*(edge * size[i % 2] / resized[i % 2] for i, edge in enumerate(edges)))


def uncrop(anomaly_map: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """An anomaly map of the crop, laid over the original image.

    Args:
        anomaly_map: (H, W) float32.
        size: width w and height h of the original image.
        box: the part of the original image that the map covers, from crop_box.

    Returns:
        (h, w) float32, interpolated bilinearly; NaN at pixels whose centre is outside the box.
    """
    width, height = size
    rows, ys = _positions(box.top, box.bottom, anomaly_map.shape[0])
    columns, xs = _positions(box.left, box.right, anomaly_map.shape[1])
    whole = np.full((height, width), np.nan, dtype=np.float32)
    whole[rows, columns] = _interpolate(_interpolate(anomaly_map, ys).T, xs).T
    return whole


def _positions(low: float, high: float, n: int) -> tuple[slice, np.ndarray]:
    """The pixels with centres between two edges, and these centres as indices of a map.

    Args:
        low: edge of the box, in pixels of the original image.
        high: the opposite edge.
        n: pixels of the map between the edges.
    """
    first, last = ceil(low - 0.5), ceil(high - 0.5)
    centres = np.arange(first, last) + 0.5
    return slice(first, last), (centres - low) * n / (high - low) - 0.5


def _interpolate(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows of values (n, m) at fractional indices (k,): (k, m); the end rows beyond the ends."""
    last = len(values) - 1
    positions = positions.clip(0, last)
    below = positions.astype(int).clip(0, last - 1)
    weights = (positions - below).astype(np.float32)[:, None]
    return values[below] * (1 - weights) + values[below + 1] * weights
