"""Mask files as the pixels that they mark, by brightness or by palette index."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.images import find_facts, look_at_file, open_header, open_image, turn_upright
from datasets.notes import LARGE_MASK, MANY_VALUES, UNSEEN_MASKS, Notes
from datasets.preprocessing import Preprocessing, preprocessed_size, resize_and_crop
from utils.system.errors import UserError

# from these shares of the image or of its border on, a mask may be inverted
LARGE_SHARE, LARGE_BORDER = 0.5, 0.9
MOST_VALUES = 16  # of a mask: classes of defects may have values of their own
UNCOMPRESSED = ("BMP", "TIFF", "PPM")  # formats, as a rule
HEADER_BYTES = 1000
BLACK_AND_WHITE = {(0, 0, 0), (255, 255, 255)}
COLOUR = (1, 256, 65536)  # red, green and blue as one number


def load_mask(
    path: Path, preprocessing: Preprocessing, invert: bool = False, notes: Notes | None = None
) -> np.ndarray:
    """A mask file, preprocessed like its image: (H, W) bool, of the crop without its context.

    With invert, what the file marks is the background. Refused if it marks no pixel or if it is
    unclear what; the notes get what may be meant otherwise.
    """
    notes = notes or Notes()
    mask = open_image(path)
    look_at_file(mask, path, preprocessing.exif, notes)
    if preprocessing.exif:
        mask = turn_upright(mask)
    values = find_values(mask, path)
    marked = (values > 0) != invert
    if not marked.any():
        reason = "its image lies among the defects; mark it, or move the image to the good ones"
        if find_facts(mask).deep:
            reason = "its colours have 16 bits, of which the upper 8 are read: save it in grey"
        raise UserError(f"mask {path} marks no pixel, but {reason}")
    border = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
    if marked.mean() > LARGE_SHARE or border.mean() > LARGE_BORDER:
        notes.add(LARGE_MASK, path)
    if np.unique(values[values > 0]).size >= MOST_VALUES:  # and 0
        notes.add(MANY_VALUES, path)
    preprocessed_size(path, mask.size, preprocessing)  # refuses what is too small or too large
    image = Image.fromarray(marked.view(np.uint8))
    preprocessing = preprocessing._replace(context=0)
    seen = np.asarray(resize_and_crop(image, preprocessing, Image.Resampling.NEAREST)).view(bool)
    if not seen.any():
        notes.add(UNSEEN_MASKS, path)
    return seen


def find_values(mask: Image.Image, path: Path) -> np.ndarray:
    """The numbers (h, w) by which a decoded mask marks the pixels where they are above 0.

    In an image with a palette these are the indices, else the grey values, or the colours as
    numbers. What varies in transparency is refused: it may mark other pixels than the colours.
    """
    if mask.mode in ("P", "PA"):
        return _find_indices(mask, path)
    if "transparency" in mask.info and mask.mode in ("1", "L", "RGB"):
        mask = mask.convert("RGBA")
    if "A" in mask.getbands() and len(set(mask.getchannel("A").getextrema())) == 2:
        raise UserError(
            f"mask {path} is transparent in part; save it in black and white, without transparency"
        )
    if mask.mode in ("1", "L") or mask.mode.startswith("I"):
        return np.asarray(mask)
    return np.asarray(mask.convert("RGB")) @ COLOUR


def _find_indices(mask: Image.Image, path: Path) -> np.ndarray:
    indices = np.asarray(mask.getchannel(0))
    palette = np.reshape(mask.getpalette("RGB"), (-1, 3)).tolist()
    colours = {tuple(palette[i]) for i in np.unique(indices) if i < len(palette)}
    if palette[0] != [0, 0, 0] and colours == BLACK_AND_WHITE:
        raise UserError(
            f"mask {path} has a palette whose index 0, the background, is not black, but its "
            "colours are black and white; save it in grey, without a palette"
        )
    return indices


def is_black_and_white(path: Path) -> bool:
    """Whether an image file has two colours, black and one other; False if it is damaged.

    Only a file that is much smaller than its pixels is decoded: compressed, photographs are not.
    """
    try:
        with open_header(path) as image:
            width, height = image.size
            large = path.stat().st_size > HEADER_BYTES + width * height / 16
            if large and image.format not in UNCOMPRESSED:
                return False
            colours = image.convert("RGB").getcolors(2)
    except UserError:  # who reads the file will say it
        return False
    return colours is not None and len(colours) == 2 and (0, 0, 0) in [c for _, c in colours]
