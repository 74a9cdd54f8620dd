"""The sizes of images: resized, cropped at the centre, and maps laid back over the original.

Reference: Defard et al., arXiv 2011.08785, section IV-B; upstream's datasets/mvtec.py.
"""

from math import nan, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.system.errors import UserError

# shorter side after resizing, and side of the centre crop (paper, section IV-B; upstream)
RESIZE = 256
CROP = 224
WHOLE = 2**31  # as context: more than any image has, so the whole resized image
BIT_DEPTHS = (10, 12, 14, 16)
SMALLEST = 32  # pixels on a side: layer3 has 2 x 2 patches then
LARGEST = 8192  # pixels on a side; no crop and no resized image has more than a square of it


class Preprocessing(NamedTuple):
    """How an image file is read, and the sizes to which it is resized and cropped at its centre."""

    resize: int = RESIZE  # pixels of the shorter side; 0 keeps the size
    crop: int = CROP  # side of the square; 0 keeps the whole image, whatever its shape
    exif: bool = False  # whether images are turned as their EXIF orientation says
    bit_depth: int = 16  # bits that are used of the 16 of a grey image, one of BIT_DEPTHS
    # pixels around the crop that the network sees too, as far as the resized image goes; masks
    # and anomaly maps are of the crop alone
    context: int = 0

    def whole(self) -> "Preprocessing":
        """The same, but the network sees the whole resized image."""
        return self._replace(context=WHOLE)


DEFAULT = Preprocessing()


Place = tuple[int, int, int, int]  # top, left, height and width in an array of pixels


class Box(NamedTuple):
    """A rectangle of an image by its edges, in pixels, also fractions of pixels."""

    left: float
    top: float
    right: float
    bottom: float


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Refuse settings with which no image could be preprocessed."""
    resize, crop, _, bit_depth, context = preprocessing
    if bit_depth not in BIT_DEPTHS or context < 0:
        raise UserError(
            f"bit_depth {bit_depth}, context {context}: the first must be one of "
            f"{', '.join(map(str, BIT_DEPTHS))}, the second at least 0"
        )
    for name, side in (("resize", resize), ("crop", crop)):
        if side and not SMALLEST <= side <= LARGEST:
            raise UserError(
                f"--{name} {side} must be from {SMALLEST} to {LARGEST}, or 0 to leave it out"
            )
    if resize and crop > resize:
        raise UserError(
            f"--crop {crop} is larger than --resize {resize}; "
            "give a smaller --crop, or 0 to cut nothing"
        )


def preprocessed_size(
    path: Path | str, size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int]:
    """Width and height of what the network sees of an image of width and height size.

    An image that is too small, or that resizing would make huge, is refused by its path.
    """
    width, height = resized_size(size, preprocessing.resize)
    least = max(preprocessing.crop, SMALLEST)
    if min(width, height) < least:
        raise UserError(
            f"{path} has {width}x{height} pixels for the network, which needs {least} on each "
            "side; give a larger --resize or a smaller --crop"
        )
    if preprocessing.resize and width * height > LARGEST**2:
        raise UserError(
            f"{path}, {size[0]}x{size[1]} pixels, would have {width}x{height} after --resize "
            f"{preprocessing.resize}; give a smaller --resize, or cut the image"
        )
    return window_size(size, preprocessing)


def resized_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a resized image; the longer side is rounded down, as in torchvision."""
    width, height = size
    short = min(size)
    return (side * width // short, side * height // short) if side else size


def resize_and_crop(
    image: Image.Image, preprocessing: Preprocessing, resample: Image.Resampling
) -> Image.Image:
    """The centre crop of the resized image, with its context."""
    (width, height), side = image.size, preprocessing.resize
    resized = resized_size(image.size, side)
    _, window = _cut(resized, preprocessing)
    # Pillow resizes the window alone, which is faster. The pixels are those of the whole image,
    # resized and then cut, if the image is square (its shape decides which axis goes first) and
    # the box is exact in Pillow's float32. So the context changes no pixel of the crop.
    if side and width == height and 256 * width % side == 0:
        box = _in_original(window, image.size, resized)
        return image.resize(window_size(image.size, preprocessing), resample, box)
    return (image.resize(resized, resample) if side else image).crop(window)


def window_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height of what the network sees of an image of width and height size."""
    _, (left, top, right, bottom) = _cut(resized_size(size, preprocessing.resize), preprocessing)
    return right - left, bottom - top


def crop_place(size: tuple[int, int], preprocessing: Preprocessing) -> Place:
    """Where the crop lies in what the network sees of an image of width and height size."""
    crop, window = _cut(resized_size(size, preprocessing.resize), preprocessing)
    top, left = crop.top - window.top, crop.left - window.left
    return top, left, crop.bottom - crop.top, crop.right - crop.left


def window_place(size: tuple[int, int], preprocessing: Preprocessing) -> Place:
    """Where the window lies in an image of H x W = size that was resized, or is the window."""
    _, (left, top, right, bottom) = _cut(size[::-1], preprocessing)
    return top, left, bottom - top, right - left


def crop_share(size: tuple[int, int], preprocessing: Preprocessing) -> float:
    """The share of an image of width and height size that the crop keeps: all that is scored."""
    resized = resized_size(size, preprocessing.resize)
    _, _, height, width = crop_place(size, preprocessing)
    return height * width / prod(resized)


def _cut(resized: tuple[int, int], preprocessing: Preprocessing) -> tuple[Box, Box]:
    """The centre crop of a resized image, and the window: the crop with its context."""
    (width, height), side, context = resized, preprocessing.crop, preprocessing.context
    if not side:
        return (Box(0, 0, width, height),) * 2
    left, top = round((width - side) / 2), round((height - side) / 2)
    right, bottom = left + side, top + side
    near = max(left - context, 0), max(top - context, 0)
    far = min(right + context, width), min(bottom + context, height)
    return Box(left, top, right, bottom), Box(*near, *far)


def _in_original(box: Box, size: tuple[int, int], resized: tuple[int, int]) -> Box:
    """A box of a resized image in pixels of the original of width and height size."""
    return Box(*(edge * size[i % 2] / resized[i % 2] for i, edge in enumerate(box)))


def crop_box(size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """The crop, without its context, in pixels of an original image of width and height size."""
    resized = resized_size(size, preprocessing.resize)
    return _in_original(_cut(resized, preprocessing)[0], size, resized)


def uncrop(anomaly_map: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """An anomaly map (H, W) float32 laid over an original image of size: (h, w) float32.

    It is interpolated bilinearly in the box that it covers, from crop_box, and NaN at pixels whose
    centre is outside.
    """
    width, height = size
    across = anomaly_map.shape[1] / (box.right - box.left)
    down = anomaly_map.shape[0] / (box.bottom - box.top)
    # the whole image in pixels of the map
    edges = -box.left * across, -box.top * down
    edges += (width - box.left) * across, (height - box.top) * down
    how = Image.Transform.EXTENT, edges, Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(anomaly_map).transform(size, *how, fillcolor=nan))
