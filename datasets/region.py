"""Regions of interest: images in black and white, white where defects matter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.images import is_image, open_image, to_rgb
from datasets.preprocessing import Preprocessing, crop_place, resize_and_crop
from utils.system.errors import UserError
from utils.system.files import shorten


def region_files(given: Path | None, class_names: Sequence[str]) -> dict[str, Path]:
    """The region of each class that has one: the file given, or <class>.png of the folder given."""
    if given is None:
        return {}
    if not given.is_dir():
        if len(class_names) > 1:
            raise UserError(
                f"--region {given} is one file, but {len(class_names)} classes are run; give a "
                "folder that holds <class>.png, or one --class_name"
            )
        return {class_names[0]: given}
    expected = {given / f"{shorten(name)}.png": name for name in class_names}
    found = sorted(filter(is_image, given.iterdir()))
    for path in found or [given]:  # a folder without images is refused, too
        if path not in expected:
            raise UserError(
                f"region {path} is of no class that is run ({', '.join(class_names)}); --region "
                "takes an image, or a folder that holds <class>.png of these alone"
            )
    return {expected[path]: path for path in found}


def read_region(path: Path, exif: bool = False) -> np.ndarray:
    """The white pixels of an image file, (h, w) bool; refused if none is, or others are not black.

    With exif, the image is turned as its EXIF orientation says.
    """
    image = open_image(path)
    transparent = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
    pixels = np.asarray(to_rgb(image, path, Preprocessing(exif=exif)))
    white, black = (pixels == 255).all(axis=2), (pixels == 0).all(axis=2)
    if transparent or not white.any() or not (white | black).all():
        raise UserError(
            f"region {path}, {image.width}x{image.height} pixels, must be white where defects are "
            "and black elsewhere, without transparency; save it as PNG, with sharp edges"
        )
    return white


def place_region(
    white: np.ndarray, preprocessing: Preprocessing, path: Path | str, on_window: bool = False
) -> np.ndarray:
    """A region (h, w) bool as one of what the network sees, (H, W) bool; refused if none is scored.

    It is drawn on an image as it is given, and resized and cropped like a mask, unless it is drawn
    on_window, what the network sees.
    """
    size = white.shape[::-1]
    if on_window:
        preprocessing = preprocessing._replace(resize=0).whole()
        window = white
    else:
        image = Image.fromarray(white.view(np.uint8))
        nearest = resize_and_crop(image, preprocessing, Image.Resampling.NEAREST)
        window = np.array(nearest).view(bool)
    top, left, height, width = crop_place(size, preprocessing)
    if not window[top : top + height, left : left + width].any():
        raise UserError(
            f"region {path}, {size[0]}x{size[1]} pixels, lies outside the crop, which is all that "
            "is scored; give a larger --crop, or 0 to cut nothing"
        )
    return window
